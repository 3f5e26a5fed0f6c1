# ruff: noqa: INP001  # a script to copy
"""A FastAPI app that keeps a figure up to date from events: how many orders are in each status.

TOCSIN_GATEWAY=http://127.0.0.1:8080 uvicorn --app-dir examples fastapi_app:app --port 8001
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

from tocsin.client import subscribe

GATEWAY = os.environ.get("TOCSIN_GATEWAY", "http://127.0.0.1:8080")


class Orders:
    """The status of each order that an event told of; from the start of the stream, so that a restart comes to the same."""

    def __init__(self) -> None:
        self.status: dict[int, str] = {}
        self.position: str | None = None
        self.live = False

    async def follow(self) -> None:
        async for event in subscribe(GATEWAY, "pg.shop.change.public.orders.>", since="start", on_state=self._on_state):
            if event.op == "delete":
                self.status.pop(event.key["id"], None)
            elif event.op == "truncate":
                self.status.clear()
            else:
                self.status[event.key["id"]] = event.new["status"]
            self.position = event.position

    def _on_state(self, state: str, _: BaseException | None) -> None:
        self.live = state == "live"


orders = Orders()


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        following = group.create_task(orders.follow())
        yield
        following.cancel()


app = FastAPI(title="Orders", lifespan=lifespan)


@app.get("/orders")
async def read() -> dict[str, Any]:
    """How many orders are in each status, as of which position, and whether changes are coming in."""
    return {"live": orders.live, "position": orders.position, "orders": dict(Counter(orders.status.values()))}
