"""Where the NATS CLI is; tests that need it are left out where it is not installed, and the report's head says so."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

NEEDS_CLI = "nats_cli"


def nats_cli() -> str | None:
    """The program `nats`, on the PATH or where `go install` puts it."""
    gopath = Path(os.environ.get("GOPATH", Path.home() / "go"))
    return shutil.which("nats") or shutil.which("nats", path=str(gopath / "bin"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{NEEDS_CLI}: runs the real NATS CLI (go install github.com/nats-io/natscli/nats@latest)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if nats_cli() is None:
        without = [item for item in items if item.get_closest_marker(NEEDS_CLI)]
        items[:] = [item for item in items if item not in without]
        config.hook.pytest_deselected(items=without)
        if without:
            reporter = config.pluginmanager.get_plugin("terminalreporter")
            reporter.write_line(f"left out, since the NATS CLI is not installed: {', '.join(item.name for item in without)}")


@pytest.fixture
def cli() -> str:
    found = nats_cli()
    assert found is not None, "the tests that ask for it are left out where there is none"
    return found
