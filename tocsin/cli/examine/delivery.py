"""The source and NATS together: is the stream this source's alone, and do the clocks agree."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Final

import asyncpg
from nats.aio.client import Client

from tocsin import postgres
from tocsin.broker import JetStreamError, api, stream_state
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.cli.examine.nats_session import UNREACHABLE, nats_session
from tocsin.errors import OperatorError, Unavailable
from tocsin.settings import Settings

PART: Final = "delivery"
MOST_SKEW: Final = timedelta(seconds=2)

_IDENTITY: Final = (
    "SELECT source, stream, stream_created, epoch, system_identifier, (SELECT system_identifier::text FROM pg_control_system()) AS present FROM tocsin.identity"
)


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Nothing where either of the two can't be asked: their own findings say why. `settings` names both."""
    if settings.database_url is None:
        return
    with contextlib.suppress(OperatorError, Unavailable, JetStreamError, *UNREACHABLE, asyncpg.PostgresError):
        async with contextlib.AsyncExitStack() as stack:
            connection = await stack.enter_async_context(
                postgres.connection(settings.database_url, setting="TOCSIN_DATABASE_URL", application="tocsin doctor delivery")
            )
            client = await stack.enter_async_context(nats_session(settings, "tocsin doctor"))
            async for finding in _clocks(connection, client, settings):
                yield finding
            async for finding in _ownership(connection, client, settings):
                yield finding


async def _ownership(connection: asyncpg.Connection, client: Client, settings: Settings) -> AsyncIterator[Finding]:
    identity = await connection.fetchrow(_IDENTITY)
    state = await stream_state(client, settings.stream_name)
    if identity is None or identity["epoch"] is None or state is None:
        return
    name = settings.stream_name
    fix = "give each system a stream of its own: TOCSIN_STREAM and TOCSIN_SOURCE, other ones in each; then restart the listeners"
    if identity["stream"] != name:
        text = f"this source writes the stream {identity['stream']}, but the settings name {name}"
        yield bad(PART, text, f"set TOCSIN_STREAM={identity['stream']} here, or restart the listener with these settings")
    elif state.epoch != identity["epoch"] or state.created != identity["stream_created"]:
        yield bad(
            PART,
            f"the stream {name} has the epoch {state.epoch}, this source's listener {identity['epoch']}: another system writes it too, or it was made anew",
            fix,
        )
    elif identity["system_identifier"] not in (None, identity["present"]):
        text = f"this database is a copy, from a backup or a clone, of one that writes the stream {name}; a listener here would take the stream from it"
        yield bad(PART, text, f"where the other one lives on, {fix}; else start the listener here")
    else:
        yield good(PART, f"the stream {name} is this source's alone, epoch {state.epoch}")


async def _clocks(connection: asyncpg.Connection, client: Client, settings: Settings) -> AsyncIterator[Finding]:
    before = datetime.now(UTC)
    there = await connection.fetchval("SELECT clock_timestamp()")
    yield clock("the source's", there, before, datetime.now(UTC))
    before = datetime.now(UTC)
    answer = await api(client, f"STREAM.INFO.{settings.stream_name}")
    if "ts" in answer:
        yield clock("NATS's", datetime.fromisoformat(answer["ts"]), before, datetime.now(UTC))


def clock(whose: str, there: datetime, before: datetime, after: datetime) -> Finding:
    """A clock read `there` at some moment between `before` and `after` here."""
    ahead = max(there - after, timedelta()) - max(before - there, timedelta())
    if abs(ahead) <= MOST_SKEW:
        return good(PART, f"{whose} clock agrees with this machine's")
    direction = "ahead of" if ahead > timedelta() else "behind"
    text = f"{whose} clock is {abs(ahead).total_seconds():.1f} s {direction} this machine's: times and ages in events and metrics are wrong by that"
    return bad(PART, text, "timedatectl set-ntp true   # on the machine whose clock is wrong, or run chrony there")
