"""What an audit costs the source's writers: the p99 of their commits with and without one that never rests, at the service's own pace.

Windows with and without the audit take turns, so that a noisy machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import statistics
import sys
from pathlib import Path

import asyncpg

from benchmarks.drift import FILL, TABLE
from benchmarks.report import quantile, report
from tests.support.pipeline import Pipeline, pipeline
from tocsin_check.audit import TableAudit
from tocsin_check.checker import SHARE, Checker
from tocsin_check.fence import Lagging
from tocsin_check.findings import RETAINED_WARNING
from tocsin_check.pace import MOST_ACTIVE, MOST_LAG, Pace
from tocsin_check.replicate import replicate
from tocsin_check.sides import open_sides
from tocsin_check.table import Comparable

SCRIPT = "\\set id random(1, {rows})\nUPDATE t SET a = a + 1 WHERE id = :id;\n"
WRITERS = 4


async def audit_for_ever(source_url: str, replica_url: str, share: float) -> None:
    """One full audit after the other, until the process is killed."""
    pace = Pace(share, active=MOST_ACTIVE, lag=MOST_LAG, retained=RETAINED_WARNING)
    async with open_sides(source_url, replica_url) as sides:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        while True:
            with contextlib.suppress(Lagging):
                await TableAudit(sides, table, pace=pace).run()


async def commits(running: Pipeline, rows: int, rate: int, seconds: int) -> list[float]:
    """Milliseconds of each commit in a window."""
    folder = running.folder / "commits"
    folder.mkdir(exist_ok=True)
    (folder / "load.sql").write_text(SCRIPT.format(rows=rows))
    child = await asyncio.create_subprocess_exec(
        str(running.source.bin / "pgbench"),
        *("-n", "-f", str(folder / "load.sql"), "-c", str(WRITERS), "-j", "2", "-R", str(rate), "-T", str(seconds), "-l", running.source_url),
        cwd=folder,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env={"LD_LIBRARY_PATH": str(running.source.bin.parent / "lib")},
    )
    _, errors = await child.communicate()
    assert child.returncode == 0, errors.decode()
    taken = []
    for log in folder.glob("pgbench_log.*"):
        taken += [int(line.split()[2]) / 1000 for line in log.read_text().splitlines()]
        log.unlink()
    return taken


async def main(rows: int, rate: int, seconds: int, rounds: int, share: float) -> None:
    async with pipeline(replica=True) as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute(TABLE)
        await source.execute(FILL.format(rows=rows))
        await replicate(source_url=running.source_url, replica_url=running.replica_url, tables=["t"], patience=600)
        await source.execute("VACUUM ANALYZE t")
        await commits(running, rows, rate, 2)
        found: dict[str, list[list[float]]] = {"without": [], "with": []}
        for _ in range(rounds):
            found["without"].append(await commits(running, rows, rate, seconds))
            auditor = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "benchmarks.drift_gentle", "--audit", running.source_url, running.replica_url, "--share", str(share)),
                cwd=Path(__file__).parent.parent,
            )
            await asyncio.sleep(1.5)
            assert auditor.returncode is None
            found["with"].append(await commits(running, rows, rate, seconds))
            auditor.kill()
            await auditor.wait()
        await source.close()
    p99 = {name: statistics.median(quantile(window, 0.99) for window in windows) for name, windows in found.items()}
    p50 = {name: statistics.median(quantile(window, 0.5) for window in windows) for name, windows in found.items()}
    lines = [{"commits": name, "p50 ms": p50[name], "p99 ms": p99[name]} for name in found]
    figures = {
        "rows": rows,
        "rate": rate,
        "share": share,
        "ratio_p99": round(p99["with"] / p99["without"], 3),
        "ratio_p50": round(p50["with"] / p50["without"], 3),
    }
    report("drift_gentle", lines, figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=500_000)
    parser.add_argument("--rate", type=int, default=200, help="commits a second")
    parser.add_argument("--seconds", type=int, default=5, help="of each window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--share", type=float, default=SHARE)
    parser.add_argument("--audit", nargs=2, metavar=("SOURCE", "REPLICA"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.audit:
        asyncio.run(audit_for_ever(*given.audit, given.share))
    else:
        asyncio.run(main(given.rows, given.rate, given.seconds, given.rounds, given.share))
