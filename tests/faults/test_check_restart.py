"""The checker is killed in the middle of an audit, and another one goes on with it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import asyncpg
import httpx
import pytest

from tests.faults.test_check_faults import Pair, pair  # noqa: F401
from tests.support import servers
from tocsin.settings import load_settings
from tocsin.stack.process import free_port
from tocsin_check.__main__ import serve

ROWS = 24_000


@contextlib.asynccontextmanager
async def checker(both: Pair, nats: str, **settings: str) -> AsyncIterator[tuple[httpx.AsyncClient, asyncio.subprocess.Process]]:
    """`tocsin check` as a process of its own, and a client for it."""
    port = free_port()
    named = {
        "TOCSIN_DATABASE_URL": both.source.url(),
        "TOCSIN_REPLICA_URL": both.replica.url(),
        "TOCSIN_NATS_URL": nats,
        "TOCSIN_CHECK_PORT": str(port),
        "TOCSIN_LOG_LEVEL": "warning",
    }
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "tocsin.cli.main", "check", env=os.environ | named | settings)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client, child
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


@contextlib.asynccontextmanager
async def another(both: Pair, nats: str) -> AsyncIterator[httpx.AsyncClient]:
    """A checker within this process, at once and at full speed."""
    settings = load_settings(database_url=both.source.url(), replica_url=both.replica.url(), nats_url=nats, check_port=free_port(), check_max_load=1.0)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group, httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.check_port}", timeout=10) as client:
        group.create_task(serve(settings, stop))
        try:
            yield client
        finally:
            stop.set()


async def until(condition: Callable[[], Awaitable[Any]], patience: float = 60) -> Any:
    async with asyncio.timeout(patience):
        while True:
            with contextlib.suppress(httpx.TransportError, KeyError):
                if (answer := await condition()) is not None:
                    return answer
            await asyncio.sleep(0.05)


async def noted(connection: asyncpg.Connection, what: str, least: int) -> dict[str, Any] | None:
    sql = "SELECT state->>'rows' AS rows, state->>'started' AS started, state->'did' AS did FROM tocsin_check.unfinished WHERE what = $1"
    row = await connection.fetchrow(sql, what)
    return dict(row) if row is not None and int(row["rows"] or 0) >= least else None


async def filled(pair: Pair) -> None:  # noqa: F811
    """ROWS rows, one drifted among the first, one among the last, and no audit under way."""
    async with pair.on(pair.source) as source, pair.on(pair.replica) as replica:
        await source.execute(f"INSERT INTO t SELECT i, 'v' FROM generate_series(101, {ROWS}) i ON CONFLICT DO NOTHING")
        while await replica.fetchval("SELECT count(*) FROM t") < ROWS:
            await asyncio.sleep(0.05)
        await replica.execute("DELETE FROM tocsin_check.unfinished WHERE what LIKE 'table %'")
        await replica.execute(f"UPDATE t SET v = 'v' WHERE v <> 'v'; UPDATE t SET v = 'drift' WHERE id IN (7, {ROWS - 7})")


async def killed(pair: Pair, child: asyncio.subprocess.Process) -> str:  # noqa: F811
    """When the audit under way began, once it has come to a sixth and its process is dead."""
    async with pair.on(pair.replica) as replica:
        await until(lambda: noted(replica, "table public.t", ROWS // 6))
        child.kill()
        await child.wait()
        left = await noted(replica, "table public.t", 0)
    assert left is not None
    assert int(left["rows"]) < ROWS * 2 / 3
    return str(left["started"])


async def ended(client: httpx.AsyncClient, started: str) -> None:
    """The audit that began then has come to its end, and found what the first process found and what it did not come to."""

    async def proven() -> dict[str, Any] | None:
        report = (await client.get("/drift/public.t")).json()
        return report if report["verified_at"] is not None else None

    report = await until(proven)
    rows = (await client.get("/drift/public.t/rows")).json()["rows"]
    blocks = (await client.get("/drift/public.t/blocks")).json()
    assert (report["status"], report["rows"], report["different"]) == ("drift", ROWS, 2)
    assert {row["key"]["id"] for row in rows} == {7, ROWS - 7}
    assert report["verified_at"].rstrip("Z") == started.rstrip("Z")
    assert sum(block["rows"] for block in blocks) == ROWS
    assert blocks[0]["state"] == "drifted"
    assert blocks[0]["verified_at"].rstrip("Z") == started.rstrip("Z")


async def test_a_full_audit_goes_on_after_kill_9_with_what_it_had_found(pair: Pair, nats_server: servers.Server) -> None:  # noqa: F811
    """What was proven is what it was when the first process began."""
    await filled(pair)
    async with checker(pair, nats_server.url, TOCSIN_CHECK_MAX_ROWS="4000") as (client, child):

        async def told() -> bool | None:
            report = (await client.get("/drift/public.t")).json()
            return True if report["status"] == "unknown" and "its first audit is under way" in (report["reason"] or "") else None

        await until(told)
        started = await killed(pair, child)
    async with another(pair, nats_server.url) as client, pair.on(pair.replica) as replica:
        await ended(client, started)

        async def forgotten() -> bool | None:
            left = await noted(replica, "table public.t", 0)
            return True if left is None or left["started"] != started else None

        await until(forgotten)


@pytest.mark.slow
async def test_an_audit_that_was_asked_for_goes_on_after_kill_9_under_its_name(pair: Pair, nats_server: servers.Server) -> None:  # noqa: F811
    async with pair.on(pair.source) as source:
        await source.execute("DELETE FROM t WHERE id > 100")
    async with checker(pair, nats_server.url, TOCSIN_CHECK_MAX_ROWS="4000") as (client, child):

        async def ready() -> bool | None:
            return True if (await client.get("/readyz")).status_code == 200 else None

        await until(ready)
        await filled(pair)
        asked = (await client.post("/audits", json={"tables": ["public.t"]})).json()["id"]

        async def running() -> bool | None:
            progress = (await client.get(f"/audits/{asked}")).json()
            return True if progress["status"] == "running" and 0 < progress["rows"] < ROWS else None

        await until(running)
        started = await killed(pair, child)
    async with another(pair, nats_server.url) as client:

        async def done() -> dict[str, Any] | None:
            answer = await client.get(f"/audits/{asked}")
            return answer.json() if answer.status_code == 200 and answer.json()["status"] == "done" else None

        progress = await until(done)
        assert (progress["done"], progress["total"], progress["rows"]) == (1, 1, ROWS)
        await ended(client, started)


@pytest.mark.slow
async def test_nothing_goes_on_between_other_databases(pair: Pair, nats_server: servers.Server) -> None:  # noqa: F811
    """What was noted says that another source was read: as after a move of the source, or a backup of the replica that was restored."""
    await filled(pair)
    async with checker(pair, nats_server.url, TOCSIN_CHECK_MAX_ROWS="4000") as (_, child):
        started = await killed(pair, child)
    async with pair.on(pair.replica) as replica:
        await replica.execute(
            "UPDATE tocsin_check.unfinished SET state = jsonb_set(state, '{shape}', to_jsonb(md5(state->>'shape'))) WHERE what = 'table public.t'"
        )
        await replica.execute("UPDATE t SET v = 'after' WHERE id = 9")
    async with another(pair, nats_server.url) as client:

        async def proven() -> dict[str, Any] | None:
            report = (await client.get("/drift/public.t")).json()
            return report if report["verified_at"] is not None else None

        report = await until(proven)
        assert report["verified_at"].rstrip("Z") > started.rstrip("Z")
        assert report["different"] == 3
