"""The source fails over to its physical standby: refused while it is a standby, a new incarnation and epoch on the new timeline."""

from __future__ import annotations

import asyncio
import os

import asyncpg
from nats.aio.client import Client

from tests.faults.test_listener_crashes import STREAM, assert_exactly_once, running_listener
from tests.faults.test_listener_links import until
from tests.support import oracle
from tests.support.pipeline import DATABASE, Pipeline
from tests.support.proxy import TcpProxy
from tocsin.broker import stream_state
from tocsin.stack import process, server_user
from tocsin.stack.postgres_server import USER, PostgresServer


async def standby_of(running: Pipeline) -> PostgresServer:
    """A streaming standby of the source, not yet started."""
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
        data, process.free_port(), configuration={"primary_conninfo": f"host=127.0.0.1 port={running.source.port} user={USER}", "hot_standby": "on"}
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
