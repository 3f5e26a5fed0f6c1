"""A soak of the checker: heavy writes, stalls of every kind, servers that die, planted drifts. No false alarm, and none missed.

TOCSIN_TEST_SOAK_MINUTES says how long (20 by `make test-slow`).
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass, field

import asyncpg
import pytest

from tests.faults.test_check_faults import Pair, running_pair
from tests.integration.tocsin_check.test_audit import SUBTLE, TYPES
from tests.integration.tocsin_check.test_repair import EXACT
from tests.support.weather import HOT, PLANTED, TOUCHED, Tally, Weather
from tocsin import postgres
from tocsin.errors import OperatorError, Unavailable
from tocsin_check.auditing.audit import FIRST_BLOCK, TableAudit
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.rows.verdict import DRIFT
from tocsin_check.watch.checker import Checker

MINUTES = float(os.environ.get("TOCSIN_TEST_SOAK_MINUTES", "20"))
SHARE = min(30.0, MINUTES * 10)
"""Seconds of audits with nothing planted, and as many with something."""
LOST = (*postgres.TRANSIENT, Unavailable, OperatorError)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(MINUTES * 60 + 300)]


@dataclass
class Count(Tally):
    """What the soak has seen; `found` counts the planted drifts that were found, of `planted`; `kinds` are theirs, by table and name."""

    audits: int = 0
    lagging: int = 0
    pending: int = 0
    lost: int = 0
    planted: int = 0
    found: int = 0
    kinds: set[str] = field(default_factory=set)


Columns = {**SUBTLE, **{f"exact {kind}": (kind, *values) for kind, values in EXACT.items()}}


async def _prepare(source: asyncpg.Connection) -> None:
    """One hot table of a few keys with a value, one of every subtle type, one without a key, one with text keys."""
    columns = ", ".join(f"c{i} {kind}" for i, (kind, _, _) in enumerate(Columns.values()))
    values = ", ".join(f"({ours})::{kind}" for kind, ours, _ in Columns.values())
    await source.execute(f"""
        {TYPES}
        CREATE TABLE hot (id bigint PRIMARY KEY, v text, w numeric); CREATE TABLE bag (v int, w text); ALTER TABLE bag REPLICA IDENTITY FULL;
        CREATE TABLE words (a text, b text, n int, PRIMARY KEY (a, b)); CREATE TABLE subtle (id int PRIMARY KEY, {columns});
        INSERT INTO hot SELECT i, '0', 0 FROM generate_series(0, {HOT}) i; INSERT INTO hot SELECT {PLANTED} + i, 'v' || i, i FROM generate_series(0, 99) i;
        INSERT INTO words SELECT md5(i::text), 'b', i FROM generate_series(0, 300) i;
        INSERT INTO words VALUES ('still', 'x', 1), ('still', 'y', 1), ('a|', 'b', 1);
        INSERT INTO bag SELECT i, 'w' FROM generate_series(1, 50) i; INSERT INTO bag VALUES (-1, 'x'), (-1, 'x'), (-2, '');
        CREATE TABLE wide (id int PRIMARY KEY, n int, big text); ALTER TABLE wide ALTER COLUMN big SET STORAGE EXTERNAL;
        INSERT INTO wide SELECT i, 0, repeat(md5(i::text), 90) FROM generate_series(0, 19) i;
        INSERT INTO wide SELECT {PLANTED} + i, 0, repeat(md5(i::text), 900) FROM generate_series(0, 9) i;
        INSERT INTO subtle SELECT i, {values} FROM generate_series(0, {len(Columns)}) i""")


async def _plant(replica: asyncpg.Connection) -> dict[str, set[str]]:
    """Drift on rows that nobody writes, and on a toasted value beside one that is written; by table what an audit must name. The bag has three."""
    await replica.execute(f"""
        DELETE FROM hot WHERE id = {PLANTED + 1}; UPDATE hot SET v = v || ' ' WHERE id = {PLANTED + 2}; UPDATE hot SET v = NULL WHERE id = {PLANTED + 3};
        UPDATE hot SET v = upper(v) WHERE id = {PLANTED + 4}; INSERT INTO hot VALUES ({PLANTED + 1000}, 'extra', 1);
        DELETE FROM words WHERE b = 'x'; UPDATE words SET n = 2 WHERE a = 'still' AND b = 'y'; UPDATE words SET a = 'a', b = '|b' WHERE a = 'a|';
        DELETE FROM bag WHERE ctid = (SELECT ctid FROM bag WHERE v = -1 LIMIT 1); UPDATE bag SET w = NULL WHERE v = -2;
        UPDATE wide SET big = NULL WHERE id = {PLANTED + 2};
        UPDATE wide SET big = overlay(big PLACING '!' FROM length(big)) WHERE id IN ({PLANTED + 1}, {TOUCHED})""")
    for i, (kind, _, theirs) in enumerate(Columns.values()):
        await replica.execute(f"UPDATE subtle SET c{i} = ({theirs})::{kind} WHERE id = {i}")
    return {
        "public.hot": {f"{PLANTED + n}" for n in (1, 2, 3, 4, 1000)},
        "public.words": {"still,x", "still,y", "a|,b", "a,|b"},
        "public.wide": {f"{n}" for n in (PLANTED + 1, PLANTED + 2, TOUCHED)},
        "public.subtle": {str(i) for i in range(len(Columns))},
    }


async def _mend(replica: asyncpg.Connection, source: asyncpg.Connection) -> None:
    """Put back from the source by hand: the repair is tried elsewhere."""
    async with replica.transaction():
        await replica.execute(f"""
            DELETE FROM subtle; DELETE FROM hot WHERE id >= {PLANTED}; DELETE FROM words WHERE n < 3 AND a IN ('still', 'a|', 'a');
            DELETE FROM bag WHERE v < 0""")
        for table, rows in (("hot", f"id >= {PLANTED}"), ("words", "a IN ('still', 'a|')"), ("bag", "v < 0"), ("subtle", "true")):
            for row in await source.fetch(f"SELECT t::text AS r FROM {table} t WHERE {rows}"):
                await replica.execute(f"INSERT INTO {table} SELECT ($1::text::{table}).*", row["r"])
        for row in await source.fetch("SELECT id, big FROM wide WHERE id >= $1", PLANTED):
            await replica.execute("UPDATE wide SET big = $2 WHERE id = $1", row["id"], row["big"])


async def _audit_all(pair: Pair, count: Count, expected: dict[str, set[str]] | None) -> None:
    """Audit exactly, table by table, until the time is over and what was planted is found; every verdict of drift must be a planted one."""
    found: dict[str, set[str]] = {}
    wanted = {**expected, "public.bag": {"3"}} if expected is not None else {}
    allowed = {**expected, "public.bag": {"1", "2", "3"}} if expected is not None else {}
    until = time.monotonic() + SHARE
    while time.monotonic() < until or (found != wanted and time.monotonic() < until + 60):
        try:
            async with open_sides(pair.source.url(), pair.replica.url()) as sides:
                for table in await Checker(pair.source.url(), pair.replica.url(), exact=True).take_stock(sides):
                    if isinstance(table, Comparable):
                        name = str(table.name)
                        audit = TableAudit(sides, table, patience=random.choice((0.3, 3)))
                        # Small ones, too, so that the tables have several blocks.
                        audit._block = random.choice((20, FIRST_BLOCK))
                        drifted = await _audit(audit, name, count)
                        assert drifted <= allowed.get(name, set()), f"false alarms in {name}: {drifted - allowed.get(name, set())}"
                        found[name] = found.get(name, set()) | (drifted & wanted.get(name, set()))
        except LOST:
            count.lost += 1
            await asyncio.sleep(0.2)
        found = {name: keys for name, keys in found.items() if keys}
    for name, keys in wanted.items():
        assert found.get(name) == keys, f"missed in {name}: {keys - found.get(name, set())}"
        count.kinds |= {f"{name} {key}" for key in keys}
        count.planted += len(keys)
        count.found += len(found[name])


async def _audit(audit: TableAudit, name: str, count: Count) -> set[str]:
    """The drifted keys; of the bag, which has none, their number."""
    try:
        outcome = await audit.run()
    except Lagging:
        count.lagging += 1
        return set()
    count.audits += 1
    count.pending += len(outcome.pending)
    if name == "public.bag":
        number = sum(case.count for case in outcome.drifted)
        return {str(number)} if number else set()
    return {",".join(case.key) for case in outcome.drifted if case.verdict in DRIFT}


async def test_no_false_alarm_and_no_missed_drift_in_any_weather() -> None:
    count = Count()
    async with running_pair(max_prepared_transactions="20") as pair:
        async with pair.on(pair.source) as source:
            await _prepare(source)
        tables = ["hot", "words", "bag", "wide", "subtle"]
        await replicate(source_url=pair.source.url(), replica_url=pair.replica.url(), tables=tables, patience=120)
        weather = Weather(pair.source, pair.replica, count, restart_after=SHARE * 0.8)
        begun = time.monotonic()
        async with weather.blowing():
            while time.monotonic() - begun < MINUTES * 60:
                await _audit_all(pair, count, None)
                async with weather.calm, pair.on(pair.replica) as replica:
                    expected = await _plant(replica)
                await _audit_all(pair, count, expected)
                async with weather.calm, pair.on(pair.replica) as replica, pair.on(pair.source) as source:
                    await _mend(replica, source)
        print(count)
        assert count.audits > 20
        assert {"long", "prepared", "apply", "synchronous", "replica killed"} <= count.stalls.keys()
        await _audit_all(pair, count, None)
