"""Commits/s with capture on and the whole pipeline running, against the same table bare, the usual row NOTIFY bridge, and the usual outbox trigger.

pgbench with one-row INSERTs; each variant for the same time on one source server, in turn, several rounds; medians.
The outbox has no reader, and so is what `no listener` is to be compared with: the least that a trigger which keeps the row does.
The bridge ends at NATS, and so is what `to NATS` is to be compared with: listener and stream, which has every event a moment after the last commit.
`whole` has the gateway and a WebSocket client beside them; it also proves the oracle: table == stream == what the client saw.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from typing import Any

import asyncpg
from nats.aio.client import Client

from benchmarks.recorder import recorder
from benchmarks.report import report
from tests.support import oracle
from tests.support.pipeline import Pipeline, pipeline
from tocsin.stack import process

TABLE = """
CREATE TABLE {name} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer int NOT NULL, note text NOT NULL,
                     amount numeric(12,2) NOT NULL, at timestamptz NOT NULL DEFAULT now())
"""
INSERT = "\\set c random(1, 1000)\nINSERT INTO {name} (customer, note, amount) VALUES (:c, 'a note of some forty characters, or so', 12.34);\n"
NOTIFY = """
CREATE FUNCTION notify_row() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('rows', row_to_json(NEW)::text); RETURN NULL; END $$;
CREATE TRIGGER notify_row AFTER INSERT ON rival FOR EACH ROW EXECUTE FUNCTION notify_row()
"""
OUTBOX = """
CREATE TABLE outbox (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at timestamptz NOT NULL DEFAULT now(), topic text NOT NULL, payload json NOT NULL);
CREATE FUNCTION outbox_row() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN INSERT INTO outbox (topic, payload) VALUES ('orders', row_to_json(NEW)); RETURN NULL; END $$;
CREATE TRIGGER outbox_row AFTER INSERT ON boxed FOR EACH ROW EXECUTE FUNCTION outbox_row()
"""


async def commits(running: Pipeline, table: str, writers: int, seconds: int) -> float:
    """Commits a second of one-row INSERTs."""
    return (await running.pgbench(INSERT.format(name=table), writers=writers, seconds=seconds, prepared=True))[1]


async def drained(running: Pipeline, source: asyncpg.Connection) -> float:
    """Seconds until the stream holds every order."""
    count = await source.fetchval("SELECT count(*) FROM orders")
    client = Client()
    await client.connect(running.nats.url)
    begin = asyncio.get_running_loop().time()
    async with asyncio.timeout(120):
        while (await client.jetstream().stream_info("TOCSIN_SHOP", subjects_filter="pg.shop.change.public.orders.insert")).state.subjects != {
            "pg.shop.change.public.orders.insert": count
        }:
            await asyncio.sleep(0.02)
    await client.close()
    return asyncio.get_running_loop().time() - begin


async def round_of(running: Pipeline, source: asyncpg.Connection, writers: int, seconds: int) -> dict[str, float]:
    """One round of every variant; all but `whole` without anything else running."""
    figures = {"bare": await commits(running, "bare", writers, seconds)}
    figures["no listener"] = await commits(running, "orders", writers, seconds)
    figures["row outbox"] = await commits(running, "boxed", writers, seconds)
    await running.start("listener")
    await drained(running, source)
    figures["to NATS"] = await commits(running, "orders", writers, seconds)
    figures["drain s"] = await drained(running, source)
    await running.start("gateway")
    before = await source.fetchval("SELECT count(*) FROM orders")
    async with recorder(running.socket_url, "pg.shop.change.public.orders.*") as recording:
        figures["whole"] = await commits(running, "orders", writers, seconds)
        figures["drain s"] = max(figures["drain s"], await drained(running, source))
        written = [row["id"] for row in await source.fetch("SELECT id FROM orders ORDER BY id OFFSET $1", before)]
        await recording.until(len(written))
        seen = recording.seen()
        oracle.assert_same(written, seen.values("id"), "table and client")
        oracle.assert_ordered_per_key(seen, "client")
    await running.stop("gateway")
    await running.stop("listener")
    bridge = await process.start(
        sys.executable, "-m", "benchmarks.rivals.notify_bridge", running.source_url, running.nats.url, log=running.folder / "bridge.log"
    )
    async with asyncio.timeout(15):
        while "ready" not in (running.folder / "bridge.log").read_text():
            await asyncio.sleep(0.05)
    figures["row NOTIFY"] = await commits(running, "rival", writers, seconds)
    await process.stop(bridge)
    (running.folder / "bridge.log").unlink()
    return figures


async def main(seconds: int, rounds: int, writer_counts: list[int]) -> None:
    rows: list[dict[str, Any]] = []
    result: dict[str, float] = {}
    for writers in writer_counts:
        async with pipeline() as running:
            source = await asyncpg.connect(running.source_url)
            await source.execute(";".join(TABLE.format(name=name) for name in ("bare", "orders", "rival", "boxed")) + ";" + NOTIFY + ";" + OUTBOX)
            await running.tocsin("install")
            await running.tocsin("watch", "orders")
            measured = [await round_of(running, source, writers, seconds) for _ in range(rounds)]
            median = {name: statistics.median(figures[name] for figures in measured) for name in measured[0]}
            rows += [
                {"writers": writers, "": name, "commits/s": median[name], "of bare": median[name] / median["bare"]}
                for name in ("bare", "no listener", "row outbox", "to NATS", "whole", "row NOTIFY")
            ]
            result |= {
                f"ratio_bare_{writers}": round(median["whole"] / median["bare"], 3),
                f"ratio_notify_{writers}": round(median["whole"] / median["row NOTIFY"], 2),
                f"ratio_to_nats_{writers}": round(median["to NATS"] / median["bare"], 3),
                f"ratio_notify_to_nats_{writers}": round(median["to NATS"] / median["row NOTIFY"], 2),
                f"ratio_no_listener_{writers}": round(median["no listener"] / median["bare"], 3),
                f"ratio_outbox_{writers}": round(median["row outbox"] / median["bare"], 3),
                f"drain_seconds_{writers}": round(median["drain s"], 2),
            }
            await source.close()
    report("capture", rows, result)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--writers", type=int, nargs="+", default=[8, 32])
    given = parser.parse_args()
    asyncio.run(main(given.seconds, given.rounds, given.writers))
