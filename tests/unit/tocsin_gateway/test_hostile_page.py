"""docs/hostile-inputs.md: all twenty are there, and every test that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[2]
ROWS = re.findall(r"^\| (H\d+) \|.*\| ([^|]+) \|$", (TESTS.parent / "docs/hostile-inputs.md").read_text(), re.MULTILINE)


def test_all_twenty_are_there() -> None:
    assert [number for number, _ in ROWS] == [f"H{number}" for number in range(1, 21)]


@pytest.mark.parametrize(("number", "tests"), ROWS)
def test_every_test_that_the_page_names_is_there(number: str, tests: str) -> None:
    names = re.findall(r"`([^`:]+)::(\w+)`", tests)
    assert names, f"{number} has no test"
    for path, name in names:
        source = (TESTS / path.replace("gateway/", "integration/tocsin_gateway/", 1) if path.startswith("gateway/") else TESTS / path).read_text()
        assert re.search(rf"def {name}\(", source), f"{path}::{name}"
