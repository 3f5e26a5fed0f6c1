"""Commit to WebSocket client, p50 and p99, at 100 and 1,000 commits/s, with 1 and 100 clients.

The rivals in the same run: the application that most people would write (asyncpg LISTEN in the web process, a row trigger with pg_notify, and
send_text in a loop; no broker, no journal, nothing to resume from), and with `--pg-sse PYTHON` (an interpreter that has pg-sse[fastapi],
psycopg[binary,pool] and uvicorn) that package, whose streams each read again from the table.

Writer and clients are processes of their own. Latency is counted from the moment at which the writer sent its autocommit INSERT, so the commit is
in it, and from the moment at which it had the answer; an event may come before that, and then counts as negative.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass

import asyncpg
import msgspec

from benchmarks.report import quantile, report
from tests.support.pipeline import Pipeline, pipeline
from tocsin.stack import process

TABLE = """
CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, number bigint NOT NULL, note text NOT NULL, amount numeric(12,2) NOT NULL,
                     at timestamptz NOT NULL DEFAULT now(), room text NOT NULL DEFAULT 'one')
"""
NOTIFY = """
CREATE FUNCTION notify_row() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('rows', row_to_json(NEW)::text); RETURN NULL; END $$;
CREATE TRIGGER notify_row AFTER INSERT ON rival FOR EACH ROW EXECUTE FUNCTION notify_row()
"""


@dataclass(frozen=True, slots=True)
class Contender:
    """`kind`, `path` and `hello` are those of benchmarks.arrivals."""

    name: str
    table: str
    port: int
    kind: str = "websocket"
    path: str = "/ws"
    hello: str = ""


async def measure(url: str, one: Contender, rate: int, count: int, clients: int) -> tuple[list[float], list[float], int]:
    """Latencies in ms, from the sending and from the answer, of each event at each of at most ten clients; how many had not come when none came
    for ten seconds.
    """
    pipe = asyncio.subprocess.PIPE
    arrivals = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.arrivals", "127.0.0.1", str(one.port), one.path, str(clients), str(count), one.kind),
        stdin=pipe,
        stdout=pipe,
        limit=1 << 26,
    )
    assert arrivals.stdin is not None
    assert arrivals.stdout is not None
    arrivals.stdin.write(one.hello.encode())
    arrivals.stdin.close()
    assert await arrivals.stdout.readline() == b"ready\n"
    writer = await asyncio.create_subprocess_exec(sys.executable, "-m", "benchmarks.writer", url, one.table, str(rate), str(count), stdout=pipe)
    written = msgspec.json.decode((await writer.communicate())[0])
    seen = msgspec.json.decode(await arrivals.stdout.readline())
    await arrivals.wait()
    came = [(at, *written[number]) for times in seen for number, at in enumerate(times) if at is not None]
    late = count * len(seen) - len(came)
    assert one.name != "tocsin" or not late, f"{late} events did not come"
    return [(at - sent) * 1000 for at, sent, _ in came], [(at - answered) * 1000 for at, _, answered in came], late


@contextlib.asynccontextmanager
async def application(running: Pipeline, port: int, *command: str) -> AsyncIterator[int]:
    """A rival in a process of its own; its port."""
    child = await process.start(*command, running.source_url, str(port), log=running.folder / f"rival-{port}.log")
    try:
        async with asyncio.timeout(15):
            while not process.port_is_open(port):
                await asyncio.sleep(0.05)
        yield port
    finally:
        await process.stop(child)


@contextlib.asynccontextmanager
async def contenders(running: Pipeline, source: asyncpg.Connection, pg_sse: str | None) -> AsyncIterator[list[Contender]]:
    """Ours and the rivals, all running."""
    await source.execute(";".join(TABLE.format(name=name) for name in ("orders", "rival", "sse")) + ";" + NOTIFY)
    await running.tocsin("install")
    await running.tocsin("watch", "orders", "--ops", "insert")
    await running.start("listener")
    await running.start("gateway")
    hello = msgspec.json.encode({"op": "subscribe", "id": "a", "subject": "pg.shop.change.public.orders.*"}).decode()
    async with contextlib.AsyncExitStack() as stack:
        port = await stack.enter_async_context(application(running, process.free_port(), sys.executable, "-m", "benchmarks.rivals.listen_app"))
        found = [
            Contender("tocsin", "orders", int(running.environment["TOCSIN_GATEWAY_PORT"]), hello=hello),
            Contender("bare LISTEN app", "rival", port),
        ]
        if pg_sse:
            program = "benchmarks/rivals/pg_sse_app.py"
            trigger = await asyncio.create_subprocess_exec(pg_sse, program, "", "trigger", stdout=asyncio.subprocess.PIPE)
            await source.execute((await trigger.communicate())[0].decode())
            port = await stack.enter_async_context(application(running, process.free_port(), pg_sse, program))
            found.append(Contender("pg-sse", "sse", port, kind="sse", path="/stream"))
        yield found


async def main(seconds: float, pg_sse: str | None) -> None:
    rows = []
    figures: dict[str, float] = {}
    async with pipeline() as running:
        source = await asyncpg.connect(running.source_url)
        async with contenders(running, source, pg_sse) as found:
            for rate, clients in ((100, 1), (100, 100), (1000, 1), (1000, 100)):
                p50 = {}
                for one in found:
                    whole, answered, late = await measure(running.source_url, one, rate, int(rate * seconds), clients)
                    row = {f"{q} ms": quantile(whole, share) for q, share in (("p50", 0.5), ("p99", 0.99))}
                    row |= {f"{q} answered": quantile(answered, share) for q, share in (("p50", 0.5), ("p99", 0.99))}
                    rows.append({"commits/s": rate, "clients": clients, "": one.name, **row, "missing": late})
                    figures |= {f"{one.name} {rate}/s {clients} clients {name}": round(value, 2) for name, value in row.items()}
                    p50[one.name] = row["p50 ms"]
                figures |= {
                    f"ratio to {name} {rate}/s {clients} clients p50": round(p50["tocsin"] / value, 2) for name, value in p50.items() if name != "tocsin"
                }
        await source.close()
    report("latency", rows, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--pg-sse", metavar="PYTHON", help="an interpreter that has pg-sse, to measure it too")
    given = parser.parse_args()
    asyncio.run(main(given.seconds, given.pg_sse))
