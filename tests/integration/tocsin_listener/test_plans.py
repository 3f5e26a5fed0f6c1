"""What PostgreSQL makes of the queries: a long journal makes no question slow, and a bulk statement no single row after it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import asyncpg
import msgspec

from tocsin_listener.install import FOREIGN
from tocsin_listener.watch import watch


async def test_a_single_row_after_a_bulk_statement_is_quick(installed: asyncpg.Connection) -> None:
    """The kept plan of a bulk statement is costly enough to be compiled, in 0.2 s, for each row. Servers without a compiler can't show that."""
    await installed.execute("CREATE TABLE bulky (id bigint PRIMARY KEY, note text)")
    await watch(installed, ["bulky"])
    settings = await installed.fetch(
        "SELECT proconfig FROM pg_proc WHERE pronamespace = 'tocsin'::regnamespace AND proname ~ '^(insert|update|delete|truncate)_[0-9]+$'"
    )
    assert settings
    compiles = await installed.fetchval("SELECT pg_jit_available()")
    assert all(("jit=off" in (row["proconfig"] or [])) == compiles for row in settings), "each setting costs a statement up to a microsecond"
    if not compiles:
        return
    await installed.execute("INSERT INTO bulky SELECT n, 'x' FROM generate_series(1, 300000) AS n")
    await installed.execute("UPDATE bulky SET note = 'y'")
    await installed.execute("DELETE FROM bulky WHERE id > 1000")
    quickest = []
    for statement in ("INSERT INTO bulky VALUES ($1, 'z')", "UPDATE bulky SET note = 'w' WHERE id = $1 - 999999", "DELETE FROM bulky WHERE id = $1"):
        times = []
        for number in range(5):
            begin = time.perf_counter()
            await installed.execute(statement, 1_000_000 + number)
            times.append(time.perf_counter() - begin)
        quickest.append(min(times))
    assert max(quickest) < 0.1, quickest


async def test_whether_the_journal_is_another_servers_is_asked_of_its_index(installed: asyncpg.Connection) -> None:
    """It is asked at every start of the listener, over a journal that may have millions of rows."""
    await installed.execute("CREATE TABLE long (id bigint PRIMARY KEY)")
    await watch(installed, ["long"])
    for begin in range(0, 20_000, 5_000):
        await installed.execute("INSERT INTO long SELECT n FROM generate_series($1::bigint, $1 + 4999) AS n", begin)
    plan = msgspec.json.decode(await installed.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {FOREIGN}"))[0]["Plan"]
    read = [node for node in _nodes(plan) if node.get("Relation Name", "").startswith("journal_")]
    assert len(read) == 8, read
    assert {node["Node Type"] for node in read} <= {"Index Scan", "Index Only Scan"}
    assert sum(node["Actual Rows"] * node["Actual Loops"] for node in read) <= len(read), read


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)
