"""Tests that need PgBouncer are left out where it is not installed, and the report says so."""

from __future__ import annotations

import pytest

from tests.support import pgbouncer

NEEDS_PGBOUNCER = "pgbouncer"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NEEDS_PGBOUNCER}: runs a real PgBouncer (apt-get install pgbouncer)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if pgbouncer.program() is None:
        without = [item for item in items if item.get_closest_marker(NEEDS_PGBOUNCER)]
        items[:] = [item for item in items if item not in without]
        config.hook.pytest_deselected(items=without)
        if without:
            reporter = config.pluginmanager.get_plugin("terminalreporter")
            reporter.write_line(f"left out, since PgBouncer is not installed: {', '.join(item.name for item in without)}")
