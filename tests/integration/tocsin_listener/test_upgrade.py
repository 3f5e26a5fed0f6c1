"""The schema `tocsin` of every earlier version is brought up to date under load; a newer one is refused."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import asyncpg
import pytest
from nats.aio.client import Client

from tests.integration.tocsin_listener.test_listener import until_ready
from tests.support import oracle
from tests.support.servers import Server
from tests.support.upgrades import FORMS, install_old, version, watch_old
from tocsin.errors import OperatorError
from tocsin.settings import load_settings
from tocsin.stack.process import free_port
from tocsin_listener.__main__ import serve
from tocsin_listener.install import VERSION, install, require_installed, require_own_journal
from tocsin_listener.leader import LOCK


@dataclass(slots=True)
class Load:
    """What writers committed, and the longest that one of their transactions took, in seconds."""

    ledger: list[int] = field(default_factory=list)
    longest: float = 0.0


@contextlib.asynccontextmanager
async def writing(url: str, writers: int = 4) -> AsyncIterator[Load]:
    """Writers until the end of the context; their transactions touch both tables, half of them in the other order. An error of one fails the test."""
    load, stop = Load(), asyncio.Event()

    async def write(number: int) -> None:
        connection = await asyncpg.connect(url)
        statements = ["INSERT INTO ledger (account) VALUES ($1) RETURNING id", "UPDATE accounts SET balance = balance + 1 WHERE id = $1"]
        while not stop.is_set():
            begun = time.perf_counter()
            async with connection.transaction():
                first, second = statements if number % 2 else reversed(statements)
                answers = [await connection.fetchval(first, number), await connection.fetchval(second, number)]
            load.longest = max(load.longest, time.perf_counter() - begun)
            load.ledger.append(next(answer for answer in answers if answer is not None))
            await asyncio.sleep(0.002)
        await connection.close()

    async with asyncio.TaskGroup() as group:
        for number in range(writers):
            group.create_task(write(number + 1))
        try:
            yield load
        finally:
            stop.set()


async def prepare(source: asyncpg.Connection, form: str) -> None:
    await source.execute(
        "CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0); INSERT INTO accounts SELECT generate_series(1, 8);"
        "CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int NOT NULL)"
    )
    await install_old(source, form)
    await watch_old(source, "accounts", "ledger")


async def test_every_version_before_this_one_has_its_sql_here() -> None:
    """Whoever raises VERSION keeps the SQL of the one before."""
    assert {version(form) for form in FORMS} >= set(range(1, VERSION))


@pytest.mark.parametrize("form", FORMS)
async def test_an_upgrade_under_load_loses_repeats_and_reorders_nothing_and_no_writer_fails_or_waits_long(
    form: str, source: asyncpg.Connection, source_url: str, nats_server: Server, nats: Client
) -> None:
    await prepare(source, form)
    if version(form) != VERSION:
        with pytest.raises(OperatorError) as refused:
            await require_installed(source)
        assert refused.value.fix == "tocsin install"
    async with writing(source_url) as load:
        for _ in range(4):
            # From the second time on it is brought up to date already, and everything is written anew all the same.
            await until(load, len(load.ledger) + 50)
            assert await install(source) is False
        await until(load, len(load.ledger) + 50)
    assert load.longest < 2, f"a writer waited for {load.longest:.1f} s"
    await require_installed(source)
    settings = load_settings(database_url=source_url, nats_url=nats_server.url, listener_port=free_port(), stream_max_bytes="64MB")
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, stop))
        await until_ready(settings)
        async with asyncio.timeout(20):
            while len((seen := await oracle.stream_events(nats, settings.stream_name)).events) < 2 * len(load.ledger):
                await asyncio.sleep(0.1)
        stop.set()
    oracle.assert_same(load.ledger, seen.values("id"), "what was committed and the stream")
    assert len(seen.events) == 2 * len(load.ledger)
    oracle.assert_ordered_per_key(seen, "stream")
    balances = {row["id"]: row["balance"] for row in await source.fetch("SELECT id, balance FROM accounts WHERE balance > 0")}
    assert {e["data"]["key"]["id"]: e["data"]["new"]["balance"] for e in seen.events if e["data"]["op"] == "update"} == balances


async def until(load: Load, count: int) -> None:
    # On a server with JIT a statement takes the functions of versions 2 and 3 a second and more.
    async with asyncio.timeout(90):
        while len(load.ledger) < count:
            await asyncio.sleep(0.01)


async def test_a_newer_schema_is_refused_with_the_fix_and_left_as_it_is(source: asyncpg.Connection) -> None:
    await install(source)
    await source.execute("UPDATE tocsin.identity SET version = $1", VERSION + 1)
    await source.execute("CREATE OR REPLACE FUNCTION tocsin.ring() RETURNS void LANGUAGE sql AS ''")
    for refuses in (install, require_installed):
        with pytest.raises(OperatorError, match=f"version {VERSION + 1}, newer than this program") as refused:
            await refuses(source)
        assert refused.value.fix.startswith("pip install --upgrade tocsin")
    assert await source.fetchval("SELECT version FROM tocsin.identity") == VERSION + 1
    assert await source.fetchval("SELECT prosrc FROM pg_proc WHERE oid = 'tocsin.ring'::regproc") == "", "nothing of the newer version was written over"


async def test_behind_a_long_transaction_an_upgrade_gives_up_and_no_other_writer_waits_long(source: asyncpg.Connection, source_url: str) -> None:
    await prepare(source, FORMS[0])
    long = await asyncpg.connect(source_url, server_settings={"application_name": "nightly batch"})
    transaction = long.transaction()
    await transaction.start()
    await long.execute("INSERT INTO ledger (account) VALUES (7)")
    async with writing(source_url) as load:
        with pytest.raises(OperatorError, match="nightly batch") as gave_up:
            await install(source, patience=1.5)
    assert "again when that transaction has ended" in gave_up.value.fix
    assert load.longest < 1, f"a writer waited for {load.longest:.1f} s"
    assert await source.fetchval("SELECT version FROM tocsin.identity") == version(FORMS[0]), "nothing is changed"
    async with asyncio.TaskGroup() as group:
        upgrade = group.create_task(install(source, patience=10))
        await asyncio.sleep(0.5)
        await transaction.commit()
    assert upgrade.result() is False
    assert await source.fetchval("SELECT version FROM tocsin.identity") == VERSION
    await long.close()


@pytest.mark.parametrize("what", ["journal", "cursor"])
async def test_numbers_of_transactions_that_this_server_has_not_had_yet_are_refused(source: asyncpg.Connection, what: str) -> None:
    """As a dump of another server brings them. The whole of it: tests/faults/test_moves.py."""
    await install(source)
    await source.execute("SELECT tocsin.emit('here')")
    await source.execute("INSERT INTO tocsin.progress (leaf, n, reached, stream_sequence) SELECT 0, 1, pg_current_snapshot(), 0")
    await require_own_journal(source)
    if what == "journal":
        await source.execute("UPDATE tocsin.journal SET xid = ((xid::text)::bigint + 1000000)::text::xid8")
    else:
        await source.execute("INSERT INTO tocsin.progress (leaf, n, reached, stream_sequence) VALUES (0, 2, '900000000:900000000:', 0)")
    with pytest.raises(OperatorError, match="came with a dump of another server"):
        await require_own_journal(source)


@pytest.mark.parametrize("form", [form for form in FORMS if version(form) < 3])
async def test_where_a_listener_leads_that_could_not_read_what_this_version_writes_nothing_is_changed(
    form: str, source: asyncpg.Connection, source_url: str
) -> None:
    await prepare(source, form)
    leader = await asyncpg.connect(source_url)
    assert await leader.fetchval("SELECT pg_try_advisory_lock($1)", LOCK)
    with pytest.raises(OperatorError, match=f"listener of version {version(form)} leads") as refused:
        await install(source)
    assert "stop the listeners" in refused.value.fix
    assert await source.fetchval("SELECT version FROM tocsin.identity") == version(form)
    await leader.close()
    async with asyncio.timeout(5):
        while await source.fetchval("SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory')"):
            await asyncio.sleep(0.01)
    assert await install(source) is False
