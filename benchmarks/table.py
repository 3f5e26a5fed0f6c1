"""Write the last results into the README's table, and every figure of them into docs/measurements.md: python -m benchmarks.table"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from benchmarks.report import RESULTS

Figures = dict[str, Any]

ROOT: Final = Path(__file__).parent.parent
BEGIN, END = "<!-- figures: begin -->\n", "<!-- figures: end -->"


def _latency(f: Figures, program: str, rate: int) -> str:
    """p50 and p99 with 100 clients, in milliseconds."""
    return " / ".join(f"{f[f'{program} {rate}/s 100 clients {q} ms']:,.1f}" for q in ("p50", "p99"))


def _latency_of_rivals(f: Figures, rate: int) -> str:
    told = f"bare LISTEN app {_latency(f, 'bare LISTEN app', rate)}"
    return told + (f", pg-sse {_latency(f, 'pg-sse', rate)}" if f"pg-sse {rate}/s 100 clients p50 ms" in f else "")


HEADLINES: Final[list[tuple[str, str, Callable[[Figures], str], Callable[[Figures], str]]]] = [
    (
        "start",
        "`make up` to the first event at a client, once installed",
        lambda f: f"{f['fresh_seconds']} s",
        lambda f: f"{f['again_seconds']} s with data that exist",
    ),
    *(
        (
            "latency",
            f"INSERT sent to 100 WebSocket clients, {rate:,} commits/s, p50 / p99 ms",
            lambda f, rate=rate: _latency(f, "tocsin", rate),
            lambda f, rate=rate: _latency_of_rivals(f, rate),
        )
        for rate in (100, 1000)
    ),
    (
        "capture",
        "commits/s of 8 writers, of a bare table's, capture alone",
        lambda f: f"{f['ratio_no_listener_8']}",
        lambda f: f"the usual outbox trigger, which nobody reads: {f['ratio_outbox_8']}",
    ),
    (
        "capture",
        "the same with listener and NATS on the same 2 cores, every event in the stream",
        lambda f: f"{f['ratio_to_nats_8']}",
        lambda f: f"the usual row NOTIFY bridge to NATS: {f['ratio_to_nats_8'] / f['ratio_notify_to_nats_8']:.2f}",
    ),
    (
        "capture",
        "the same with gateway and a client too",
        lambda f: f"{f['ratio_bare_8']}",
        lambda f: f"32 writers: {f['ratio_bare_32']}",
    ),
    (
        "relay",
        "events/s from the journal to acknowledged in JetStream; with `sync_interval: always`",
        lambda f: f"{f['default events/s']:,}; {f['sync always events/s']:,}",
        lambda f: f"{f['default times nats-outbox']} and {f['sync always times nats-outbox']} times nats-outbox",
    ),
    (
        "fanout",
        "WebSocket messages/s to 100 and to 1,000 clients",
        lambda f: f"{f['ratio_nats_server_100']} and {f['ratio_nats_server_1000']} times nats-server's own WebSocket",
        lambda f: f"{f['ratio_send_json_loop_100']} and {f['ratio_send_json_loop_1000']} times a `send_json` loop",
    ),
    ("connections", "memory of an idle subscribed client", lambda f: f"{f['tocsin_kib']} KiB", lambda f: f"nats-server {f['nats_server_kib']} KiB"),
    (
        "soak",
        "random writers, and every few seconds a kill -9 of a listener, NATS or PostgreSQL",
        lambda f: (
            f"{f['stream_lost'] + f['client_lost']} lost, {f['stream_repeated'] + f['client_repeated']} repeated, "
            f"{f['stream_out_of_order'] + f['client_out_of_order']} out of order"
        ),
        lambda f: f"{f['events']:,} events, {f['kills']} kills, {f['minutes']:.0f} minutes",
    ),
    (
        "drift",
        "a full audit of a million rows",
        lambda f: f"{f['rows_per_second'] / 1e6:.1f} million rows/s",
        lambda f: (
            f"{f['ratio_copy']} times a COPY binary of it, {f['ratio_copy_drifted']} with 100 drifted rows; "
            f"reladiff takes {f['ratio_reladiff']} and {f['ratio_reladiff_drifted']} times as long"
        ),
    ),
    (
        "drift_incremental",
        "an audit after 1,000 of 5 million rows changed",
        lambda f: f"{f['seconds'] * 1000:.0f} ms",
        lambda f: f"{100 * f['ratio_full']:.1f} % of the full audit",
    ),
    (
        "drift_gentle",
        "the source's commits while audits run one after another, p50 / p99",
        lambda f: f"{f['ratio_p50']:.2f} / {f['ratio_p99']:.2f} times those without",
        lambda f: f"a process that burns as much: {f['floor_p50']:.2f} / {f['floor_p99']:.2f}; noise: {f['noise_p50']:.2f} / {f['noise_p99']:.2f}",
    ),
]

PAGES: Final = {
    "start": "From `make up` to the first event",
    "latency": "From an INSERT's sending to a WebSocket client, its commit included (`answered`: from the commit's answer)",
    "capture": "What capture and the whole pipeline leave of a bare table's commits",
    "growth_capture": "How that grows: commits/s of bare with the listener running, and seconds until the stream had the rest",
    "bulk": "One statement that touches a million rows, against the same without capture",
    "relay": "From the journal to acknowledged in JetStream",
    "soak": "Random writers, and every few seconds a kill -9 of a listener, NATS or PostgreSQL",
    "fanout": "WebSocket messages/s against nats-server's own WebSocket listener and a `send_json` loop",
    "connections": "Memory of an idle subscribed client",
    "replay": "Live clients while others replay",
    "growth_gateway": "µs of the gateway's processor for an event, as it grows",
    "drift": "A full audit",
    "growth_drift": "How a full audit grows: seconds",
    "drift_incremental": "An audit after some rows changed",
    "drift_gentle": "The source's commits while audits run one after another at the default pace, against those without",
}
"""Each benchmark with a page's section, in this order."""


def _result(bench: str) -> Figures | None:
    file = RESULTS / f"{bench}.json"
    return msgspec.json.decode(file.read_bytes()) if file.exists() else None


def headlines() -> list[str]:
    """The README's table: one row for each headline that has a result."""
    rows = ["| question | Tocsin | beside it | repeat it with |", "|---|---|---|---|"]
    for bench, question, answer, beside in HEADLINES:
        if (figures := _result(bench)) is not None:
            rows.append(f"| {question} | {answer(figures)} | {beside(figures)} | `python -m benchmarks.{bench}` |")
    return rows


def _told(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def measurements() -> str:
    """The page: a section for each benchmark that has a result, with all of its figures."""
    sections = [(ROOT / "benchmarks" / "measurements.md").read_text()]
    for bench, question in PAGES.items():
        if (figures := _result(bench)) is not None:
            rows = "\n".join(f"| {name.replace('_', ' ')} | {_told(value)} |" for name, value in figures.items() if name != "bench")
            sections.append(f"## {question}\n\n`python -m benchmarks.{bench}`\n\n| figure | value |\n|---|---:|\n{rows}\n")
    return "\n".join(sections)


def main() -> None:
    readme = ROOT / "README.md"
    before, rest = readme.read_text().split(BEGIN)
    readme.write_text("".join((before, BEGIN, "\n".join(headlines()), "\n", END, rest.split(END)[1])))
    (ROOT / "docs" / "measurements.md").write_text(measurements())


if __name__ == "__main__":
    main()
