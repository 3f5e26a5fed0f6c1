"""PostgreSQL by verify-full: an authority of ours, and the name in the certificate. The embedded server has no TLS; the public image has."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from testcontainers.core.container import DockerContainer

from tests.support.certificates import Authority
from tests.support.containers import POSTGRES_IMAGE
from tocsin import postgres
from tocsin.errors import TocsinError

pytestmark = pytest.mark.containers
SETTING = "TOCSIN_DATABASE_URL"


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tocsin-tls-") as name:
        yield Path(name)


async def until_there(url: str) -> None:
    async with asyncio.timeout(60):
        while True:
            try:
                await postgres.close(await postgres.connect(url, setting=SETTING, application="test"))
            except TocsinError as refused:
                if "certificate" in str(refused):
                    raise
                await asyncio.sleep(0.2)
            else:
                return


@contextlib.asynccontextmanager
async def postgres_with(folder: Path, certificate: str) -> AsyncIterator[str]:
    """The URL of a server that shows this certificate of the folder."""
    # PostgreSQL takes a key that it owns alone.
    start = "install -o postgres -m 600 /tls/*.key /tls/*.pem /srv && exec docker-entrypoint.sh postgres -c ssl=on"
    container = (
        DockerContainer(POSTGRES_IMAGE, entrypoint="sh")
        .with_env("POSTGRES_PASSWORD", "tocsin")
        .with_exposed_ports(5432)
        .with_volume_mapping(str(folder), "/tls")
        .with_command(["-c", f"{start} -c ssl_cert_file=/srv/{certificate}.pem -c ssl_key_file=/srv/{certificate}.key"])
    )
    await asyncio.to_thread(container.start)
    try:
        yield f"postgresql://postgres:tocsin@127.0.0.1:{container.get_exposed_port(5432)}/postgres"
    finally:
        await asyncio.to_thread(container.stop)


async def test_postgres_is_verified_in_full(folder: Path) -> None:
    ours, stranger = Authority(folder), Authority(folder, "stranger")
    ours.issue("good")
    async with postgres_with(folder, "good") as url:
        verified = f"{url}?sslmode=verify-full&sslrootcert="
        await until_there(verified + str(ours.ca))
        async with postgres.connection(verified + str(ours.ca), setting=SETTING, application="test") as connection:
            assert await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
        with pytest.raises(TocsinError, match="certificate verify failed"):
            await postgres.connect(verified + str(stranger.ca), setting=SETTING, application="test")


async def test_a_certificate_for_another_name_is_refused(folder: Path) -> None:
    ours = Authority(folder)
    ours.issue("elsewhere", x509.DNSName("db.example.org"))
    async with postgres_with(folder, "elsewhere") as url:
        await until_there(f"{url}?sslmode=require")
        with pytest.raises(TocsinError, match=r"certificate is not valid for '127\.0\.0\.1'"):
            await postgres.connect(f"{url}?sslmode=verify-full&sslrootcert={ours.ca}", setting=SETTING, application="test")
