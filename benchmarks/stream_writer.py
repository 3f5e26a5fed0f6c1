"""Events published into JetStream at a steady rate, in a process of its own.

    python -m benchmarks.stream_writer URL SUBJECT RATE COUNT

Each bears `"number":N`, N from 0 to COUNT - 1. Prints one line of JSON: by number, when it was sent, in monotonic seconds.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop
from nats.aio.client import Client

from tocsin.event import EPOCH, MSG_ID

EVENT = (
    '{{"specversion":"1.0","id":"live-{0}","source":"/pg/shop","type":"public.live.insert","time":"2026-01-01T00:00:00.000000Z","sequence":"{0}",'
    '"txid":"{0}","data":{{"op":"insert","new":{{"number":{0}}}}}}}'
)


async def main(url: str, subject: str, rate: int, count: int) -> None:
    client = Client()
    await client.connect(url)
    context, run = client.jetstream(publish_async_max_pending=1000), time.monotonic_ns()
    begin = time.perf_counter() + 0.2
    sent: list[float] = []
    for number in range(count):
        pause = begin + number / rate - time.perf_counter()
        if pause > 0:
            await asyncio.sleep(pause)
        sent.append(time.perf_counter())
        # Not waited for one by one: a slow answer must not slow the rate, which would hide the wait.
        await context.publish_async(subject, EVENT.format(number).encode(), headers={MSG_ID: f"{run}-{number}", EPOCH: "bench0000"})
        await client.flush()
    await context.publish_async_completed()
    await client.close()
    print(json.dumps(sent), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
