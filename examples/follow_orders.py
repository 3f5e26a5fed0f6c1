# ruff: noqa: INP001  # a script to copy
"""Follow the demo shop's orders, and go on after a restart from where it was: run it, stop it, run it again."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tocsin.client import subscribe

KEPT = Path("follow_orders.position")


async def main(gateway: str) -> None:
    since = KEPT.read_text() if KEPT.exists() else "now"
    async for event in subscribe(gateway, "pg.shop.change.public.orders.>", since=since):
        print(event.op, event.key, event.new, flush=True)
        # Kept after the work is done: what was not finished comes again. Renamed, so that a crash leaves no half of it.
        unfinished = KEPT.with_suffix(".new")
        unfinished.write_text(event.position)
        unfinished.replace(KEPT)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"))
