"""`tocsin up` with fresh data, installed, until it prints `ready`: an event went from a commit to a WebSocket client."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.report import report
from tocsin.stack.process import free_port

PORTS = ("GATEWAY_PORT", "LISTENER_PORT", "CHECK_PORT", "EMBEDDED_NATS_PORT", "EMBEDDED_SOURCE_PORT", "EMBEDDED_REPLICA_PORT")


async def once(data: Path) -> float:
    """Seconds from the command to its `ready` line."""
    environment = {**os.environ, **{f"TOCSIN_{name}": str(free_port()) for name in PORTS}}
    begin = time.perf_counter()
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tocsin.cli.main", "up", "--data", str(data)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment,
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(60):
            async for line in child.stdout:
                if line.startswith(b"ready"):
                    return time.perf_counter() - begin
        raise AssertionError("`tocsin up` ended before it was ready")
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)
        await child.communicate()


async def main(rounds: int) -> None:
    fresh, again = [], []
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp(prefix="tocsin-start-"))
        fresh.append(await once(folder / "data"))
        again.append(await once(folder / "data"))
        shutil.rmtree(folder, ignore_errors=True)
    rows = [{"": name, "median s": statistics.median(values), "slowest s": max(values)} for name, values in (("fresh data", fresh), ("data that exist", again))]
    report("start", rows, {"fresh_seconds": round(statistics.median(fresh), 2), "again_seconds": round(statistics.median(again), 2)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    asyncio.run(main(parser.parse_args().rounds))
