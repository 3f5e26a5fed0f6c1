"""Write the last results into the README's table: python -m benchmarks.table"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report import RESULTS

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"


def _pair(figures: dict[str, Any], name: str, rate: int) -> str:
    """p50 and p99 with 100 clients."""
    return " and ".join(f"{figures[f'{name} {rate}/s 100 clients {q} ms']:,}" for q in ("p50", "p99"))


def _grown(figures: dict[str, Any]) -> dict[str, str]:
    """By what grows: each size with its figure."""
    found: dict[str, list[str]] = {}
    for name, value in figures.items():
        what, _, size = name.rpartition(" ")
        if what:
            found.setdefault(what, []).append(f"{int(size):,} {value}")
    return {what: ", ".join(sizes) for what, sizes in found.items()}


LINES: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    (
        "start",
        "`make up`, installed, fresh data, to the first event at a client",
        lambda f: f"{f['fresh_seconds']} s; {f['again_seconds']} s with data that exist",
    ),
    (
        "latency",
        "from an INSERT's sending to a WebSocket client, its commit included, p50 and p99, with 100 clients",
        lambda f: "; ".join(
            f"{rate:,} commits/s: {_pair(f, 'tocsin', rate)} ms (a bare LISTEN app without broker or durability: {_pair(f, 'bare LISTEN app', rate)}"
            + (f"; pg-sse: {_pair(f, 'pg-sse', rate)})" if "pg-sse 100/s 100 clients p50 ms" in f else ")")
            for rate in (100, 1000)
        ),
    ),
    (
        "capture",
        "commits/s of 8 writers with everything running on the same 2 cores, a client included, against the same table bare",
        lambda f: (
            f"{f['ratio_bare_8']} of bare, {f['ratio_notify_8']} times a row NOTIFY bridge; {f['ratio_no_listener_8']} of bare with no listener"
            f" (the usual outbox trigger, which nobody reads: {f.get('ratio_outbox_8', '-')})"
        ),
    ),
    (
        "fanout",
        "WebSocket messages/s against nats-server's own WebSocket listener, 100 and 1,000 clients",
        lambda f: (
            f"{f['ratio_nats_server_100']} and {f['ratio_nats_server_1000']} times"
            f" (a `send_json` loop: {f['ratio_send_json_loop_100']} and {f['ratio_send_json_loop_1000']} times)"
        ),
    ),
    (
        "replay",
        "p99 of live clients while others replay, against none that does",
        lambda f: (
            f"20 slow replays: {f['ratio_p99 20 slow']} times; 200: {f['ratio_p99 200 slow']}; one of 4 MB/s: {f['ratio_p99 1 fast']};"
            f" 200 that begin at once: {f['ratio_p99 200 begin']} (alone: {f['none p99 ms']} ms)"
        ),
    ),
    (
        "growth_gateway",
        "µs of the gateway's processor for an event, as it grows",
        lambda f: "; ".join(f"{name}: {sizes}" for name, sizes in _grown(f).items()),
    ),
    ("connections", "memory per idle subscribed client", lambda f: f"{f['tocsin_kib']} KiB (nats-server: {f['nats_server_kib']} KiB)"),
    (
        "relay",
        "events/s from the journal to acknowledged in JetStream, with NATS's default sync and with `sync_interval: always`",
        lambda f: (
            f"{f['default events/s']:,} and {f['sync always events/s']:,}; {f['default times nats-outbox']} and {f['sync always times nats-outbox']}"
            f" times nats-outbox; an idle listener's commit to the stream: p50 {f['default idle commit to stream p50 ms']} ms"
        ),
    ),
    (
        "bulk",
        "one statement that touches a million rows, against the same without capture",
        lambda f: f"INSERT {f['ratio_insert']}, UPDATE {f['ratio_update']}",
    ),
    (
        "soak",
        "random writers, and every few seconds a kill -9 of a listener, NATS or PostgreSQL",
        lambda f: (
            f"{f['minutes']} minutes, {f['kills']} kills, {f['events']:,} events: {f['stream_lost']} lost, {f['stream_repeated']} repeated,"
            f" {f['stream_out_of_order']} out of order in the stream; {f['client_lost']}, {f['client_repeated']} and {f['client_out_of_order']} at the client"
        ),
    ),
    (
        "growth_capture",
        "commits/s of bare, listener running, as it grows",
        lambda f: ", ".join(f"{name.removesuffix(', of bare')}: {value}" for name, value in f.items() if name.endswith(", of bare")),
    ),
    (
        "drift",
        "a full audit of a million rows",
        lambda f: f"{f['rows_per_second']:,} rows/s; {f['ratio_copy']} times a COPY binary of it, {f['ratio_copy_drifted']} times with 100 drifted rows",
    ),
    (
        "drift_gentle",
        "the source's commits while audits run one after another at the default pace",
        lambda f: (
            f"p50 {f['ratio_p50']} times, p99 {f['ratio_p99']} times what they are without"
            f" (two halves of those without: {f['noise_p50']} and {f['noise_p99']} times)"
        ),
    ),
    (
        "drift_incremental",
        "an audit after 1,000 rows changed",
        lambda f: f"in {f['rows']:,} rows: {f['seconds']} s, {f['ratio_full']} of the full audit",
    ),
]


def rows() -> list[str]:
    """One row for each benchmark that has a result."""
    found = []
    for bench, question, answer in LINES:
        file = RESULTS / f"{bench}.json"
        if file.exists():
            found.append(f"| {question} | {answer(msgspec.json.decode(file.read_bytes()))} | `python -m benchmarks.{bench}` |")
    return found


def main() -> None:
    text = README.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    table = "\n".join(("| question | result | repeat it with |", "|---|---|---|", *rows()))
    README.write_text(f"{before}{BEGIN}{table}\n{END}{after}")


if __name__ == "__main__":
    main()
