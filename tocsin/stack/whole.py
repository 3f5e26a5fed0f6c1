"""Everything on one machine: starts each part as soon as what it needs is there, and proves that an event flows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import asyncpg

from tocsin import postgres
from tocsin.errors import OperatorError
from tocsin.stack import demo, ports, proof
from tocsin.stack.banner import banner
from tocsin.stack.plan import DATABASE, Plan
from tocsin.stack.supervisor import Say, Supervisor

# Parts stop from the highest rank to the lowest.
NATS, SOURCE, REPLICA, LISTENER, READERS, DEMO = range(6)
SETTING: Final = "TOCSIN_DATABASE_URL"


class Rooms(Protocol):
    """What the services offer to whoever sets them up; the command binds it, since this package knows no service."""

    async def install(self, connection: asyncpg.Connection) -> bool:
        """Create what Tocsin keeps in the source; whether it was new."""
        ...

    async def watch(self, connection: asyncpg.Connection, table: str, route: Sequence[str]) -> None:
        """Let a table ring."""
        ...

    async def replicate(self, source_url: str, replica_url: str, tables: Sequence[str]) -> None:
        """Replicate tables; returns once the initial copy is complete."""
        ...


@dataclass(slots=True)
class Whole:
    """`demo` is whether the demo shop's tables and traffic are wanted."""

    plan: Plan
    rooms: Rooms
    supervisor: Supervisor
    say: Say
    demo: bool

    async def bring_up(self) -> None:
        """Returns when everything runs and replicates; the line that begins with `ready` comes as soon as an event flows."""
        begin = time.perf_counter()
        left = await self.plan.end_leftovers()
        if left:
            self.say(f"ended what an earlier run left behind: {', '.join(left)}")
        ports.check(self.plan.listening)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._start_nats(), name="start nats")
            source = group.create_task(self._start_source(), name="start source")
            # On a small machine two initdb at a time would only hold up the first event; the rest waits for it.
            replica = group.create_task(self._start_replica(source), name="start replica")
            ready = group.create_task(self._prove(source, replica, begin), name="prove")
            group.create_task(self._start_demo(ready), name="start demo")
            group.create_task(self._follow(ready), name="replicate and check")

    async def _start_nats(self) -> None:
        if self.plan.nats is not None:
            await self.supervisor.start("nats", self.plan.nats, rank=NATS)
        elif not await ports.answers(self.plan.nats_url):
            self.say("waiting for NATS: nobody answers at what TOCSIN_NATS_URL names; is it the right address, and does nats-server run there?")
        await self.supervisor.start("gateway", self.plan.gateway, rank=READERS)

    async def _start_source(self) -> None:
        if self.plan.source is not None:
            await self.supervisor.start("source", self.plan.source, rank=SOURCE)
            await _create_database(self.plan.source.url())
        async with postgres.connection(self.plan.source_url, setting=SETTING, application="tocsin up") as connection:
            if self.demo:
                await demo.create_tables(connection)
            if await self.rooms.install(connection) and self.plan.source is None:
                self.say(f"installed the schema `tocsin` in {postgres.without_password(self.plan.source_url)}; `tocsin uninstall` removes it")
            if self.demo:
                for table in demo.TABLES:
                    await self.rooms.watch(connection, table, demo.ROUTES.get(table, ()))
        await self.supervisor.start("listener", self.plan.listener, rank=LISTENER)

    async def _start_replica(self, source: asyncio.Task[None]) -> None:
        await source
        if self.plan.replica is not None:
            await self.supervisor.start("replica", self.plan.replica, rank=REPLICA)
            await _create_database(self.plan.replica.url())

    async def _start_demo(self, ready: asyncio.Task[None]) -> None:
        await ready
        if self.demo:
            await self.supervisor.start("demo", self.plan.demo, rank=DEMO)

    async def _prove(self, source: asyncio.Task[None], replica: asyncio.Task[None], begin: float) -> None:
        await source
        if self.plan.needs_token:
            for url in (self.plan.listener_url, self.plan.gateway_url):
                await proof.until_ready(url)
            how = "the listener and the gateway say that events flow; the gateway asks for a token, so `up` has not looked as a client"
        else:
            seconds = await proof.first_event(self.plan.source_url, self.plan.gateway_url, self.plan.prefix, self.plan.source_name)
            how = f"an event went from a commit to a WebSocket client in {seconds * 1000:.0f} ms"
        await replica  # whoever reads `ready` may use every server that the banner names
        self.say(banner(self.plan, demo=self.demo))
        self.say(f"ready in {time.perf_counter() - begin:.1f} s: {how}")

    async def _follow(self, ready: asyncio.Task[None]) -> None:
        """Let the replica follow the demo's tables, and start the checker."""
        await ready
        tables = demo.TABLES if self.demo else ()
        if self.plan.replica is not None:
            if not await self._can_be_replicated():
                return
            if tables:
                await self.rooms.replicate(self.plan.source_url, self.plan.replica_url, tables)
        await self.supervisor.start("check", self.plan.checker, rank=READERS)
        await proof.until_answers(self.plan.check_url)
        if self.plan.replica is not None:
            what = f"{len(tables)} tables copied and following" if tables else "it follows nothing yet; tocsin replicate TABLE"
            self.say(f"replica: {what}; the report is {self.plan.check_url}/")

    async def _can_be_replicated(self) -> bool:
        """Whether the source writes what a replica needs; it says why not."""
        async with postgres.connection(self.plan.source_url, setting=SETTING, application="tocsin up") as connection:
            level = await connection.fetchval("SHOW wal_level")
        if level != "logical":
            self.say(
                f"the replica and the checker are left out: wal_level of {postgres.without_password(self.plan.source_url)} is {level!r},"
                " and logical replication needs 'logical'\n"
                "  fix: ALTER SYSTEM SET wal_level = 'logical'; then restart that server"
            )
            return False
        return True


async def _create_database(url: str) -> None:
    async with postgres.connection(url, setting="the embedded server", application="tocsin up") as connection:
        try:
            await connection.execute(f"CREATE DATABASE {DATABASE}")
        except asyncpg.DuplicateDatabaseError:
            return
        except asyncpg.PostgresError as error:
            raise OperatorError(f"the database {DATABASE} could not be made: {error}", "move the data folder away, and start again") from error
