"""`tocsin psql`: somebody without PostgreSQL's client can follow the README."""

from __future__ import annotations

import os
import subprocess
import sys
from urllib.parse import urlsplit

import asyncpg
import pytest

from tocsin.cli.psql import without_secret
from tocsin.settings import load_settings
from tocsin.stack.running import here


def psql(*arguments: str, path: str | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TOCSIN_", "PG"))} | settings
    return subprocess.run(
        [sys.executable, "-m", "tocsin.cli.main", "psql", *arguments], capture_output=True, text=True, check=False, timeout=60, env=environment, cwd=path
    )


WHERE_AND_SINCE_WHEN = "SELECT current_database() || ' since ' || extract(epoch FROM pg_postmaster_start_time())"


async def test_a_statement_is_answered_by_the_source_or_the_replica(
    source_url: str, replica_url: str, source: asyncpg.Connection, replica: asyncpg.Connection
) -> None:
    settings = {"TOCSIN_DATABASE_URL": source_url, "TOCSIN_REPLICA_URL": replica_url}
    for arguments, server in ((("-Atc",), source), (("--replica", "-Atc"), replica), (("-At", "--replica", "--command"), replica)):
        done = psql(*arguments, WHERE_AND_SINCE_WHEN, **settings)
        assert (done.returncode, done.stdout.strip()) == (0, await server.fetchval(WHERE_AND_SINCE_WHEN)), done.stderr


async def test_a_password_goes_by_the_environment(source: asyncpg.Connection, source_url: str) -> None:
    parts = urlsplit(source_url)
    url = f"postgresql://postgres:p%40ss@127.0.0.1:{parts.port}{parts.path}"
    told = psql("-At", "-c", r"\getenv said PGPASSWORD", "-c", r"\echo :said", "-c", "SELECT pg_backend_pid() > 0", TOCSIN_DATABASE_URL=url)
    assert told.stdout.split() == ["p@ss", "t"], told.stderr


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u:a%2Fb@h:1/d?sslmode=require", ("postgresql://u@h:1/d?sslmode=require", "a/b")),
        ("postgresql://u@[::1]:1/d", ("postgresql://u@[::1]:1/d", None)),
        ("postgresql://h/d", ("postgresql://h/d", None)),
        ("postgresql://u:@h/d", ("postgresql://u@h/d", "")),
    ],
)
def test_the_address_without_its_password(url: str, expected: tuple[str, str | None]) -> None:
    assert without_secret(url) == expected


def test_where_no_database_is_named_nor_embedded_it_says_so(tmp_path: object) -> None:
    done = psql("-c", "SELECT 1", path=str(tmp_path), TOCSIN_EMBEDDED_SOURCE_PORT="1")
    assert done.returncode == 2
    assert "TOCSIN_DATABASE_URL is not set" in done.stderr
    assert "tocsin up" in done.stderr


def test_every_verb_finds_the_databases_of_the_tocsin_up_that_runs_here(source_url: str, replica_url: str) -> None:
    ports = {"embedded_source_port": urlsplit(source_url).port, "embedded_replica_port": urlsplit(replica_url).port}
    found = here(load_settings(**ports))
    assert found.database_url == f"postgresql://postgres@127.0.0.1:{ports['embedded_source_port']}/shop"
    assert found.replica_url == f"postgresql://postgres@127.0.0.1:{ports['embedded_replica_port']}/shop"
    assert found.nats_url == "nats://127.0.0.1:4222"
    named = here(load_settings(**ports, database_url=source_url, nats_url="nats://elsewhere:4222"))
    assert (named.database_url, named.nats_url) == (source_url, "nats://elsewhere:4222")
    closed = here(load_settings(embedded_source_port=1, embedded_replica_port=0))
    assert (closed.database_url, closed.replica_url) == (None, None)
