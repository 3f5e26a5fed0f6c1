"""What a capture function does is planned once a session: a bulk statement must not make each single row after it dear."""

from __future__ import annotations

import time

import asyncpg

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
