"""`tocsin why`: each stage at which an event may be, made for real."""

from __future__ import annotations

import asyncpg
from nats.aio.client import Client

from tests.integration.tocsin_listener.test_listener import Start, messages, start
from tocsin.cli.examine.finding import Finding
from tocsin.cli.why import explain
from tocsin_listener.watch import watch

__all__ = ["start"]


async def why(connection: asyncpg.Connection, table: str, key: str | None = None) -> Finding:
    """The last finding."""
    return [finding async for finding in explain(connection, table, key)][-1]


async def test_every_stage_is_named_with_its_fix(start: Start, installed: asyncpg.Connection, source_url: str, nats: Client) -> None:
    assert "no table" in (await why(installed, "t")).text
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert (await why(installed, "t")).fix == "tocsin watch t"
    await watch(installed, ["t"])
    assert "no event" in (await why(installed, "t")).text
    writer = await asyncpg.connect(source_url)
    pid = await writer.fetchval("SELECT pg_backend_pid()")
    await writer.execute("BEGIN; INSERT INTO t VALUES (1)")
    open_ = [finding async for finding in explain(installed, "t", None)]
    assert any(f"pid {pid}" in finding.text and not finding.ok for finding in open_)
    await writer.execute("COMMIT")
    await writer.close()
    assert (await why(installed, "t")).fix == "tocsin listener"
    async with start() as settings:
        await messages(nats, settings, 1)
        sent = await why(installed, "t", "1")
        assert (sent.ok, "given to the stream" in sent.text) == (True, True)
        assert "no event" in (await why(installed, "t", "2")).text
