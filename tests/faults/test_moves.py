"""What docs/operations has an operator do: a dump put into another server, the stream moved to other NATS servers."""

from __future__ import annotations

import asyncio
import os
import subprocess

import asyncpg
import msgspec
import pytest
from nats.aio.client import Client
from websockets.asyncio.client import connect

from tests.faults.test_listener_crashes import STREAM, assert_exactly_once, running_listener
from tests.faults.test_listener_failover import standby_of
from tests.support import oracle
from tests.support.pipeline import DATABASE
from tocsin.stack import process
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.postgres_server import PostgresServer


@pytest.mark.slow
async def test_a_dump_in_another_server_is_refused_with_the_fix_and_the_fix_works() -> None:
    """Transactions have other numbers there: the cursor of the dump would pass over what is new."""
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 20)")
        for _ in range(300):
            await source.execute("UPDATE t SET n = n + 1 WHERE id = 1")  # so that the numbers here are well ahead of the other server's
        await assert_exactly_once(running)
        await running.stop("listener")
        other = PostgresServer(running.folder / "other", process.free_port())
        await other.start()
        try:
            connection = await asyncpg.connect(other.url())
            await connection.execute(f"CREATE DATABASE {DATABASE}")
            await connection.close()
            await asyncio.to_thread(restore, running.source, running.source_url, other.url(DATABASE))
            running.environment["TOCSIN_DATABASE_URL"] = other.url(DATABASE)
            refused = await running.start("listener", ready=False)
            assert await refused.wait() == 1
            running.services.pop("listener")
            log = (running.folder / "listener.log").read_text()
            assert "came with a dump of another server" in log
            assert "tocsin uninstall; tocsin install; tocsin watch" in log
            assert "came with a dump of another server" in await running.tocsin("doctor", expect=1)
            assert "t" in await running.tocsin("watched")
            await running.tocsin("uninstall")
            await running.tocsin("install")
            await running.tocsin("watch", "t")
            connection = await asyncpg.connect(other.url(DATABASE))
            assert await connection.fetchval("SELECT count(*) FROM t") == 20, "the rows are those of the dump"
            await running.start("listener")
            await connection.execute("INSERT INTO t (n) VALUES (7777)")
            client = Client()
            await client.connect(running.nats.url)
            async with asyncio.timeout(15):
                while 7777 not in (await oracle.stream_events(client, STREAM)).values("n"):
                    await asyncio.sleep(0.05)
            await client.close()
            await connection.close()
            await running.stop("listener")
        finally:
            await other.stop()


def restore(server: PostgresServer, old: str, new: str) -> None:
    environment = {"LD_LIBRARY_PATH": str(server.bin.parent / "lib"), "PATH": os.environ["PATH"]}
    dump = subprocess.run([str(server.bin / "pg_dump"), old], capture_output=True, env=environment, check=True)
    subprocess.run([str(server.bin / "psql"), "-q", "-v", "ON_ERROR_STOP=1", new], input=dump.stdout, capture_output=True, env=environment, check=True)


@pytest.mark.slow
async def test_the_stream_moves_to_another_nats_server_with_what_the_journal_holds_and_clients_are_told() -> None:
    """A new epoch there: a position of the old one can't be served whole, and its client is told so."""
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 20)")
        await assert_exactly_once(running)
        await running.start("gateway")
        async with connect(running.socket_url + "?subject=pg.shop.change.>&since=start") as socket:
            async with asyncio.timeout(10):
                while (frame := msgspec.json.decode(await socket.recv()))["op"] != "event":
                    pass
        position = frame["position"]
        other = NatsServer(running.folder / "elsewhere", process.free_port())
        await other.start()
        old, running.nats = running.nats, other
        try:
            for service in ("gateway", "listener"):
                await running.stop(service)
            await source.execute("INSERT INTO t (n) VALUES (21)")
            running.environment["TOCSIN_NATS_URL"] = other.url
            for service in ("listener", "gateway"):
                await running.start(service)
            seen = await assert_exactly_once(running)
            assert [event["data"]["new"]["n"] for event in seen.events] == list(range(1, 22)), "the journal's, the old ones included"
            async with connect(f"{running.socket_url}?subject=pg.shop.change.>&since={position}") as socket, asyncio.timeout(10):
                while (frame := msgspec.json.decode(await socket.recv()))["op"] != "subscribed":
                    pass
            assert (frame["recovered"], frame["reason"]) == (False, "epoch")
            for service in ("gateway", "listener"):
                await running.stop(service)
        finally:
            running.nats = old
            await other.stop()


@pytest.mark.slow
async def test_a_base_backup_put_back_on_the_same_timeline_gets_new_ids_and_a_new_epoch_and_goes_on() -> None:
    """What was committed after the backup is gone from the database, and stays in the stream's past; sequences are given a second time."""
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 20)")
        await assert_exactly_once(running)
        backup = await standby_of(running)
        (backup.data / "standby.signal").unlink()
        await source.execute("INSERT INTO t (n) SELECT generate_series(101, 120)")
        before = {event["id"]: event for event in (await assert_exactly_once(running)).events}
        await running.stop("listener")
        await running.source.kill()
        await backup.start()
        old, running.source = running.source, backup
        try:
            running.environment["TOCSIN_DATABASE_URL"] = backup.url(DATABASE)
            await running.start("listener")
            restored = await asyncpg.connect(backup.url(DATABASE))
            await restored.execute("INSERT INTO t (n) SELECT generate_series(201, 220)")
            client = Client()
            await client.connect(running.nats.url)
            async with asyncio.timeout(15):
                while not set(range(201, 221)) <= set((seen := await oracle.stream_events(client, STREAM)).values("n")):
                    await asyncio.sleep(0.05)
            await client.close()
            assert len(seen.ids) == len(set(seen.ids)), "an id is never given twice"
            assert set(before) <= set(seen.ids)
            again = [event["data"]["new"]["n"] for event in seen.events if event["id"] not in before]
            assert again == list(range(201, 221)), "nothing of the past is published again"
            assert "new epoch" in (running.folder / "listener.log").read_text().rpartition('"leading"')[0].rpartition('"leading"')[2]
            await restored.close()
            await running.stop("listener")
        finally:
            running.source = old
            await backup.stop()
