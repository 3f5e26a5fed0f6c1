"""The NATS CLI, for the tests that are marked nats_cli."""

from __future__ import annotations

import pytest

from tests.support.programs import nats_cli


@pytest.fixture
def cli() -> str:
    found = nats_cli()
    assert found is not None, "the tests that ask for it are left out where there is none"
    return found
