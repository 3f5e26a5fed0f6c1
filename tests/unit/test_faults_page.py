"""docs/faults.md names the test of each fault; each test is there, and runs when the page says."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "faults.md").read_text()
NAMED = re.findall(r"`(test_\w+)`( \(slow\))?", TEXT)


def test_every_fault_of_the_list_has_a_row_with_a_test() -> None:
    rows = {row.split("|")[1].strip(): row for row in TEXT.splitlines() if row.startswith("| F")}
    assert list(rows) == [f"F{number}" for number in range(1, 18)]
    assert all("`test_" in row for row in rows.values())


def test_every_test_that_is_named_exists_and_is_slow_where_it_is_said() -> None:
    files = [path.read_text() for path in (ROOT / "tests").rglob("test_*.py")]
    found: dict[str, bool] = {}
    for text in files:
        for decorators, name in re.findall(r"((?:^@.*\n)*)^(?:async )?def (test_\w+)", text, re.MULTILINE):
            found[name] = "pytest.mark.slow" in decorators
    assert [name for name, _ in NAMED if name not in found] == []
    assert [name for name, slow in NAMED if found[name] is not bool(slow)] == []
