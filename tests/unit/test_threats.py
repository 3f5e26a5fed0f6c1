"""Each threat that docs/security.md names has its test, and the test exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/security.md").read_text()
LINES = re.findall(r"^\| (\d+) \|.*$", PAGE, re.MULTILINE)
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE)))


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_lines_are_numbered_and_each_names_a_test() -> None:
    assert [int(number) for number in LINES] == list(range(1, len(LINES) + 1))
    assert len(LINES) > 25
    without = [line for line in re.findall(r"^\| \d+ \|.*$", PAGE, re.MULTILINE) if not re.search(r"`tests/[\w/]+\.py::test_\w+`", line)]
    assert without == []


@pytest.mark.parametrize(("path", "name"), NAMED, ids=lambda value: value.rpartition("/")[2])
def test_each_named_test_exists(path: str, name: str) -> None:
    assert (ROOT / path).is_file(), path
    assert not name or name in functions(ROOT / path), f"{path} has no {name}"


def markers(path: Path, name: str) -> set[str]:
    """Those of a test by which `make test` leaves it out."""
    tree = ast.parse(path.read_text())
    own = [node.decorator_list for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name]
    whole = [[node.value] for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "pytestmark"]
    return set(re.findall(r"slow|containers|browser", " ".join(ast.unparse(part) for parts in own + whole for part in parts)))


def test_every_line_is_tried_with_each_run_but_those_that_need_a_postgres_with_tls() -> None:
    left_out = {}
    for line in re.findall(r"^\| \d+ \|.*$", PAGE, re.MULTILINE):
        found = {mark for path, name in re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", line) for mark in markers(ROOT / path, name)}
        if found:
            left_out[line.split("|")[1].strip()] = found
    assert left_out == {"1": {"containers"}, "3": {"containers"}}
