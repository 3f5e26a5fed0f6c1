"""How large an installation has to be: arithmetic from the measured figures, up to a million clients and a million events a second.

`python -m benchmarks.sizing` prints the table; with `--write` it goes into docs/scaling.md, with the figures that it was computed from.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"
MARKS = ("<!-- sizing: figures", "<!-- sizing: end -->")
GB = 1e9


@dataclass(frozen=True)
class Figures:
    """Measured on 2 cores shared with PostgreSQL, NATS and the clients; the constants below them are what a message costs beside its body."""

    relay_events: int  # a second, one listener, sync_interval always
    deliveries: int  # a second, one gateway worker, 100 clients (benchmarks.fanout)
    gateway_reads: int  # events a second that one worker read for them
    client_kib: float  # memory of one connected, subscribed client
    worker_clients: int = 20_000  # that we put on one worker
    worker_mb: int = 80  # memory of a worker without a client
    head: float = 0.6  # of a measured peak that is planned with
    journal_overhead: int = 250  # bytes of WAL beside the data: tuple, index, commit
    stream_overhead: int = 300  # bytes in the stream beside the data: envelope, headers, block
    wire_overhead: int = 250  # bytes of a frame beside the data: envelope, subject, position


@dataclass(frozen=True)
class Need:
    """`per_client` is the events a second that one client gets, `body` the bytes of an event's data."""

    clients: int
    events: int
    per_client: float
    body: int = 300
    days: float = 1.0
    replicas: int = 3


@dataclass(frozen=True)
class Size:
    """What it takes. `sources` are databases, each with its listener and its stream; sizes in bytes, rates in bytes a second."""

    sources: int
    wal: float
    disk: float
    workers: int
    memory: float
    client_wire: float
    nats_wire: float


NEEDS = (
    Need(100, 100, 10, days=7, replicas=1),
    Need(1_000, 1_000, 10, days=7),
    Need(10_000, 1_000, 10, days=7),
    Need(10_000, 20_000, 10),
    Need(100_000, 20_000, 10),
    Need(1_000_000, 20_000, 1),
    Need(100_000, 100_000, 10),
    Need(1_000_000, 1_000_000, 10),
)


def size(need: Need, figures: Figures) -> Size:
    """At worst: no two clients of a worker want the same event, so that it reads as many as it delivers, or all there are."""
    sources = max(1, math.ceil(need.events / (figures.relay_events * figures.head)))
    deliveries = need.clients * need.per_client
    workers = [need.clients / figures.worker_clients, deliveries / (figures.deliveries * figures.head)]
    readable = figures.gateway_reads * figures.head
    if need.events > readable:
        workers.append(deliveries / readable)
    count = max(1, math.ceil(max(workers)))
    read = min(need.events, deliveries / count)
    message = need.body + figures.stream_overhead
    return Size(
        sources=sources,
        wal=need.events * (need.body + figures.journal_overhead),
        disk=need.events * message * 86_400 * need.days * need.replicas,
        workers=count,
        memory=need.clients * figures.client_kib * 1024 + count * figures.worker_mb * 1e6,
        client_wire=deliveries * (need.body + figures.wire_overhead),
        nats_wire=message * (need.events * need.replicas + read * count),
    )


def measured() -> Figures:
    """From benchmarks/results; deliveries of the fan-out are kept as ratios there, so their rate is the last one seen on this machine."""
    relay = json.loads((RESULTS / "relay.json").read_text())
    connections = json.loads((RESULTS / "connections.json").read_text())
    return Figures(relay_events=round(relay["sync always events/s"], -3), deliveries=1_300_000, gateway_reads=13_000, client_kib=connections["tocsin_kib"])


def table(figures: Figures) -> str:
    """Markdown."""
    head = (
        "| clients | events/s | events/s a client | kept | sources, listeners, streams | WAL of the journal | stream on disk, all replicas"
        " | gateway workers | their memory | to clients | NATS in and out |"
    )
    lines = [head, "|" + "---:|" * 11]
    for need in NEEDS:
        s = size(need, figures)
        lines.append(
            f"| {need.clients:,} | {need.events:,} | {need.per_client:g} | {need.days:g} d, R{need.replicas} | {s.sources} | {s.wal / 1e6:,.1f} MB/s |"
            f" {_large(s.disk)} | {s.workers:,} | {_large(s.memory)} | {s.client_wire * 8 / GB:,.2f} Gbit/s | {s.nats_wire * 8 / GB:,.2f} Gbit/s |"
        )
    return "\n".join(lines)


def _large(size_: float) -> str:
    return f"{size_ / 1e12:,.1f} TB" if size_ >= 1e12 else f"{size_ / GB:,.1f} GB" if size_ >= GB else f"{size_ / 1e6:,.1f} MB"


def section(figures: Figures) -> str:
    """What stands between the marks."""
    return f"{MARKS[0]} {json.dumps(asdict(figures))} -->\n{table(figures)}\n{MARKS[1]}"


def figures_of(page: str) -> Figures:
    """Those that the page's table was computed from."""
    found = re.search(re.escape(MARKS[0]) + r" (\{.*\}) -->", page)
    assert found is not None, "the page has no figures"
    return Figures(**json.loads(found[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    made = section(measured())
    if parser.parse_args().write:
        page = PAGE.read_text()
        begin, end = page.index(MARKS[0]), page.index(MARKS[1]) + len(MARKS[1])
        PAGE.write_text(page[:begin] + made + page[end:])
    print(made)


if __name__ == "__main__":
    main()
