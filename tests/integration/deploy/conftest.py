"""Prometheus and its promtool, for the tests that are marked prometheus."""

from __future__ import annotations

import pytest

from tests.support import programs


@pytest.fixture
def promtool() -> str:
    return _required("promtool")


@pytest.fixture
def prometheus() -> str:
    return _required("prometheus")


def _required(name: str) -> str:
    found = programs.prometheus(name)
    assert found is not None, "the tests that ask for it are left out where there is none"
    return found
