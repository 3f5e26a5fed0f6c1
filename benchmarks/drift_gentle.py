"""What an audit costs the source's writers: the p99 of their commits with and without audits one after another, at the service's own pace.

One load runs all the time, and slices of it with and without the audit take turns, so that a noisy machine disturbs both alike. The slices
without it are two groups by turns: what those differ by is noise, and is printed beside what the audit makes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from benchmarks.drift import FILL, TABLE
from benchmarks.report import quantile, report
from tests.support.pipeline import Pipeline, pipeline
from tocsin_check.audit import Outcome, TableAudit
from tocsin_check.checker import SHARE, Checker
from tocsin_check.fence import Lagging
from tocsin_check.findings import RETAINED_WARNING
from tocsin_check.pace import MOST_ACTIVE, MOST_LAG, Pace
from tocsin_check.replicate import replicate
from tocsin_check.sides import open_sides
from tocsin_check.table import Comparable

SCRIPT = "\\set id random(1, {rows})\nUPDATE t SET a = a + 1 WHERE id = :id;\n"
WRITERS = 4
SETTLING = 0.15
"""Seconds at the beginning of each slice that count for neither side."""
TURNS = ("without", "with", "without too", "with")


async def audit_for_ever(source_url: str, replica_url: str, share: float) -> None:
    """One full audit after the other, until the process is killed; after each block a line with the rows so far.

    SIGUSR2 makes it wait before the next block, SIGUSR1 go on. To stop the whole process would count a read that is cut in two as a slow one.
    """
    going = asyncio.Event()
    going.set()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, going.set)
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, going.clear)
    pace = Pace(share, active=MOST_ACTIVE, lag=MOST_LAG, retained=RETAINED_WARNING)
    rows = 0

    async def on_block(outcome: Outcome) -> None:
        print(rows + outcome.rows, flush=True)
        await going.wait()

    async with open_sides(source_url, replica_url) as sides:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        while True:
            with contextlib.suppress(Lagging):
                rows += (await TableAudit(sides, table, pace=pace, patience=20, on_block=on_block).run()).rows


async def load(running: Pipeline, folder: Path, rate: int, seconds: float) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        str(running.source.bin / "pgbench"),
        *("-n", "-M", "prepared", "-f", str(folder / "load.sql"), "-c", str(WRITERS), "-j", "1", "-R", str(rate)),
        *("-T", str(int(seconds) + 1), "-l", running.source_url),
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"LD_LIBRARY_PATH": str(running.source.bin.parent / "lib")},
    )


async def take_turns(auditor: asyncio.subprocess.Process, slices: int, seconds: float) -> list[tuple[str, float]]:
    """(side, when it began) of each slice; the auditor begins no block in those without."""
    begun = []
    for number in range(slices):
        side = TURNS[number % len(TURNS)]
        os.kill(auditor.pid, signal.SIGUSR1 if side == "with" else signal.SIGUSR2)
        begun.append((side, time.time()))
        await asyncio.sleep(seconds)
    return [*begun, ("end", time.time())]


def commits(folder: Path) -> Iterator[tuple[float, float]]:
    """(when it was due, milliseconds from then until it was committed) of each commit."""
    for log in folder.glob("pgbench_log.*"):
        for line in log.read_text().splitlines():
            _, _, taken, _, whole, micros, *_ = line.split()
            yield int(whole) + int(micros) / 1e6 - int(taken) / 1e6, int(taken) / 1000


def by_side(folder: Path, slices: list[tuple[str, float]]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {side: [] for side in TURNS}
    for due, taken in commits(folder):
        for (side, begun), (_, ended) in itertools.pairwise(slices):
            if begun + SETTLING <= due < ended:
                found[side].append(taken)
    return found


async def measure(running: Pipeline, rows: int, rate: int, slices: int, seconds: float, share: float) -> tuple[dict[str, list[float]], int]:
    """Milliseconds of the commits on each side, and the rows that were audited."""
    folder = running.folder / "commits"
    folder.mkdir()
    (folder / "load.sql").write_text(SCRIPT.format(rows=rows))
    auditor = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.drift_gentle", "--audit", running.source_url, running.replica_url, "--share", str(share)),
        cwd=Path(__file__).parent.parent,
        stdout=asyncio.subprocess.PIPE,
    )
    assert auditor.stdout is not None
    await auditor.stdout.readline()  # it has begun
    writing = await load(running, folder, rate, slices * seconds + 2)
    await asyncio.sleep(1)
    turns = await take_turns(auditor, slices, seconds)
    auditor.kill()
    audited = int((await auditor.stdout.read()).split()[-1])
    await auditor.wait()
    _, errors = await writing.communicate()
    assert writing.returncode == 0, errors.decode()
    return by_side(folder, turns), audited


async def main(rows: int, rate: int, slices: int, seconds: float, share: float) -> None:
    async with pipeline(replica=True) as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute(TABLE)
        await source.execute(FILL.format(rows=rows))
        await replicate(source_url=running.source_url, replica_url=running.replica_url, tables=["t"], patience=600)
        for url in (running.source_url, running.replica_url):
            connection = await asyncpg.connect(url)
            await connection.execute("VACUUM ANALYZE t")
            await connection.execute("CHECKPOINT")
            await connection.close()
        await source.close()
        found, audited = await measure(running, rows, rate, slices, seconds, share)
    quiet = found["without"] + found["without too"]
    lines = [
        {"commits": side, "number": len(taken), "p50 ms": quantile(taken, 0.5), "p99 ms": quantile(taken, 0.99), "mean ms": statistics.mean(taken)}
        for side, taken in found.items()
    ]
    figures = {"rows": rows, "rate": rate, "share": share, "rows_per_second": round(audited / (seconds * slices / 2))}
    for name, part in (("p99", 0.99), ("p50", 0.5)):
        figures[f"ratio_{name}"] = round(quantile(found["with"], part) / quantile(quiet, part), 3)
        figures[f"noise_{name}"] = round(quantile(found["without too"], part) / quantile(found["without"], part), 3)
    report("drift_gentle", lines, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rate", type=int, default=400, help="commits a second")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each slice")
    parser.add_argument("--slices", type=int, default=80)
    parser.add_argument("--share", type=float, default=SHARE)
    parser.add_argument("--audit", nargs=2, metavar=("SOURCE", "REPLICA"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.audit:
        source_url, replica_url = given.audit
        asyncio.run(audit_for_ever(source_url, replica_url, given.share))
    else:
        asyncio.run(main(given.rows, given.rate, given.slices, given.seconds, given.share))
