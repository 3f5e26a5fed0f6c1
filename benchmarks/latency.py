"""Commit to WebSocket client, p50 and p99, at 100 and 1,000 commits/s, with 1 and 100 clients.

The rival in the same run is the application that most people would write: asyncpg LISTEN in the web process, a row trigger
with pg_notify, and send_text in a loop; no broker, no journal, nothing to resume from.

Latency is from just after COMMIT returned in the writer to the frame in a client of the same machine and clock; negative
values (the event overtook the writer's own answer) count as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator

import asyncpg
import msgspec
from websockets.asyncio.client import ClientConnection, connect

from benchmarks.report import quantile, report
from tests.support.pipeline import Pipeline, pipeline
from tocsin.stack import process

TABLE = "CREATE TABLE {name} (id bigint PRIMARY KEY, note text NOT NULL, amount numeric(12,2) NOT NULL, at timestamptz NOT NULL DEFAULT now())"
NOTIFY = """
CREATE FUNCTION notify_row() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('rows', row_to_json(NEW)::text); RETURN NULL; END $$;
CREATE TRIGGER notify_row AFTER INSERT ON rival FOR EACH ROW EXECUTE FUNCTION notify_row()
"""


async def write(url: str, table: str, rate: int, seconds: float) -> dict[int, float]:
    """Insert `rate` rows a second from four connections; when each commit was answered, by id."""
    committed: dict[int, float] = {}
    count = int(rate * seconds)
    begin = time.perf_counter() + 0.2

    async def writer(first: int, step: int) -> None:
        connection = await asyncpg.connect(url)
        statement = await connection.prepare(f"INSERT INTO {table} (id, note, amount) VALUES ($1, 'a note of some forty characters, or so', 12.34)")
        for number in range(first, count, step):
            pause = begin + number / rate - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            await statement.fetch(number)
            committed[number] = time.perf_counter()
        await connection.close()

    async with asyncio.TaskGroup() as group:
        for first in range(4):
            group.create_task(writer(first, 4))
    return committed


async def collect(socket: ClientConnection, marker: str, seen: dict[int, float], count: int) -> None:
    """When each id arrived; the id is cut out of the text, since parsing JSON would be measured too."""
    while len(seen) < count:
        text = await socket.recv()
        now = time.perf_counter()
        assert isinstance(text, str)
        start = text.find(marker)
        if start >= 0:
            start += len(marker)
            end = start
            while text[end].isdigit():
                end += 1
            seen[int(text[start:end])] = now


async def measure(url: str, table: str, socket_url: str, hello: str | None, marker: str, rate: int, seconds: float, clients: int) -> list[float]:
    """Latencies in ms over all clients (a sample of ten of them where there are more)."""
    async with contextlib.AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context(connect(socket_url, compression=None)) for _ in range(clients)]
        if hello is not None:
            for socket in sockets:
                await socket.send(hello)
            for socket in sockets:
                while "subscribed" not in str(await socket.recv()):
                    pass
        arrivals: list[dict[int, float]] = [{} for _ in sockets]
        connection = await asyncpg.connect(url)
        await connection.execute(f"TRUNCATE {table}")
        async with asyncio.timeout(seconds + 30), asyncio.TaskGroup() as group:
            for socket, seen in zip(sockets, arrivals, strict=True):
                group.create_task(collect(socket, marker, seen, int(rate * seconds)))
            committed = await write(url, table, rate, seconds)
        await connection.close()
        return [(seen[number] - at) * 1000 for seen in arrivals[:10] for number, at in committed.items()]


@contextlib.asynccontextmanager
async def rival(running: Pipeline) -> AsyncIterator[str]:
    """The LISTEN application in a process of its own."""
    port = process.free_port()
    child = await process.start(sys.executable, "-m", "benchmarks.rivals.listen_app", running.source_url, str(port), log=running.folder / "rival.log")
    try:
        async with asyncio.timeout(15):
            while not process.port_is_open(port):
                await asyncio.sleep(0.05)
        yield f"ws://127.0.0.1:{port}/ws"
    finally:
        await process.stop(child)


async def main(seconds: float) -> None:
    rows = []
    async with pipeline() as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute(TABLE.format(name="orders") + ";" + TABLE.format(name="rival") + ";" + NOTIFY)
        await running.tocsin("install")
        await running.tocsin("watch", "orders", "--ops", "insert")
        await running.start("listener")
        await running.start("gateway")
        hello = msgspec.json.encode({"op": "subscribe", "id": "a", "subject": "pg.shop.change.public.orders.*"}).decode()
        async with rival(running) as rival_url:
            for rate, clients in ((100, 1), (100, 100), (1000, 1), (1000, 100)):
                ours = await measure(running.source_url, "orders", running.socket_url, hello, '"new":{"id":', rate, seconds, clients)
                theirs = await measure(running.source_url, "rival", rival_url, None, '{"id":', rate, seconds, clients)
                for name, values in (("tocsin", ours), ("bare LISTEN app", theirs)):
                    rows.append({"commits/s": rate, "clients": clients, "": name, "p50 ms": quantile(values, 0.5), "p99 ms": quantile(values, 0.99)})
        await source.close()
    figures = {f"{row['']} {row['commits/s']}/s {row['clients']} clients {q}": round(row[f"{q} ms"], 2) for row in rows for q in ("p50", "p99")}
    report("latency", rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    asyncio.run(main(parser.parse_args().seconds))
