"""Bad weather for a replicated pair: writers, transactions that stay open, appliers and commits that stall, servers that die and come back.

It blows on the tables hot, words, bag and wide, which the caller makes; keys from PLANTED on are left alone, but for the row TOUCHED of wide.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import asyncpg

from tocsin import postgres
from tocsin.stack.postgres_server import PostgresServer

HOT = 200
PLANTED = 1_000_000
"""Keys from here on hold still on the source; below, writers are at work."""
TOUCHED = PLANTED + 5
"""A row of wide whose number changes every half second or so, and whose toasted value never does."""

Work = Callable[[], Awaitable[None]]


@dataclass
class Tally:
    """How often each kind of stall came so far."""

    stalls: dict[str, int] = field(default_factory=dict)

    def stalled(self, what: str) -> None:
        self.stalls[what] = self.stalls.get(what, 0) + 1


class Weather:
    """Over a source and a replica. `calm` is held by whoever needs servers that stay up."""

    def __init__(self, source: PostgresServer, replica: PostgresServer, tally: Tally, *, restart_after: float = 20.0) -> None:
        self._source = source
        self._replica = replica
        self._tally = tally
        self._restart_after = restart_after
        self._stop = asyncio.Event()
        self._numbers = itertools.count(1)
        self.calm = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def blowing(self) -> AsyncIterator[None]:
        async with asyncio.TaskGroup() as group:
            for seed in range(4):
                group.create_task(self._lasting(lambda seed=seed: self._write(seed)))  # type: ignore[misc]
            for work in (self._touch, self._keep_open, self._stall_apply, self._stall_commits):
                group.create_task(self._lasting(work))
            group.create_task(self._restart())
            try:
                yield
            finally:
                self._stop.set()

    async def _lasting(self, work: Work) -> None:
        """Until the end, with a new connection after each loss."""
        while not self._stop.is_set():
            with contextlib.suppress(*postgres.TRANSIENT):
                await work()
            await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def _on(self, server: PostgresServer) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(server.url(), timeout=5)
        try:
            yield connection
        finally:
            await postgres.close(connection)

    async def _write(self, seed: int) -> None:
        chance = random.Random(seed + 10 * next(self._numbers))
        statements = (
            "INSERT INTO hot VALUES ($1, $2, 1.0) ON CONFLICT (id) DO UPDATE SET v = $2",
            "UPDATE hot SET v = $2, w = w + 1 WHERE id = $1",
            "WITH gone AS (DELETE FROM hot WHERE id = $1 RETURNING 1) SELECT count(*), $2::text FROM gone",
            "UPDATE words SET n = n + 1000, b = 'b' || ($1::bigint % 3) WHERE a = md5(($1::bigint)::text) AND $2 <> ''",
            "WITH gone AS (DELETE FROM bag WHERE v = ($1::bigint) AND $2 <> '' RETURNING *) INSERT INTO bag SELECT v, w FROM gone",
            "INSERT INTO bag SELECT ($1::bigint) % 40 + 1, $2 WHERE (SELECT count(*) FROM bag) < 200",
            "UPDATE wide SET n = n + length($2) WHERE id = ($1::bigint) % 20",
            "UPDATE wide SET big = repeat(md5($2), 90), n = n + 1 WHERE id = ($1::bigint) % 20",
        )
        async with self._on(self._source) as connection:
            while not self._stop.is_set():
                transaction = connection.transaction()
                await transaction.start()
                try:
                    for _ in range(chance.choice((1, 1, 1, 3, 10))):
                        await connection.execute(chance.choice(statements), chance.randrange(HOT), str(chance.randrange(3)))
                        if chance.random() < 0.02:
                            await asyncio.sleep(chance.random() * 0.2)
                except (asyncpg.DeadlockDetectedError, asyncpg.UniqueViolationError):
                    await transaction.rollback()
                else:
                    await (transaction.rollback() if chance.random() < 0.1 else transaction.commit())
                await asyncio.sleep(chance.random() * 0.005)

    async def _touch(self) -> None:
        async with self._on(self._source) as connection:
            while not self._stop.is_set():
                await connection.execute("UPDATE wide SET n = n + 1 WHERE id = $1", TOUCHED)
                await asyncio.sleep(0.5)

    async def _keep_open(self) -> None:
        """Transactions that stay open for seconds, and prepared ones that nobody's session holds."""
        chance = random.Random(next(self._numbers))
        async with self._on(self._source) as connection:
            await self._end_prepared(connection)
            while not self._stop.is_set():
                number, key = next(self._numbers), chance.randrange(HOT)
                if chance.random() < 0.5:
                    async with connection.transaction():
                        await connection.execute("UPDATE hot SET v = 'long' WHERE id = $1", key)
                        await asyncio.sleep(chance.random() * 2)
                    self._tally.stalled("long")
                else:
                    await connection.execute("BEGIN")
                    await connection.execute("UPDATE hot SET v = 'prepared' WHERE id = $1", key)
                    await connection.execute(f"PREPARE TRANSACTION 'weather{number}'")
                    await asyncio.sleep(chance.random())
                    await connection.execute(f"{'COMMIT' if chance.random() < 0.7 else 'ROLLBACK'} PREPARED 'weather{number}'")
                    self._tally.stalled("prepared")
                await asyncio.sleep(chance.random())
            await self._end_prepared(connection)

    async def _end_prepared(self, connection: asyncpg.Connection) -> None:
        for row in await connection.fetch("SELECT gid FROM pg_prepared_xacts"):
            await connection.execute(f"ROLLBACK PREPARED '{row['gid']}'")

    async def _stall_apply(self) -> None:
        chance = random.Random(next(self._numbers))
        async with self._on(self._replica) as connection:
            while not self._stop.is_set():
                async with connection.transaction():
                    await connection.execute(f"LOCK TABLE {chance.choice(('hot', 'words', 'bag', 'wide'))} IN SHARE ROW EXCLUSIVE MODE")
                    await asyncio.sleep(chance.random() * 0.5)
                self._tally.stalled("apply")
                await asyncio.sleep(chance.random())

    async def _stall_commits(self) -> None:
        """Synchronous replication to nobody: commits are in the WAL and applied, and not visible on the source."""
        chance = random.Random(next(self._numbers))
        async with self._on(self._source) as connection:
            await self._synchronous(connection, "RESET synchronous_standby_names")
            while not self._stop.is_set():
                await asyncio.sleep(chance.random() * 3)
                await self._synchronous(connection, "SET synchronous_standby_names = 'nobody'")
                await asyncio.sleep(chance.random() * 1.5)
                await self._synchronous(connection, "RESET synchronous_standby_names")
                self._tally.stalled("synchronous")

    async def _synchronous(self, connection: asyncpg.Connection, change: str) -> None:
        await connection.execute(f"ALTER SYSTEM {change}")
        await connection.execute("SELECT pg_reload_conf()")

    async def _restart(self) -> None:
        """Each server in turn, by kill -9 and by a shutdown."""
        for kind, server in itertools.cycle(itertools.product(("killed", "stopped"), (self._replica, self._source))):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._restart_after):
                    await self._stop.wait()
            if self._stop.is_set():
                return
            async with self.calm:
                await (server.kill() if kind == "killed" else server.stop())
                await server.start()
                self._tally.stalled(f"{'source' if server is self._source else 'replica'} {kind}")
