"""What an audit costs the source's writers: the p99 of their commits with and without audits one after another, at the service's own pace.

One load runs all the time, and slices of it with and without the audit take turns, so that a noisy machine disturbs both alike. The slices
without it are two groups by turns: what those differ by is noise, and is printed beside what the audit makes. In a fourth kind of slices a process
that touches no table burns as much CPU as the audit takes of this machine, in pieces of the same length: what that makes is the floor, for source,
replica, checker and load share the cores here.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import os
import random
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg

from benchmarks.drift import FILL, TABLE
from benchmarks.report import quantile, report
from tests.support.pipeline import Pipeline, pipeline
from tocsin_check.auditing.audit import TableAudit
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog.findings import RETAINED_WARNING
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.pace import MOST_ACTIVE, MOST_LAG, Pace
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.watch.checker import SHARE, Checker

SCRIPT = "\\set id random(1, {rows})\nUPDATE t SET a = a + 1 WHERE id = :id;\n"
WRITERS = 4
NOTICED = 4.0
"""Seconds until the audit knows that others write."""
SETTLING = 0.15
"""Seconds at the beginning of each slice that count for neither side."""
TURNS = ("without", "with", "without too", "burning")


class Turns:
    """Going from SIGUSR1 on, halted from SIGUSR2 on. To stop the whole process would count a read that is cut in two as a slow one."""

    def __init__(self) -> None:
        self.going, self.halted = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGUSR1, self._go)
        loop.add_signal_handler(signal.SIGUSR2, self._halt)

    def _go(self) -> None:
        self.halted.clear()
        self.going.set()

    def _halt(self) -> None:
        self.going.clear()
        self.halted.set()

    async def rest(self, seconds: float) -> None:
        """So much of the time in which it is going; it is going when this returns."""
        await self.going.wait()
        while seconds > 0:
            begun = time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.halted.wait()
            seconds -= time.monotonic() - begun
            await self.going.wait()


class PaceInTurns(Pace):
    """Its rests stand still while it is halted, so that no read that was due then begins with the next slice, or beside it."""

    turns: Turns

    async def rest(self) -> None:
        await self.turns.rest(self.due - time.monotonic())


def cpu_seconds(*pids: int) -> float:
    return sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids) / 1e9


async def audit_for_ever(source_url: str, replica_url: str, share: float) -> None:
    """One full audit after the other, until the process is killed; after each block a line with the rows, the blocks and the CPU seconds so far."""
    pace = PaceInTurns(share, active=MOST_ACTIVE, lag=MOST_LAG, retained=RETAINED_WARNING, gives_way=True)
    pace.turns = Turns()
    pace.turns.going.set()
    rows = blocks = 0

    async def on_block(outcome: Outcome) -> None:
        nonlocal blocks
        blocks += 1
        print(rows + outcome.rows, blocks, cpu_seconds(*pids, os.getpid()), flush=True)

    async with open_sides(source_url, replica_url) as sides:
        pids = [connection.get_server_pid() for connection in (sides.source, sides.replica, sides.fence._marker)]  # noqa: SLF001
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        while True:
            with contextlib.suppress(Lagging):
                rows += (await TableAudit(sides, table, pace=pace, patience=20, on_block=on_block).run()).rows


async def burn_for_ever() -> None:
    """Each line of the standard input has the CPU seconds of a piece, and how many pieces a second."""
    going = Turns().going
    print(flush=True)
    while True:
        await going.wait()
        piece, rate = map(float, (await asyncio.to_thread(sys.stdin.readline)).split())
        while going.is_set():
            await asyncio.sleep(random.expovariate(rate))
            begun = time.thread_time()
            while going.is_set() and time.thread_time() - begun < piece:
                pass


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


@dataclass
class Auditor:
    """The process that audits, and what it has told: rows, blocks and CPU seconds so far."""

    process: asyncio.subprocess.Process
    told: tuple[int, int, float] = (0, 0, 0.0)

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            rows, blocks, cpu = line.split()
            self.told = (int(rows), int(blocks), float(cpu))


async def take_turns(auditor: Auditor, burner: asyncio.subprocess.Process, slices: int, seconds: float) -> list[tuple[str, float]]:
    """(side, when it began) of each slice; the auditor begins no block in those without."""
    begun: list[tuple[str, float]] = []
    _, blocks, cpu = auditor.told
    assert burner.stdin is not None
    for number in range(slices):
        side = TURNS[number % len(TURNS)]
        if side == "burning":
            pieces = 2 * max(auditor.told[1] - blocks, 1)  # a block is read on both sides
            audited = seconds * sum(side == "with" for side, _ in begun)
            burner.stdin.write(f"{(auditor.told[2] - cpu) / pieces} {pieces / audited}\n".encode())
        for process, works in ((auditor.process, side == "with"), (burner, side == "burning")):
            process.send_signal(signal.SIGUSR1 if works else signal.SIGUSR2)
        begun.append((side, time.time()))
        await asyncio.sleep(seconds)
    return [*begun, ("end", time.time())]


def commits(folder: Path) -> Iterator[tuple[float, float]]:
    """(when it was due, milliseconds from then until it was committed) of each commit."""
    for log in folder.glob("pgbench_log.*"):
        for line in log.read_text().splitlines():
            _, _, taken, _, whole, micros, *_ = line.split()
            yield int(whole) + int(micros) / 1e6 - int(taken) / 1e6, int(taken) / 1000


async def itself(*arguments: str) -> asyncio.subprocess.Process:
    """This module once more, as a process of its own."""
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.drift_gentle", *arguments),
        cwd=Path(__file__).parent.parent,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )


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
    auditor, burner = Auditor(await itself("--audit", running.source_url, running.replica_url, "--share", str(share))), await itself("--burn")
    for process in (auditor.process, burner):
        assert process.stdout is not None
        await process.stdout.readline()  # it has begun
    async with asyncio.TaskGroup() as group:
        listening = group.create_task(auditor.listen())
        writing = await load(running, folder, rate, slices * seconds + 2 + NOTICED)
        await asyncio.sleep(NOTICED)
        before = auditor.told[0]
        turns = await take_turns(auditor, burner, slices, seconds)
        audited = auditor.told[0] - before
        for process in (auditor.process, burner):
            process.kill()
            await process.wait()
        await listening
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
    figures = {"rows": rows, "rate": rate, "share": share, "rows_per_second": round(audited / (seconds * slices / len(TURNS)))}
    for name, part in (("p99", 0.99), ("p50", 0.5)):
        figures[f"ratio_{name}"] = round(quantile(found["with"], part) / quantile(quiet, part), 3)
        figures[f"floor_{name}"] = round(quantile(found["burning"], part) / quantile(quiet, part), 3)
        figures[f"noise_{name}"] = round(quantile(found["without too"], part) / quantile(found["without"], part), 3)
    report("drift_gentle", lines, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rate", type=int, default=400, help="commits a second")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each slice")
    parser.add_argument("--slices", type=int, default=160)
    parser.add_argument("--share", type=float, default=SHARE)
    parser.add_argument("--audit", nargs=2, metavar=("SOURCE", "REPLICA"), help=argparse.SUPPRESS)
    parser.add_argument("--burn", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.burn:
        asyncio.run(burn_for_ever())
    elif given.audit:
        source_url, replica_url = given.audit
        asyncio.run(audit_for_ever(source_url, replica_url, given.share))
    else:
        asyncio.run(main(given.rows, given.rate, given.slices, given.seconds, given.share))
