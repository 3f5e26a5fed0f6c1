"""`tocsin why`: each stage at which an event may be, made for real, from the writer to whoever may see it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import jwt
import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.integration.tocsin_listener.test_again import poisoned
from tests.integration.tocsin_listener.test_listener import Start, messages, start
from tests.support.gateway import running_gateway
from tests.support.servers import Server
from tocsin.cli.examine.finding import Finding
from tocsin.cli.why import answer
from tocsin.errors import OperatorError
from tocsin.settings import Settings, load_settings
from tocsin.stack.process import free_port
from tocsin_listener.watch import watch

__all__ = ["start"]

NOBODY = f"ws://127.0.0.1:{free_port()}/ws"


@dataclass(slots=True)
class Asking:
    """`tocsin why` of one source, without a process of its own; the gateway's finding, the last, is left out unless it is asked for."""

    connection: asyncpg.Connection
    settings: Settings

    async def all(self, what: str, key: str | None = None, *, gateway: str = NOBODY, token: str | None = None) -> list[Finding]:
        found = [finding async for finding in answer(self.connection, self.settings, what, key, gateway, token)]
        return [f for f in found if "the gateway does not answer" not in f.text]

    async def last(self, what: str, key: str | None = None) -> Finding:
        return (await self.all(what, key))[-1]


@pytest_asyncio.fixture
async def asking(installed: asyncpg.Connection, source_url: str, nats_server: Server) -> AsyncIterator[Asking]:
    yield Asking(installed, load_settings(database_url=source_url, nats_url=nats_server.url))


async def test_every_stage_of_a_tables_way_is_named_with_its_fix(start: Start, asking: Asking, source_url: str, nats: Client) -> None:
    source = asking.connection
    assert "no table" in (await asking.last("t")).text
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    assert (await asking.last("t")).fix == "tocsin watch t"
    await watch(source, ["t"])
    assert "no event" in (await asking.last("t")).text
    await source.execute("ALTER TABLE t DISABLE TRIGGER tocsin_1_insert")
    assert any("don't fire: insert" in f.text and "ENABLE TRIGGER" in str(f.fix) for f in await asking.all("t"))
    await source.execute("ALTER TABLE t ENABLE TRIGGER tocsin_1_insert")
    writer = await asyncpg.connect(source_url)
    pid = await writer.fetchval("SELECT pg_backend_pid()")
    await writer.execute("BEGIN; INSERT INTO t VALUES (1)")
    assert any(f"pid {pid}" in finding.text and not finding.ok for finding in await asking.all("t"))
    await writer.execute("COMMIT")
    await writer.close()
    assert (await asking.last("t")).fix == "tocsin listener"
    async with start() as settings:
        (message,) = await messages(nats, settings, 1)
        sent = await asking.all("t", "1")
        assert all(finding.ok for finding in sent), sent
        assert any("given to the stream" in finding.text for finding in sent)
        epoch = (message.headers or {})["Tocsin-Epoch"]
        assert f"at the position {epoch}-{message.metadata.sequence.stream}, under {message.subject}" in sent[-1].text
        assert "no event" in (await asking.last("t", "2")).text
        await source.execute("INSERT INTO t VALUES (5)")
        await messages(nats, settings, 2)
        assert "has a later one" in (await asking.last("t", "1")).text
        await nats.jetstream().purge_stream(settings.stream_name)
        gone = await asking.last("t", "1")
        assert ("aged out, or was purged" in gone.text, "tocsin replay" in str(gone.fix)) == (True, True)


async def test_what_nats_refused_is_named_with_its_sequence(start: Start, asking: Asking, nats: Client) -> None:
    await asking.connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(asking.connection, ["t"])
    async with start() as settings:
        async with asking.connection.transaction():
            await poisoned(asking.connection, 7)
            await asking.connection.execute("INSERT INTO t VALUES (1)")
        await messages(nats, settings, 1)
        seq = await asking.connection.fetchval("SELECT seq FROM tocsin.quarantine")
        assert str((await asking.last("t", "7")).fix).endswith(f"tocsin retry {seq}")


NOTHING = (
    ("change.public.t.insert", "0 tokens behind the operation, the table's subjects 1 more: customer", "change.public.t.insert.*"),
    ("change.public.t.*.7.8", "2 tokens behind the operation", "change.public.t.*.7"),
    ("change.public.t.update.>", "update is not watched, only insert", "--ops insert,update"),
    ("change.public.t.inserted.>", "inserted is no operation", "insert, update"),
    ("change.public.other.>", "is not watched", "tocsin watch"),
    ("change.public.missing.>", "there is no table", "sales.orders"),
    ("change.nowhere.>", "no watched table has such subjects", "tocsin watched"),
    ("change.public", "too short", "change.public.orders.*"),
    ("changes.public.t.>", "changes is no kind of event", "change, event"),
    ("event.order.paid", "the journal has no event", "tocsin.emit"),
    ("notify.unheard", "unheard is not carried", "TOCSIN_CHANNELS=unheard"),
)


async def test_a_subject_that_brings_nothing_says_why(asking: Asking) -> None:
    await asking.connection.execute("CREATE TABLE t (id int PRIMARY KEY, customer int); CREATE TABLE other (id int)")
    await watch(asking.connection, ["t"], ops=["insert"], route=["customer"])
    for tail, words, fix in NOTHING:
        found = [f for f in await asking.all(f"pg.{asking.settings.source_name}.{tail}") if not f.ok]
        assert any(words in f.text and fix in str(f.fix) for f in found), (tail, found)


async def test_a_subject_of_another_source_and_one_that_is_none(asking: Asking) -> None:
    assert "not of this source" in (await asking.last("pg.elsewhere.change.public.t.>")).text
    assert "ephemeral" in (await asking.last(f"pg.{asking.settings.source_name}.live.room")).text
    with pytest.raises(OperatorError, match="empty token"):
        await asking.all("pg..t")


async def test_subjects_that_bring_events_and_where_these_stand(start: Start, asking: Asking, nats: Client) -> None:
    source, name = asking.connection, asking.settings.source_name
    await source.execute("""CREATE TABLE "a.b t" (id int PRIMARY KEY, customer text)""")
    await watch(source, ["a.b t"], route=["customer"])
    async with start(channels="heard") as settings:
        asking.settings = settings
        await source.execute("""INSERT INTO "a.b t" VALUES (1, 'x y'); SELECT tocsin.emit('order.paid'); NOTIFY heard""")
        found = await messages(nats, settings, 3)
        assert found[0].subject == f"pg.{name}.change.public.a%2Eb%20t.insert.x%20y"
        for subject in (
            found[0].subject,
            f"pg.{name}.change.public.a%2Eb%20t.*.x%20y",
            f"pg.{name}.change.>",
            f"pg.{name}.event.order.*",
            f"pg.{name}.notify.heard",
        ):
            told = await asking.all(subject)
            assert all(f.ok for f in told), told
            assert "at the position" in told[-1].text
        assert "no event" in (await asking.last(f"pg.{name}.change.public.a%2Eb%20t.*.z")).text


async def test_who_may_see_it_is_the_gateways_answer(start: Start, asking: Asking, nats: Client, nats_server: Server) -> None:
    await asking.connection.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await watch(asking.connection, ["t"])
    secret = "a secret of more than thirty-two bytes"
    name = asking.settings.source_name

    def token(*patterns: str) -> str:
        return jwt.encode({"exp": time.time() + 60, "subscribe": list(patterns)}, secret, "HS256")

    async with start() as settings:
        await asking.connection.execute("INSERT INTO t VALUES (1)")
        await messages(nats, settings, 1)
        async with running_gateway(nats_server.url, name) as gateway:
            open_ = (await asking.all("t", gateway=gateway.socket_url))[-1]
            assert (open_.ok, "gives it to everybody" in open_.text) == (True, True)
        async with running_gateway(nats_server.url, name, jwt_secret=secret) as gateway:
            unasked = (await asking.all("t", gateway=gateway.socket_url))[-1]
            assert (unasked.ok, "--token" in unasked.text) == (True, True)
            for patterns, ok in (("pg.>", True), (f"pg.{name}.change.public.other.>", False)):
                judged = (await asking.all("t", gateway=gateway.socket_url, token=token(patterns)))[-1]
                assert (judged.ok, "the holder of this token" in judged.text) == (ok, True), judged
            wrong = (await asking.all("t", gateway=gateway.socket_url, token="no token"))[-1]
            assert (wrong.ok, "unauthenticated" in wrong.text) == (False, True)
    (away,) = [f async for f in answer(asking.connection, asking.settings, "t", None, NOBODY, None) if "the gateway does not answer" in f.text]
    assert "tocsin gateway" in str(away.fix)
