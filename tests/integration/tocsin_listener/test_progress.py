"""The cursor's table: its rows are emptied in turn, and whoever reads it for hours does not stop the leader."""

from __future__ import annotations

import asyncio

import asyncpg

from tocsin_listener.leader import Lead
from tocsin_listener.progress import BEGINNING, ROWS_PER_LEAF, Cursor, Progress


async def at(connection: asyncpg.Connection, number: int) -> Progress:
    """A leader's progress whose next row is `number`."""
    await connection.execute(
        "INSERT INTO tocsin.progress (leaf, n, reached, stream_sequence) VALUES ($1, $2, $3::text::pg_snapshot, 0)",
        (number - 1) // ROWS_PER_LEAF % 2,
        number - 1,
        BEGINNING,
    )
    lead = Lead(connection)
    assert await lead.try_acquire()
    progress = Progress(lead)
    await progress.cursor()
    return progress


async def test_a_table_is_emptied_when_its_turn_comes(installed: asyncpg.Connection) -> None:
    progress = await at(installed, 2 * ROWS_PER_LEAF)
    await installed.execute("INSERT INTO tocsin.progress (leaf, n, reached, stream_sequence) VALUES (0, 5, '3:3:', 0)")
    await progress.store(Cursor(BEGINNING, None, 7))
    rows = await installed.fetch("SELECT n, stream_sequence FROM tocsin.progress ORDER BY n")
    assert [tuple(row) for row in rows] == [(2 * ROWS_PER_LEAF - 1, 0), (2 * ROWS_PER_LEAF, 7)]


async def test_a_reader_of_hours_such_as_a_dump_does_not_stop_the_leader(installed: asyncpg.Connection, source_url: str) -> None:
    progress = await at(installed, 2 * ROWS_PER_LEAF)
    await installed.execute("INSERT INTO tocsin.progress (leaf, n, reached, stream_sequence) VALUES (0, 5, '3:3:', 0)")
    reader = await asyncpg.connect(source_url)
    await reader.execute("BEGIN; SELECT count(*) FROM tocsin.progress")
    async with asyncio.timeout(2):
        await progress.store(Cursor(BEGINNING, None, 7))
    cursor = await progress.cursor()
    assert cursor is not None
    assert cursor.stream_sequence == 7
    reader.terminate()
