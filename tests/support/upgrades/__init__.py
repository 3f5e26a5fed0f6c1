"""The schema `tocsin` as earlier versions installed it: a folder each, named by its version and, where that had several forms, the commit.

Whoever raises tocsin_listener.install.VERSION copies the SQL of the version before into a folder here.
"""

from __future__ import annotations

from pathlib import Path

import asyncpg

FOLDER = Path(__file__).parent
FORMS = sorted(path.name for path in FOLDER.iterdir() if (path / "schema.sql").exists())
SCRIPTS = ("schema.sql", "order.sql", "capture.sql", "alteration.sql")


def version(form: str) -> int:
    return int(form.partition("-")[0])


async def install_old(connection: asyncpg.Connection, form: str) -> None:
    """As that version's own `tocsin install` did it."""
    async with connection.transaction():
        await connection.execute("SET LOCAL client_min_messages = warning; SET LOCAL check_function_bodies = off")
        for name in SCRIPTS:
            path = FOLDER / form / name
            if path.exists():
                await connection.execute(path.read_text())
        await connection.execute("REVOKE ALL ON ALL FUNCTIONS IN SCHEMA tocsin FROM PUBLIC")
        await connection.execute("INSERT INTO tocsin.identity (version, max_event) VALUES ($1, 900000)", version(form))


async def watch_old(connection: asyncpg.Connection, *tables: str) -> None:
    for table in tables:
        await connection.execute("SELECT tocsin.watch($1::text::regclass)", table)
