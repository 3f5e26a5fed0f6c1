"""The source fails over to its physical standby, and the replica's slot is there already: PostgreSQL 17's failover slots."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from websockets.asyncio.client import ClientConnection, connect

from tests.faults.test_listener_crashes import assert_exactly_once, running_listener
from tests.faults.test_listener_failover import standby_of
from tests.support.pipeline import DATABASE, Pipeline
from tests.support.proxy import TcpProxy
from tocsin.stack.postgres_server import USER, PostgresServer

# As docs/operations/failover.md says: of the primary, and of the standby.
PRIMARY = {"wal_retrieve_retry_interval": "200ms"}
STANDBY_SLOT = "standby_1"


@dataclass(slots=True)
class Moving:
    """`address` leads to the primary, until it is moved to the standby, as a virtual address does."""

    running: Pipeline
    source: asyncpg.Connection
    replica: asyncpg.Connection
    standby: PostgresServer
    address: TcpProxy

    async def rows(self) -> set[tuple[int, int]]:
        return {tuple(row) for row in await self.replica.fetch("SELECT id, n FROM t")}

    async def fail_over(self) -> asyncpg.Connection:
        """The primary is lost at once; a connection to the new one."""
        await self.running.source.kill()
        self.address._target = ("127.0.0.1", self.standby.port)
        self.address.cut()
        promoted = await asyncpg.connect(self.standby.url(DATABASE))
        await promoted.execute("SELECT pg_promote(wait => true)")
        return promoted


@contextlib.asynccontextmanager
async def moving() -> AsyncIterator[Moving]:
    async with running_listener(start=False, replica=True, configuration=PRIMARY) as (running, source), TcpProxy(running.source.port) as address:
        url = f"postgresql://{USER}@127.0.0.1:{address.port}/{DATABASE}"
        running.environment["TOCSIN_DATABASE_URL"] = url
        await running.tocsin("replicate", "t", "--source-url-from-replica", url)
        await source.execute("SELECT pg_create_physical_replication_slot($1, true)", STANDBY_SLOT)
        standby = await standby_of(running)
        standby._configuration |= {
            "primary_conninfo": f"host=127.0.0.1 port={running.source.port} user={USER} dbname={DATABASE}",
            "primary_slot_name": STANDBY_SLOT,
            "hot_standby_feedback": "on",
            "sync_replication_slots": "on",
            "wal_receiver_status_interval": "1s",
        }
        await standby.start()
        await source.execute(f"ALTER SYSTEM SET synchronized_standby_slots = '{STANDBY_SLOT}'")
        await source.execute("SELECT pg_reload_conf()")
        replica = await asyncpg.connect(running.replica_url)
        try:
            yield Moving(running, source, replica, standby, address)
        finally:
            replica.terminate()
            await standby.stop()


async def until_slot_is_on(standby: PostgresServer) -> None:
    connection = await asyncpg.connect(standby.url(DATABASE))
    try:
        async with asyncio.timeout(60):
            while not await connection.fetchval("SELECT bool_or(synced AND NOT temporary AND invalidation_reason IS NULL) FROM pg_replication_slots"):
                await asyncio.sleep(0.2)
    finally:
        await connection.close()


async def status(running: Pipeline) -> tuple[str, dict[str, Any]]:
    async with httpx.AsyncClient(trust_env=False) as client:
        report: dict[str, Any] = (await client.get(f"{running.check_url}/drift")).json()
    return report["status"], report


async def until_frame(socket: ClientConnection, frames: list[dict[str, Any]], wanted: Callable[[dict[str, Any]], bool]) -> None:
    async with asyncio.timeout(60):
        while not frames or not wanted(frames[-1]):
            frames.append(msgspec.json.decode(await socket.recv()))


def is_row(n: int) -> Callable[[dict[str, Any]], bool]:
    return lambda frame: frame["op"] == "event" and bool(frame["event"]["data"]["new"]["n"] == n)


@pytest.mark.slow
async def test_after_a_failover_the_replica_goes_on_from_its_slot_and_so_do_listener_checker_and_clients() -> None:
    """Nothing is copied anew; a client is told `epoch` once."""
    async with moving() as at:
        await at.source.execute("INSERT INTO t (n) SELECT generate_series(1, 50)")
        for service in ("listener", "check", "gateway"):
            await at.running.start(service, TOCSIN_SOURCE="shop", TOCSIN_CHECK_INTERVAL="1s")
        await until_slot_is_on(at.standby)
        async with connect(at.running.socket_url, compression=None) as socket:
            await socket.send('{"op": "subscribe", "id": "a", "subject": "pg.shop.change.>"}')
            frames: list[dict[str, Any]] = []
            await until_frame(socket, frames, lambda frame: frame["op"] == "subscribed")
            await at.source.execute("INSERT INTO t (n) SELECT generate_series(51, 100)")
            await until_frame(socket, frames, is_row(100))
            # What the standby has not got, nobody has.
            written = await at.source.fetchval("SELECT pg_current_wal_flush_lsn()")
            async with asyncio.timeout(60):
                while not await at.source.fetchval("SELECT replay_lsn >= $1::pg_lsn FROM pg_stat_replication WHERE application_name = 'walreceiver'", written):
                    await asyncio.sleep(0.05)
            promoted = await at.fail_over()
            await promoted.execute("INSERT INTO t (n) SELECT generate_series(101, 150)")
            wanted = {tuple(row) for row in await promoted.fetch("SELECT id, n FROM t")}
            async with asyncio.timeout(60):
                while await at.rows() != wanted:
                    await asyncio.sleep(0.2)
            await until_frame(socket, frames, lambda frame: frame["op"] == "subscribed" and not frame["recovered"])
            await promoted.execute("INSERT INTO t (n) VALUES (151)")
            await until_frame(socket, frames, is_row(151))
        told = [frame for frame in frames if frame["op"] == "subscribed"]
        assert [(frame["recovered"], frame.get("reason")) for frame in told] == [(True, None), (False, "epoch")]
        seen = [frame["event"]["data"]["new"]["n"] for frame in frames if frame["op"] == "event"]
        assert seen == sorted(set(seen)), "in order, and none twice; what lies about the change, the client reads from the table"
        lost, at.running.source = at.running.source, at.standby
        try:
            await assert_exactly_once(at.running)
            async with asyncio.timeout(60):
                while (await status(at.running))[0] != "in_sync":
                    await asyncio.sleep(0.2)
            _, report = await status(at.running)
            assert [finding["code"] for finding in report["replication"]["findings"] if finding["severity"] == "error"] == []
            assert await promoted.fetchval("SELECT count(*) FROM pg_replication_slots WHERE slot_type = 'logical' AND active") == 1
        finally:
            at.running.source = lost
            await promoted.close()
            for service in ("gateway", "check", "listener"):
                await at.running.stop(service)
