"""Real servers for every test: two PostgreSQL servers and one NATS for the session, a fresh database and stream for each test.

TOCSIN_TEST_BACKEND=containers takes them from Docker by testcontainers instead of from the embedded binaries.
"""

from __future__ import annotations

import itertools
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.support import programs, servers
from tocsin.direct import DirectClient

_numbers = itertools.count(1)

for name in [name for name in os.environ if name.startswith("TOCSIN_") and not name.startswith("TOCSIN_TEST_")]:
    # A developer's own settings must not reach the tests.
    del os.environ[name]

# A shell starts what it puts into the background with SIGINT ignored, and each process hands that down to its children.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_configure(config: pytest.Config) -> None:
    programs.add_markers(config)


def pytest_report_header() -> list[str]:
    return programs.missing()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    programs.leave_out(config, items)


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder for the session's servers; outside pytest's own, which only its owner may enter."""
    with tempfile.TemporaryDirectory(prefix="tocsin-tests-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest_asyncio.fixture(scope="session")
async def source_server(scratch: Path) -> AsyncIterator[servers.Server]:
    """The source PostgreSQL: wal_level=logical; not for tests that kill it."""
    async with servers.postgres(scratch, "source") as server:
        yield server


@pytest_asyncio.fixture(scope="session")
async def replica_server(scratch: Path) -> AsyncIterator[servers.Server]:
    """The replica PostgreSQL; not for tests that kill it."""
    async with servers.postgres(scratch, "replica") as server:
        yield server


@pytest_asyncio.fixture(scope="session")
async def nats_server(scratch: Path) -> AsyncIterator[servers.Server]:
    """NATS with JetStream; not for tests that kill it."""
    async with servers.nats(scratch, "nats") as server:
        yield server


@pytest_asyncio.fixture
async def source_url(source_server: servers.Server) -> AsyncIterator[str]:
    """The URL of a fresh, empty source database; its name is unique in the session, so the default stream is too."""
    async with servers.database(source_server, f"src{next(_numbers)}") as url:
        yield url


@pytest_asyncio.fixture
async def replica_url(replica_server: servers.Server) -> AsyncIterator[str]:
    """The URL of a fresh, empty replica database."""
    async with servers.database(replica_server, f"rep{next(_numbers)}") as url:
        yield url


@pytest_asyncio.fixture
async def source(source_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the fresh source database."""
    connection = await asyncpg.connect(source_url)
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def replica(replica_url: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection to the fresh replica database."""
    connection = await asyncpg.connect(replica_url)
    yield connection
    await connection.close()


@pytest_asyncio.fixture
async def nats(nats_server: servers.Server) -> AsyncIterator[Client]:
    """A NATS client of the test's own."""
    client = DirectClient()  # behind whose flush a subscription is there
    await client.connect(nats_server.url)
    yield client
    await client.close()
