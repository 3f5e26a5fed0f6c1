"""The table that a validation makes: its changes, the events that must follow from them, and a drift to plant and to mend."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg

from tocsin.settings import Settings
from tocsin.subject import change_subject, encode_token

PREFIX: Final = "tocsin_validate_"
NAME: Final = re.compile(PREFIX + "[0-9a-f]{10}")
_COMMENT: Final = "made by tocsin validate, which removes it"


@dataclass(frozen=True, slots=True)
class Change:
    """A statement and the events it must cause: (op, key, the new row's note or None)."""

    what: str
    sql: str
    events: tuple[tuple[str, int, str | None], ...]


CHANGES: Final = (
    Change("insert", "INSERT INTO {table} (id, note) VALUES (1, 'one')", (("insert", 1, "one"),)),
    Change("update", "UPDATE {table} SET note = 'changed' WHERE id = 1", (("update", 1, "changed"),)),
    Change(
        "insert of 5 rows at once",
        "INSERT INTO {table} (id, note) SELECT n, 'row ' || n FROM generate_series(2, 6) AS n ORDER BY n",
        tuple(("insert", n, f"row {n}") for n in range(2, 7)),
    ),
    Change(
        "update of 3 rows at once",
        "UPDATE {table} SET note = note || '!', amount = 0.1 WHERE id BETWEEN 2 AND 4",
        tuple(("update", n, f"row {n}!") for n in range(2, 5)),
    ),
    Change("delete", "DELETE FROM {table} WHERE id = 5", (("delete", 5, None),)),
)
"""In this order; each is a transaction of its own."""

ROLLED_BACK: Final = "INSERT INTO {table} (id, note) VALUES (99, 'never')"
AFTER: Final = Change("a transaction rolled back, then one committed", "UPDATE {table} SET note = 'last' WHERE id = 6", (("update", 6, "last"),))
ROWS: Final = 5

_PLANT: Final = (
    "UPDATE {table} SET note = 'planted' WHERE id = 2",
    "DELETE FROM {table} WHERE id = 3",
    "INSERT INTO {table} (id, note) VALUES (1000, 'planted')",
)
PLANTED: Final = {2: "different", 3: "missing", 1000: "extra"}


@dataclass(slots=True)
class Trial:
    """One validation's table. `made_replication` says that there was no replication before."""

    schema: str
    name: str = field(default_factory=lambda: PREFIX + secrets.token_hex(5))
    made_replication: bool = False

    @property
    def sql(self) -> str:
        return f'"{self.schema.replace(chr(34), chr(34) * 2)}".{self.name}'

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    def subjects(self, settings: Settings) -> list[str]:
        """Its changes, and what the checker finds about it."""
        root = f"{settings.subject_prefix}.{encode_token(settings.source_name)}"
        changes = change_subject(settings.subject_prefix, settings.source_name, self.schema, self.name, ">")
        return [changes, f"{root}.drift.{encode_token(self.schema)}.{self.name}"]

    async def claim(self, source: asyncpg.Connection) -> bool:
        """Whether nobody else is at work with this table; the claim ends with the session."""
        return bool(await source.fetchval("SELECT pg_try_advisory_lock(hashtextextended($1, 0))", str(self)))

    async def create(self, source: asyncpg.Connection) -> None:
        async with source.transaction():
            await source.execute(f"CREATE TABLE {self.sql} (id int PRIMARY KEY, note text, amount numeric(12, 2), at timestamptz NOT NULL DEFAULT now())")
            await self.remember(source)

    async def remember(self, source: asyncpg.Connection) -> None:
        """Write down what a later run has to remove, should this one be killed."""
        await source.execute(f"COMMENT ON TABLE {self.sql} IS '{_COMMENT}{'; the replication, too' if self.made_replication else ''}'")

    async def rows(self, side: asyncpg.Connection) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in await side.fetch(f"SELECT id, note, amount, at FROM {self.sql} ORDER BY id")]

    async def plant(self, replica: asyncpg.Connection) -> None:
        """A row that differs, one that is missing, one too many: on the replica alone."""
        async with replica.transaction():
            for statement in _PLANT:
                await replica.execute(statement.format(table=self.sql))


async def abandoned(source: asyncpg.Connection) -> list[Trial]:
    """Tables that runs made which were killed; each is claimed."""
    rows = await source.fetch(
        """SELECT n.nspname, c.relname, obj_description(c.oid, 'pg_class') AS said FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
           WHERE c.relkind = 'r' AND starts_with(c.relname, $1) AND starts_with(obj_description(c.oid, 'pg_class'), $2)""",
        PREFIX,
        _COMMENT,
    )
    found = [Trial(row["nspname"], row["relname"], made_replication=row["said"] != _COMMENT) for row in rows if NAME.fullmatch(row["relname"])]
    return [trial for trial in found if await trial.claim(source)]
