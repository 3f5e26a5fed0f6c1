"""Where Prometheus is; tests that need it are left out where it is not installed, and the report's head says so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

NEEDS_PROMETHEUS = "prometheus"
# Debian's package, unpacked: apt-get download prometheus && dpkg -x prometheus_*.deb .matrix/prometheus
UNPACKED = Path(__file__).parents[3] / ".matrix/prometheus/usr/bin"


def program(name: str) -> str | None:
    """`prometheus` or `promtool`, on the PATH or unpacked beside the other versions' servers."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}{os.pathsep}{UNPACKED}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NEEDS_PROMETHEUS}: runs the real Prometheus and promtool (apt-get install prometheus)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if program("prometheus") and program("promtool"):
        return
    without = [item for item in items if item.get_closest_marker(NEEDS_PROMETHEUS)]
    items[:] = [item for item in items if item not in without]
    config.hook.pytest_deselected(items=without)
    if without:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"left out, since Prometheus is not installed: {', '.join(item.name for item in without)}")


@pytest.fixture
def promtool() -> str:
    return _required("promtool")


@pytest.fixture
def prometheus() -> str:
    return _required("prometheus")


def _required(name: str) -> str:
    found = program(name)
    assert found is not None, "the tests that ask for it are left out where there is none"
    return found
