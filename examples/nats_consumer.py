# ruff: noqa: INP001  # a script to copy
"""Work through every order's changes with a durable JetStream consumer, straight from NATS: python examples/nats_consumer.py [nats] [stream]

Several of these share the work. What is not acknowledged comes again, and an event may come twice: so remember its `id`.
"""

from __future__ import annotations

import asyncio
import json
import sys

import nats
from nats.errors import TimeoutError as NothingNew
from nats.js.api import ConsumerConfig


async def main(server: str, stream: str) -> None:
    client = await nats.connect(server)
    config = ConsumerConfig(ack_wait=30, max_deliver=10)
    consumer = await client.jetstream().pull_subscribe("pg.shop.change.public.orders.>", durable="orders-example", stream=stream, config=config)
    done: set[str] = set()  # in earnest: a unique column in the table that the work writes to
    while True:
        try:
            messages = await consumer.fetch(100, timeout=5)
        except NothingNew:
            continue
        for message in messages:
            event = json.loads(message.data)
            if event["id"] not in done:
                done.add(event["id"])
                print(event["data"]["op"], event["data"].get("key"), flush=True)
            # After the work, so that a crash costs a repeat and not an event.
            await message.ack()


if __name__ == "__main__":
    arguments = sys.argv[1:]
    asyncio.run(main(arguments[0] if arguments else "nats://127.0.0.1:4222", arguments[1] if len(arguments) > 1 else "TOCSIN_SHOP"))
