"""The database is set back: its cursor is of an earlier moment than the stream's end."""

from __future__ import annotations

import asyncpg
import pytest
from nats.aio.client import Client

from tests.integration.tocsin_listener.test_listener import listening, messages
from tests.support.servers import Server
from tocsin.event import decode_event
from tocsin_listener.watch import watch


@pytest.mark.parametrize("sent", [1, 30, 700])
async def test_what_the_stream_has_of_the_batch_under_way_does_not_come_again(
    installed: asyncpg.Connection, source_url: str, nats: Client, nats_server: Server, sent: int
) -> None:
    """As after a restore of a backup that was made while the batch was under way; a later batch is in the stream, and no more in the database."""
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(installed, ["t"])
    await installed.execute("INSERT INTO t SELECT generate_series(1, $1)", sent)
    async with listening(source_url, nats_server) as settings:
        await messages(nats, settings, sent)
        known = await installed.fetchval("SELECT max(seq) FROM tocsin.journal")
        await installed.execute("INSERT INTO t VALUES (-1)")
        before = {decode_event(message.data).id for message in await messages(nats, settings, sent + 1)}
    await installed.execute("DELETE FROM tocsin.journal WHERE seq > $1", known)
    under_way = await installed.fetchval("SELECT min(n) FROM tocsin.progress WHERE intended IS NOT NULL")
    await installed.execute("DELETE FROM tocsin.progress WHERE n > $1", under_way)
    await installed.execute("INSERT INTO t VALUES (-2)")
    async with listening(source_url, nats_server) as settings:
        events = [decode_event(message.data) for message in await messages(nats, settings, sent + 2)]
    assert len({event.id for event in events}) == sent + 2
    assert [event.data["new"]["id"] for event in events if event.id not in before] == [-2]
