"""PostgreSQL and NATS from the public images, by testcontainers."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator

import asyncpg
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer

from tocsin.stack.process import port_is_open

# The reaper is one more image to pull; the contexts below stop what they start.
testcontainers_config.ryuk_disabled = True

POSTGRES_IMAGE = os.environ.get("TOCSIN_TEST_POSTGRES_IMAGE", "postgres:15-bookworm")
NATS_IMAGE = os.environ.get("TOCSIN_TEST_NATS_IMAGE", "nats:2-alpine")


@contextlib.asynccontextmanager
async def postgres(name: str) -> AsyncIterator[tuple[str, str]]:
    """(the URL from here, the URL from another container)"""
    container = (
        DockerContainer(POSTGRES_IMAGE)
        .with_env("POSTGRES_PASSWORD", "tocsin")
        .with_exposed_ports(5432)
        .with_command("postgres -c wal_level=logical -c max_wal_senders=20 -c max_replication_slots=20 -c max_connections=200 -c fsync=off")
    )
    await asyncio.to_thread(container.start)
    try:
        url = f"postgresql://postgres:tocsin@{container.get_container_host_ip()}:{container.get_exposed_port(5432)}/postgres"
        address = await asyncio.to_thread(_bridge_address, container)
        await _until_ready(url)
        await _trust(container, url)
        yield url, f"postgresql://postgres:tocsin@{address}:5432/postgres"
    finally:
        await asyncio.to_thread(container.stop)


@contextlib.asynccontextmanager
async def nats() -> AsyncIterator[str]:
    container = DockerContainer(NATS_IMAGE).with_exposed_ports(4222).with_command("--jetstream --store_dir /tmp/jetstream")
    await asyncio.to_thread(container.start)
    try:
        host, port = container.get_container_host_ip(), int(container.get_exposed_port(4222))
        async with asyncio.timeout(30):
            while not port_is_open(port, "127.0.0.1" if host == "localhost" else host):
                await asyncio.sleep(0.05)
        yield f"nats://{host}:{port}"
    finally:
        await asyncio.to_thread(container.stop)


async def _trust(container: DockerContainer, url: str) -> None:
    """As the embedded server does: tests make roles without passwords."""
    await asyncio.to_thread(container.exec, ["sh", "-c", "sed -i s/scram-sha-256/trust/ $PGDATA/pg_hba.conf"])
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("SELECT pg_reload_conf()")
    finally:
        await connection.close()


def _bridge_address(container: DockerContainer) -> str:
    wrapped = container.get_wrapped_container()
    wrapped.reload()
    return str(next(iter(wrapped.attrs["NetworkSettings"]["Networks"].values()))["IPAddress"])


async def _until_ready(url: str) -> None:
    # The image restarts its server once after it made the database, so one answer is not enough.
    async with asyncio.timeout(60):
        answers = 0
        while answers < 3:
            try:
                connection = await asyncpg.connect(url, timeout=5)
            except (OSError, asyncpg.PostgresError):
                answers = 0
            else:
                await connection.close()
                answers += 1
            await asyncio.sleep(0.2)
