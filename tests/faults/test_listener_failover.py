"""The source fails over to its physical standby: refused while it is a standby, a new incarnation and epoch on the new timeline."""

from __future__ import annotations

import asyncio
import os

import asyncpg
import pytest
from nats.aio.client import Client

from tests.faults.test_listener_crashes import STREAM, assert_exactly_once, running_listener
from tests.faults.test_listener_links import until
from tests.support import oracle
from tests.support.pipeline import DATABASE, Pipeline
from tests.support.proxy import TcpProxy
from tocsin.broker import stream_state
from tocsin.stack import process, server_user
from tocsin.stack.postgres_server import USER, PostgresServer


async def standby_of(running: Pipeline, *, port: int | None = None) -> PostgresServer:
    """A streaming standby of the source, which it follows by that port, not yet started."""
    data = running.folder / "standby"
    user = await asyncio.to_thread(server_user.prepare, data, running.source.bin)
    server_user.make_folder(data, user)
    command = (str(running.source.bin / "pg_basebackup"), "-h", "127.0.0.1", "-p", str(running.source.port), "-U", USER, "-D", str(data))
    log = running.folder / "basebackup.log"
    environment = {"LD_LIBRARY_PATH": str(running.source.bin.parent / "lib"), "PATH": os.environ["PATH"]}
    child = await process.start(*command, "-X", "stream", "-c", "fast", log=log, user=user, cwd="/", env=environment)
    assert await child.wait() == 0, process.tail(log)
    (data / "standby.signal").touch()
    return PostgresServer(
        data, process.free_port(), configuration={"primary_conninfo": f"host=127.0.0.1 port={port or running.source.port} user={USER}", "hot_standby": "on"}
    )


async def identity(url: str) -> tuple[str, str]:
    connection = await asyncpg.connect(url)
    row = await connection.fetchrow("SELECT incarnation, timeline FROM tocsin.identity")
    await connection.close()
    assert row is not None
    return row["incarnation"], row["timeline"]


async def test_failover_to_a_physical_standby() -> None:
    """F6. The address leads to the standby first (refused, without end), which is then promoted: nothing lost or repeated per journal row."""
    async with running_listener(start=False) as (running, source):
        client = Client()
        await client.connect(running.nats.url)
        standby = await standby_of(running)
        await standby.start()
        try:
            async with TcpProxy(running.source.port) as proxy:
                await running.start("listener", TOCSIN_DATABASE_URL=f"postgresql://{USER}@127.0.0.1:{proxy.port}/{DATABASE}")
                await source.execute("INSERT INTO t (n) SELECT generate_series(1, 20)")
                await assert_exactly_once(running)
                old = await identity(running.source_url)
                before = await stream_state(client, STREAM)
                async with asyncio.timeout(15):
                    # Everything, the cursor included, is on the standby.
                    while not await source.fetchval("SELECT replay_lsn >= pg_current_wal_insert_lsn() FROM pg_stat_replication"):
                        await asyncio.sleep(0.05)
                await running.source.kill()
                proxy._target = ("127.0.0.1", standby.port)  # the address moves, as a virtual one does
                proxy.cut()
                log = running.folder / "listener.log"
                await until(lambda: "leads to a standby" in log.read_text(), 15, "the listener says that it was led to a standby")
                after = await stream_state(client, STREAM)
                assert before is not None
                assert after is not None
                assert after.epoch == before.epoch

                promoted = await asyncpg.connect(standby.url(DATABASE))
                await promoted.execute("SELECT pg_promote(wait => true)")
                await promoted.execute("INSERT INTO t (n) SELECT generate_series(21, 40)")
                running.source, lost = standby, running.source
                try:
                    seen = await assert_exactly_once(running)
                finally:
                    running.source = lost
                assert [event["data"]["new"]["n"] for event in seen.events] == list(range(1, 41))
                new = await identity(standby.url(DATABASE))
                assert new[0] != old[0]
                assert new[1] != old[1]
                assert {event["id"].rpartition("-")[0] for event in seen.events} == {old[0], new[0]}
                state = await stream_state(client, STREAM)
                assert state is not None
                assert state.epoch != before.epoch
                oracle.assert_ordered_per_key(seen, "stream")
                await promoted.close()
                await running.stop("listener")
        finally:
            await standby.stop()
            await client.close()


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(4))
async def test_failover_under_load_to_a_standby_that_was_behind(moment: int) -> None:
    """Nothing that the standby has is lost. What it has of after the last batch that it knows of comes again, and no more than that."""
    load = "INSERT INTO t (n) SELECT random() * 2e9 FROM generate_series(1, 1 + (random() * 4)::int)"
    async with running_listener(start=False) as (running, source), TcpProxy(running.source.port) as link, TcpProxy(running.source.port) as address:
        standby = await standby_of(running, port=link.port)
        await standby.start()
        try:
            await running.start("listener", TOCSIN_DATABASE_URL=f"postgresql://{USER}@127.0.0.1:{address.port}/{DATABASE}")
            async with asyncio.TaskGroup() as group:
                group.create_task(running.pgbench(load, writers=4, seconds=4))
                await asyncio.sleep(1.5 + moment * 0.3)
                link.freeze()
            ahead = await assert_exactly_once(running)
            source.terminate()
            await running.source.kill()
            address._target = ("127.0.0.1", standby.port)
            address.cut()
            promoted = await asyncpg.connect(standby.url(DATABASE))
            await promoted.execute("SELECT pg_promote(wait => true)")
            await promoted.execute("INSERT INTO t (n) SELECT -g FROM generate_series(1, 20) AS g")
            there = {(row["id"], row["n"]) for row in await promoted.fetch("SELECT id, n FROM t")}
            client = Client()
            await client.connect(running.nats.url)
            async with asyncio.timeout(15):
                while -20 not in (seen := await oracle.stream_events(client, STREAM)).values("n"):
                    await asyncio.sleep(0.1)
            await client.close()
            told = list(zip(seen.values("id"), seen.values("n"), strict=True))
            past, present = told[: len(ahead.events)], told[len(ahead.events) :]
            assert len(there) < len(past), "the standby was behind"
            assert there == set(past) & there | set(present), "nothing that the new primary has is lost"
            assert len(present) == len(set(present)), "in the new epoch each comes once"
            again = set(present) & set(past)
            assert again <= set([row for row in past if row in there][-2 * len(again) :]), "only the last come again"
            assert len(again) < len(past) / 20
            await promoted.close()
            await running.stop("listener")
        finally:
            await standby.stop()
