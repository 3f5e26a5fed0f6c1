"""The leader's state in the source database: who the source is, how far its stream is, what is set aside.

All of it is read and written on the leader's own session: a process that lost the session can no longer change it.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import dataclass, replace
from typing import Final

import asyncpg

from tocsin.sql import load_queries
from tocsin_listener.leader import Lead

QUERIES: Final = load_queries("tocsin_listener", "sql/progress.sql")
ROWS_PER_LEAF: Final = 10_000
BEGINNING: Final = "3:3:"
"""The snapshot in which nothing is visible but what initdb made."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who writes which stream. `system` and `timeline` are PostgreSQL's; a new one of either begins a new incarnation."""

    incarnation: str
    system: str | None
    timeline: str | None
    source: str | None
    prefix: str | None
    stream: str | None
    stream_created: str | None
    epoch: str | None


@dataclass(frozen=True, slots=True)
class Cursor:
    """All that is visible in `reached` is in the stream. The batch from there to `intended`, if that is set, may be there in part;
    its first message has the sequence `stream_sequence` + 1.
    """

    reached: str
    intended: str | None
    stream_sequence: int


class Progress:
    """Reads and writes of the leader's session."""

    def __init__(self, lead: Lead) -> None:
        self._lead = lead
        self._number = 0

    async def identity(self) -> tuple[Identity, str, str]:
        """What is stored, the present system identifier and the present timeline."""
        (row,) = await self._lead.fetch(QUERIES["identity"])
        stored = Identity(
            row["incarnation"], row["system_identifier"], row["timeline"], row["source"], row["prefix"], row["stream"], row["stream_created"], row["epoch"]
        )
        return stored, row["present_system"], row["present_timeline"]

    async def identify(self, i: Identity) -> None:
        await self._lead.execute(QUERIES["identify"], i.incarnation, i.system, i.timeline, i.source, i.prefix, i.stream, i.stream_created, i.epoch)

    async def cursor(self) -> Cursor | None:
        """The last one stored; None before the first."""
        rows = await self._lead.fetch(QUERIES["progress"])
        if not rows:
            return None
        self._number = rows[0]["n"]
        return Cursor(rows[0]["reached"], rows[0]["intended"], rows[0]["stream_sequence"])

    async def cursor_at(self, stream_sequence: int) -> Cursor | None:
        """The last one stored whose batch begins at or before `stream_sequence`; old ones are forgotten."""
        rows = await self._lead.fetch(QUERIES["progress_at"], stream_sequence)
        return Cursor(rows[0]["reached"], rows[0]["intended"], rows[0]["stream_sequence"]) if rows else None

    async def store(self, cursor: Cursor) -> None:
        """Durable at return. Rows are only inserted; a table of them is emptied when its turn comes again."""
        self._number += 1
        if self._number % ROWS_PER_LEAF == 0:
            await self._empty(f"tocsin.progress_{self._number // ROWS_PER_LEAF % 2}")
        await self._lead.execute(QUERIES["store"], self._number, cursor.reached, cursor.intended, cursor.stream_sequence)

    async def _empty(self, leaf: str) -> None:
        """Not while somebody reads it, such as a pg_dump of hours: then it grows until its next turn."""
        with contextlib.suppress(asyncpg.LockNotAvailableError):
            await self._lead.execute(f"LOCK TABLE {leaf} IN ACCESS EXCLUSIVE MODE NOWAIT; TRUNCATE {leaf}")

    async def quarantined(self) -> set[tuple[int, bool]]:
        return {(row["seq"], row["copy"]) for row in await self._lead.fetch(QUERIES["quarantined"])}

    async def quarantine(self, seq: int, copy: bool, subject: str, reason: str, body: bytes) -> None:
        """Durable, and announced by an event, at return."""
        await self._lead.execute(QUERIES["quarantine"], seq, copy, subject, reason, body)


def reborn(identity: Identity) -> Identity:
    """The same with a new incarnation: sequences may repeat what other rows had."""
    return replace(identity, incarnation=secrets.token_hex(6))
