"""Events once more from the journal, to a subject outside the source's own: for a consumer that has to catch up or start afresh."""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Final

import asyncpg
from nats.aio.client import Client

from tocsin.broker import STREAM_NOT_FOUND, JetStreamError, stored_message
from tocsin.duration import parse_duration
from tocsin.errors import OperatorError
from tocsin.event import BATCH, MSG_ID, SNAPSHOTS
from tocsin.position import Position, PositionError
from tocsin.subject import encode_token
from tocsin_listener import wire
from tocsin_listener.install import require_installed
from tocsin_listener.journal import QUERIES, SESSION, Difference, Journal, Row
from tocsin_listener.message import CANARY, Message
from tocsin_listener.progress import BEGINNING

SUBJECT: Final = "Tocsin-Subject"
"""Header: the subject under which the event stands in the stream."""


async def replay(
    connection: asyncpg.Connection, client: Client, *, since: datetime | Position, to: str, on_progress: Callable[[int], None] = lambda _: None
) -> int:
    """Publish every event of the journal since a time or a position to `to`, in the order of each key; how many there were.

    What was committed after the begin is left to the stream. Messages have the stream's own Nats-Msg-Id without its epoch.
    Raises OperatorError for a subject that can't be taken, or for a position that the journal no longer reaches.
    """
    await require_installed(connection)
    identity = await connection.fetchrow("SELECT incarnation, prefix, source, stream, epoch FROM tocsin.identity")
    assert identity is not None
    if identity["source"] is None:
        raise OperatorError("nothing was published yet from this source", "start the listener once: tocsin listener")
    root = f"{identity['prefix']}.{encode_token(identity['source'])}."
    if reason := wire.unfit(to) or (f"{root}* belongs to the listener alone" if to.startswith(root) else None):
        raise OperatorError(f"--to {to!r}: {reason}", "name another subject, such as replay.orders", exit_code=2)
    await connection.execute(SESSION)
    journal = Journal(connection, connection, incarnation=identity["incarnation"], source=encode_token(identity["source"]))
    sent = 0
    async for rows in _since(journal, connection, client, identity, since):
        frames = []
        for row in rows:
            if row.subject != CANARY:
                headers = f"{MSG_ID}: {identity['incarnation']}-{row.seq}\r\n{SUBJECT}: {root}{row.subject}\r\n"
                frames.append(wire.frame(Message(row.seq, False, to, row.message, headers, 0.0, 0.0)))
        await wire.write(client, frames)
        await client.flush()
        sent += len(frames)
        on_progress(sent)
    return sent


async def _since(
    journal: Journal, connection: asyncpg.Connection, client: Client, identity: asyncpg.Record, since: datetime | Position
) -> AsyncIterator[list[Row]]:
    now = await connection.fetchval(QUERIES["now"])
    if isinstance(since, datetime):
        asked = time.monotonic()
        age = (datetime.now(UTC) - since).total_seconds()
        async for rows in journal.pages(Difference(BEGINNING, now, None)):
            yield [row for row in rows if row.age <= age + time.monotonic() - asked]
        return
    reached, intended, skip = await _place(client, identity, since)
    async for rows in journal.pages(Difference(reached, intended, None)):
        kept = []
        for row in rows:
            # A message under an old route has a place of its own in the batch; it is not replayed.
            size = 1 if row.old_subject is None else 2
            if skip <= 0:
                kept.append(row)
            skip -= size
        yield kept
    async for rows in journal.pages(Difference(intended, now, None)):
        yield rows


async def _place(client: Client, identity: asyncpg.Record, since: Position) -> tuple[str, str, int]:
    """The batch in which the position stands: its snapshots, and how many of its messages are at or before the position."""
    fix = "give a time instead, such as --since 24h"
    if since.epoch != identity["epoch"]:
        raise OperatorError(f"the position {since} is of an earlier epoch: the stream is another one now", fix)
    headers = await _headers(client, identity["stream"], since.sequence)
    index = int(headers.get(BATCH, ";-1").partition(";")[2])
    first = await _headers(client, identity["stream"], since.sequence - index) if index >= 0 else {}
    if SNAPSHOTS not in first:
        raise OperatorError(f"the stream no longer has the batch of the position {since}", fix)
    reached, intended = first[SNAPSHOTS].split(";")
    return reached, intended, index + 1


async def _headers(client: Client, stream: str, sequence: int) -> dict[str, str]:
    try:
        message = await stored_message(client, stream, seq=sequence)
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return {}
        raise
    return {} if message is None else message.headers


def parse_since(text: str) -> datetime | Position:
    """A position, a duration back from now such as 24h, or a time in ISO 8601 (local where it names no zone). Raises OperatorError."""
    with contextlib.suppress(ValueError):
        return datetime.now(UTC) - parse_duration(text)
    with contextlib.suppress(ValueError):
        return datetime.fromisoformat(text).astimezone(UTC)
    try:
        return Position.parse(text)
    except PositionError as error:
        raise OperatorError(
            f"--since {text[:64]!r} is neither a time nor a position", "write it as 24h, as 2026-11-22T20:15:00Z, or as k3v9q2m7xa-1042", exit_code=2
        ) from error
