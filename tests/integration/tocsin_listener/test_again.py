"""Events once more: `tocsin retry` for what NATS refused, `tocsin replay` from the journal to another subject."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import UTC, datetime

import asyncpg
import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.errors import NotFoundError

from tests.integration.tocsin_listener.test_listener import ANNOUNCED, Start, messages, start
from tocsin.errors import OperatorError
from tocsin.event import EPOCH, decode_event
from tocsin.position import Position
from tocsin.settings import Settings
from tocsin_listener.quarantine import dismiss, refusals, retry
from tocsin_listener.replay import parse_since, replay
from tocsin_listener.watch import watch

__all__ = ["start"]

POISON = "x" * 4000
"""As a token of a subject it makes the control line longer than a server takes."""


async def poisoned(connection: asyncpg.Connection, key: int) -> None:
    """A row in the journal whose subject NATS can't take, among good ones, as no trigger of ours writes it."""
    await connection.execute(
        f"""INSERT INTO tocsin.journal (stmt, subject, type, key, data)
            SELECT nextval('tocsin.seq'), 'change.public.t.insert.{POISON}', 'public.t.insert', '{key}',
                   '{{"op":"insert","schema":"public","table":"t","key":{{"id":{key}}},"new":{{"id":{key}}}}}'"""
    )


async def announcement(nats: Client, settings: Settings) -> bytes:
    """The last event that announces a refusal; it comes with the batch behind."""
    async with asyncio.timeout(10):
        while True:
            with contextlib.suppress(NotFoundError):
                return (await nats.jetstream().get_last_msg(settings.stream_name, f"pg.{settings.source_name}{ANNOUNCED}")).data or b""
            await asyncio.sleep(0.02)


async def test_a_poisonous_event_is_set_aside_and_what_follows_goes_on(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    async with start() as settings:
        async with installed.transaction():
            await installed.execute("INSERT INTO t VALUES (1)")
            await poisoned(installed, 2)
            await installed.execute("INSERT INTO t VALUES (3)")
        found = await messages(nats, settings, 2)
        assert [decode_event(m.data).data["key"] for m in found] == [{"id": 1}, {"id": 3}]
        (refused,) = await refusals(installed)
        told = decode_event(await announcement(nats, settings))
        assert (told.type, told.data["sequence"], told.data["reason"]) == ("tocsin.quarantined", str(refused.seq), refused.reason)
        assert (refused.fate, "longer" in refused.reason) == ("waiting", True)
        # What it was refused for is mended: here, the subject.
        await installed.execute(f"UPDATE tocsin.quarantine SET subject = replace(subject, '.{POISON}', '')")
        assert [done.fate for done in await retry(installed)] == ["sent"]
        found = await messages(nats, settings, 3)
        event = decode_event(found[-1].data)
        assert event.data["key"] == {"id": 2}
        assert event.id != f"{event.id.rpartition('-')[0]}-{refused.seq}", "an id of its own"
        assert await refusals(installed) == []
        assert await retry(installed) == []


async def test_what_a_later_change_overtook_is_not_sent(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    async with start() as settings:
        await poisoned(installed, 7)
        await installed.execute("INSERT INTO t VALUES (7); DELETE FROM t")
        await messages(nats, settings, 2)
        assert [done.fate for done in await retry(installed)] == ["superseded"]
        assert [done.fate for done in await dismiss(installed, [0])] == [], "it is not of that number"
        assert [done.fate for done in await dismiss(installed)] == ["dismissed"]
        assert await refusals(installed) == []
        await installed.execute("UPDATE tocsin.quarantine SET retried = NULL")
        assert [done.fate for done in await retry(installed, force=True)] != ["superseded"]


async def test_replay_since_a_position_a_time_and_the_beginning(start: Start, installed: asyncpg.Connection, nats: Client) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    got: list[Msg] = []

    async def on_message(message: Msg) -> None:
        got.append(message)

    subject = "again." + datetime.now(UTC).strftime("%H%M%S%f")
    await nats.subscribe(subject, cb=on_message)
    await nats.flush()
    async with start() as settings:
        await installed.execute("INSERT INTO t SELECT generate_series(1, 10)")
        await messages(nats, settings, 10)
        between = datetime.now(UTC)
        await installed.execute("INSERT INTO t SELECT generate_series(11, 15)")
        found = await messages(nats, settings, 15)
        async with asyncio.timeout(10):
            while await installed.fetchval("SELECT stream FROM tocsin.identity") is None:
                await asyncio.sleep(0.02)

        async def replayed(since: datetime | Position) -> list[int]:
            got.clear()
            count = await replay(installed, nats, since=since, to=subject)
            async with asyncio.timeout(5):
                while len(got) < count:
                    await asyncio.sleep(0.01)
            return [decode_event(message.data).data["key"]["id"] for message in got]

        assert await replayed(parse_since("1h")) == list(range(1, 16))
        assert [message.data for message in got] == [message.data for message in found], "the very bytes of the stream"
        assert got[0].headers is not None
        assert got[0].headers["Tocsin-Subject"] == found[0].subject
        assert await replayed(between) == list(range(11, 16))
        assert found[3].headers is not None
        assert await replayed(Position(found[3].headers[EPOCH], found[3].metadata.sequence.stream)) == list(range(5, 16))
        with pytest.raises(OperatorError, match="earlier epoch"):
            await replayed(Position("zzzz", 1))
        with pytest.raises(OperatorError, match="the listener alone"):
            await replay(installed, nats, since=between, to=found[0].subject)
