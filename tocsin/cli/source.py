"""What the verbs on the source database share: one connection for one piece of work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated, TypeVar

import asyncpg
import typer

T = TypeVar("T")

DatabaseUrl = Annotated[str | None, typer.Option("--database-url", help="The source database (TOCSIN_DATABASE_URL).")]


def with_source(database_url: str | None, work: Callable[[asyncpg.Connection], Awaitable[T]]) -> T:
    """Run `work` on a connection to the source database; its result."""
    from tocsin import postgres
    from tocsin.settings import load_settings
    from tocsin.stack.running import here

    async def run() -> T:
        url = here(load_settings(database_url=database_url)).require_database_url()
        async with postgres.connection(url, setting="TOCSIN_DATABASE_URL", application="tocsin") as connection:
            return await work(connection)

    return asyncio.run(run())
