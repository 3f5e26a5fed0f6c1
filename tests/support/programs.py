"""Programs that some tests run and that not every machine has: their tests are left out there, and the report's head says which."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

# Debian's package, unpacked: apt-get download prometheus && dpkg -x prometheus_*.deb .matrix/prometheus
_UNPACKED: Final = Path(__file__).parents[2] / ".matrix/prometheus/usr/bin"


def nats_cli() -> str | None:
    """The program `nats`, on the PATH or where `go install` puts it."""
    gopath = Path(os.environ.get("GOPATH", Path.home() / "go"))
    return shutil.which("nats") or shutil.which("nats", path=str(gopath / "bin"))


def pgbouncer() -> str | None:
    """Also where sbin is not on the PATH."""
    return shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


def prometheus(name: str = "prometheus") -> str | None:
    """`prometheus` or `promtool`, on the PATH or unpacked beside the other versions' servers."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}{_UNPACKED}")


@dataclass(frozen=True)
class Program:
    """`marker` is on the tests that run it; `found` says whether it is there, `source` where it comes from."""

    marker: str
    name: str
    source: str
    found: Callable[[], bool]


PROGRAMS: Final = (
    Program("nats_cli", "the NATS CLI", "go install github.com/nats-io/natscli/nats@latest", lambda: nats_cli() is not None),
    Program("pgbouncer", "PgBouncer", "apt-get install pgbouncer", lambda: pgbouncer() is not None),
    Program("prometheus", "Prometheus with promtool", "apt-get install prometheus", lambda: None not in (prometheus(), prometheus("promtool"))),
    Program("systemd", "systemd-analyze", "systemd 250 or later", lambda: shutil.which("systemd-analyze") is not None),
)


def add_markers(config: pytest.Config) -> None:
    for program in PROGRAMS:
        config.addinivalue_line("markers", f"{program.marker}: runs the real {program.name} ({program.source})")


def missing() -> list[str]:
    """A line for each that is not there."""
    return [f"left out: tests with the marker {program.marker}, since {program.name} is not installed ({program.source})" for program in _absent()]


def leave_out(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests of what is not there."""
    markers = {program.marker for program in _absent()}
    without = [item for item in items if any(mark.name in markers for mark in item.iter_markers())]
    if without:
        items[:] = [item for item in items if item not in without]
        config.hook.pytest_deselected(items=without)


def _absent() -> list[Program]:
    return [program for program in PROGRAMS if not program.found()]
