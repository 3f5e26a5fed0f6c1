"""PostgreSQL and NATS for tests: the embedded binaries, or containers where TOCSIN_TEST_BACKEND=containers."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from tocsin.stack.nats_server import NatsServer
from tocsin.stack.postgres_server import PostgresServer
from tocsin.stack.process import free_port

# Other versions than the embedded ones: `make test-matrix` sets them.
POSTGRES_BIN = Path(folder) if (folder := os.environ.get("TOCSIN_TEST_POSTGRES_BIN")) else None
NATS_SERVER = Path(program) if (program := os.environ.get("TOCSIN_TEST_NATS_SERVER")) else None

IN_CONTAINERS = os.environ.get("TOCSIN_TEST_BACKEND", "embedded") == "containers"

# Tests do not survive a power cut; kill -9 of a process loses nothing without fsync.
FAST = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "on", "autovacuum_naptime": "5s", "log_min_messages": "error"}


@dataclass(frozen=True, slots=True)
class Server:
    """`url` of a PostgreSQL server ends in its maintenance database. `own_url` is how the other PostgreSQL server reaches it."""

    url: str
    own_url: str

    def database(self, name: str) -> str:
        return _with_database(self.url, name)


def as_user(url: str, user: str) -> str:
    """The same database as another user."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}@{parts.netloc.rpartition('@')[2]}"))


def _with_database(url: str, name: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{name}"))


@contextlib.asynccontextmanager
async def postgres(scratch: Path, name: str) -> AsyncIterator[Server]:
    """A PostgreSQL server with wal_level=logical for as long as the context lasts."""
    if IN_CONTAINERS:
        from tests.support import containers

        async with containers.postgres(name) as (url, own_url):
            yield Server(url, own_url)
        return
    server = PostgresServer(scratch / name, free_port(), configuration=FAST, bin_folder=POSTGRES_BIN)
    await server.start()
    try:
        yield Server(server.url(), server.url())
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def nats(scratch: Path, name: str) -> AsyncIterator[Server]:
    """A NATS server with JetStream for as long as the context lasts."""
    if IN_CONTAINERS:
        from tests.support import containers

        async with containers.nats() as url:
            yield Server(url, url)
        return
    server = NatsServer(scratch / name, free_port(), program=NATS_SERVER)
    await server.start()
    try:
        yield Server(server.url, server.url)
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def database(server: Server, name: str) -> AsyncIterator[str]:
    """The URL of a fresh database, dropped at the end with whatever is still connected to it."""
    maintenance = await asyncpg.connect(server.url)
    try:
        await maintenance.execute(f'CREATE DATABASE "{name}"')
        yield server.database(name)
        await _drop_subscriptions(server.database(name))
        await _drop_slots(maintenance, name)
        await maintenance.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
    finally:
        await maintenance.close()


async def _drop_subscriptions(url: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        names = await connection.fetch("SELECT subname FROM pg_subscription WHERE subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())")
        for row in names:
            for clause in ("DISABLE", "SET (slot_name = NONE)"):
                await connection.execute(f'ALTER SUBSCRIPTION "{row["subname"]}" {clause}')
            await connection.execute(f'DROP SUBSCRIPTION "{row["subname"]}"')
    finally:
        await connection.close()


async def _drop_slots(maintenance: asyncpg.Connection, name: str) -> None:
    await maintenance.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE database = $1 AND active", name)
    for _ in range(50):
        try:
            await maintenance.execute("SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE database = $1", name)
        except asyncpg.ObjectInUseError:
            await maintenance.execute("SELECT pg_sleep(0.1)")
        else:
            return
