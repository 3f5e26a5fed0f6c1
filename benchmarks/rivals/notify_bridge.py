"""The usual bridge: a row trigger with pg_notify, an asyncpg listener that publishes to a JetStream stream."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
from nats.aio.client import Client


async def main(database_url: str, nats_url: str) -> None:
    client = Client()
    await client.connect(nats_url)
    context = client.jetstream(publish_async_max_pending=4000)
    await context.add_stream(name="RIVAL", subjects=["rival.>"])
    waiting: asyncio.Queue[str] = asyncio.Queue()
    connection = await asyncpg.connect(database_url)
    await connection.add_listener("rows", lambda *arguments: waiting.put_nowait(arguments[3]))
    print("ready", flush=True)
    while True:
        await context.publish_async("rival.rows", (await waiting.get()).encode())


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
