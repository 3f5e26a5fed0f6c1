"""Where systemd-analyze is; the test that needs it is left out where there is none, and the report's head says so."""

from __future__ import annotations

import shutil

import pytest

NEEDS_SYSTEMD = "systemd"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NEEDS_SYSTEMD}: runs systemd-analyze (250 or later)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if shutil.which("systemd-analyze"):
        return
    without = [item for item in items if item.get_closest_marker(NEEDS_SYSTEMD)]
    items[:] = [item for item in items if item not in without]
    config.hook.pytest_deselected(items=without)
    if without:
        reporter = config.pluginmanager.get_plugin("terminalreporter")
        reporter.write_line(f"left out, since systemd is not installed: {', '.join(item.name for item in without)}")
