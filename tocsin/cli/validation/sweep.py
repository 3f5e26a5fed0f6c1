"""Takes away what a validation made, from both databases, in an order that never breaks the replication of other tables."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import asyncpg

from tocsin import postgres
from tocsin.cli.validation.trial import NAME, Trial
from tocsin.errors import OperatorError, Unavailable
from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import NAME as REPLICATION
from tocsin_check.replication.unreplicate import unreplicate
from tocsin_listener.watch import unwatch

_TROUBLE: Final = (OperatorError, Unavailable, asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError)


@dataclass(slots=True)
class Sweep:
    """`left` names what could not be removed and how to remove it; `patience` is in seconds, for each side."""

    source_url: str
    replica_url: str | None
    patience: float
    left: list[str] = field(default_factory=list)

    async def remove(self, trial: Trial) -> None:
        """Everything of one trial. Raises nothing that a server may cause: it is in `left`."""
        if self.replica_url is not None:
            if trial.made_replication:
                await self._remove_replication(trial, self.replica_url)
            else:
                await self._leave_replication(trial, self.replica_url)
        await self._drop_source(trial)

    async def _drop_source(self, trial: Trial) -> None:
        by_hand = f"the table {trial} on the source: DROP TABLE {trial.sql};"
        try:
            async with asyncio.timeout(self.patience), postgres.connection(self.source_url, setting="TOCSIN_DATABASE_URL", application="tocsin") as source:
                if await source.fetchval("SELECT to_regclass($1) IS NULL", trial.sql):
                    return
                if await source.fetchval("SELECT EXISTS (SELECT FROM tocsin.watched WHERE relation = to_regclass($1))", trial.sql):
                    await unwatch(source, [str(trial)])
                await source.execute(f"SET lock_timeout = '5s'; DROP TABLE IF EXISTS {trial.sql}")
        except _TROUBLE as error:
            self.left.append(f"{by_hand}   -- {_said(error)}")

    async def _remove_replication(self, trial: Trial, replica_url: str) -> None:
        """There was none before."""
        try:
            async with asyncio.timeout(self.patience + 20):
                dropped = await unreplicate(source_url=self.source_url, replica_url=replica_url, with_data=True)
                self.left += dropped.left
                await _drop(replica_url, trial)
        except _TROUBLE as error:
            self.left.append(f"the replication of {trial} alone: tocsin replicate --drop --with-data   -- {_said(error)}")

    async def _leave_replication(self, trial: Trial, replica_url: str) -> None:
        """The other tables go on. A table that the replica still has to write to must not be dropped there: its worker would fail on it."""
        try:
            async with asyncio.timeout(2 * self.patience):
                await self._unpublish(trial, replica_url)
        except Lagging as lagging:
            self.left.append(
                f"the table {trial} on the replica, which lags ({lagging}): the next tocsin validate removes it, or, once it follows: DROP TABLE {trial.sql};"
            )
        except _TROUBLE as error:
            self.left.append(
                f"the table {trial} on the replica: the next tocsin validate removes it, or, once it follows: DROP TABLE {trial.sql};   -- {_said(error)}"
            )

    async def _unpublish(self, trial: Trial, replica_url: str) -> None:
        async with postgres.connection(self.source_url, setting="TOCSIN_DATABASE_URL", application="tocsin") as source:
            published = await source.fetchval(
                "SELECT EXISTS (SELECT FROM pg_publication_tables WHERE pubname = $1 AND schemaname = $2 AND tablename = $3)",
                REPLICATION,
                trial.schema,
                trial.name,
            )
            if published:
                await source.execute(f"ALTER PUBLICATION {REPLICATION} DROP TABLE {trial.sql}")
        async with postgres.connection(replica_url, setting="TOCSIN_REPLICA_URL", application="tocsin") as replica:
            if await replica.fetchval("SELECT to_regclass($1) IS NULL", trial.sql):
                return
            if await replica.fetchval("SELECT EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = to_regclass($1))", trial.sql):
                await replica.execute(f"ALTER SUBSCRIPTION {REPLICATION} REFRESH PUBLICATION")
        async with open_sides(self.source_url, replica_url) as sides:
            await sides.fence.arrived(await sides.fence.mark(), self.patience)
        await _drop(replica_url, trial)

    async def orphans(self, replica_url: str) -> None:
        """Tables of earlier runs that only the replica still has, because it lagged then."""
        async with postgres.connection(replica_url, setting="TOCSIN_REPLICA_URL", application="tocsin") as replica:
            rows = await replica.fetch("SELECT n.nspname, c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relkind = 'r'")
        found = [Trial(row["nspname"], row["relname"]) for row in rows if NAME.fullmatch(row["relname"])]
        if not found:
            return
        async with postgres.connection(self.source_url, setting="TOCSIN_DATABASE_URL", application="tocsin") as source:
            gone = [trial for trial in found if await trial.claim(source) and await source.fetchval("SELECT to_regclass($1) IS NULL", trial.sql)]
            for trial in gone:
                await self._leave_replication(trial, replica_url)


async def _drop(replica_url: str, trial: Trial) -> None:
    async with postgres.connection(replica_url, setting="TOCSIN_REPLICA_URL", application="tocsin") as replica:
        await replica.execute(f"SET lock_timeout = '5s'; SET client_min_messages = warning; DROP TABLE IF EXISTS {trial.sql}")


def _said(error: BaseException) -> str:
    return str(error) or type(error).__name__
