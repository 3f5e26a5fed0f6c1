"""pg-sse as its own page says to use it: a trigger that wakes, every stream reads again from its cursor; reads by a pool.

    PYTHON benchmarks/rivals/pg_sse_app.py URL PORT          PYTHON has pg-sse[fastapi], psycopg[binary,pool] and uvicorn

`trigger` in the place of the port prints the SQL of the trigger instead.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from pg_sse import Event, Hub, trigger_sql  # type: ignore[import-not-found]
from psycopg_pool import AsyncConnectionPool  # type: ignore[import-not-found]


def app(url: str) -> FastAPI:
    hub = Hub(url, channel="row_change")
    pool = AsyncConnectionPool(url, min_size=4, max_size=10, open=False, kwargs={"autocommit": True})

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        async with pool, hub.lifespan(application):
            yield

    made = FastAPI(lifespan=lifespan)

    async def read_after(after: int) -> list[Event]:
        async with pool.connection() as connection:
            rows = await (await connection.execute("SELECT id, number, note, amount::text FROM sse WHERE id > %s ORDER BY id LIMIT 500", (after,))).fetchall()
        return [Event({"number": row[1], "note": row[2], "amount": row[3]}, id=row[0]) for row in rows]

    async def latest() -> int:
        async with pool.connection() as connection:
            row = await (await connection.execute("SELECT coalesce(max(id), 0) FROM sse")).fetchone()
        return int(row[0]) if row else 0

    @made.get("/stream", response_class=StreamingResponse)
    async def stream() -> StreamingResponse:
        return hub.sse("one", read=read_after, start=latest)  # type: ignore[no-any-return]

    return made


if __name__ == "__main__":
    if sys.argv[2] == "trigger":
        print(trigger_sql("sse", key_column="room", channel="row_change", order_column="id", on=("insert",)))
    else:
        asyncio.run(uvicorn.Server(uvicorn.Config(app(sys.argv[1]), port=int(sys.argv[2]), log_level="warning")).serve())
