"""The house's rules that a program can check: who imports whom, who reads the environment, how tasks are made."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("tocsin", "services/listener/tocsin_listener", "services/gateway/tocsin_gateway", "services/replicator-check/tocsin_check")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LONGEST = 400
ENVIRONMENT = {"environ", "environb", "getenv", "putenv"}
BARE_TASKS = {"ensure_future", "gather", "wait_for"}
TENACITY_ROOM = ROOT / "tocsin/retry.py"
SETTINGS_ROOM = ROOT / "tocsin/settings.py"


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in MODULES:
        yield path, ast.parse(path.read_text())


def attributes(tree: ast.Module, module: str, names: set[str]) -> list[str]:
    """Uses of `module.name`, and `from module import name`, with their lines."""
    used = [
        f"{node.lineno}: {module}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module and node.attr in names
    ]
    imported = [
        f"{node.lineno}: from {module} import {alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == module
        for alias in node.names
        if alias.name in names
    ]
    return used + imported


def offences(module: str, names: set[str], *allowed: Path) -> list[str]:
    return [f"{path.relative_to(ROOT)}:{use}" for path, tree in trees() if path not in allowed for use in attributes(tree, module, names)]


def test_there_is_something_to_check() -> None:
    assert len(MODULES) > 30


def test_the_import_contracts_hold() -> None:
    ran = subprocess.run([str(Path(sys.executable).parent / "lint-imports"), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_the_environment_is_read_in_one_module() -> None:
    assert offences("os", ENVIRONMENT, SETTINGS_ROOM) == []


def test_tasks_are_made_only_in_groups() -> None:
    """asyncio.create_task outside a group can fail unheard; gather and wait_for leave tasks behind when cancelled."""
    assert offences("asyncio", {"create_task", *BARE_TASKS}) == []


def test_tenacity_is_used_through_the_policies() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in trees()
        if path != TENACITY_ROOM
        for node in ast.walk(tree)
        if (isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tenacity"))
        or (isinstance(node, ast.Import) and any(alias.name.startswith("tenacity") for alias in node.names))
    ]
    assert found == []


def test_nothing_is_printed_by_a_service() -> None:
    """A service logs; only the command's verbs write to the terminal, through typer or rich."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert found == []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_fits_on_a_few_screens_and_says_what_it_is(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)) is not None


def test_the_shared_contract_needs_no_driver() -> None:
    """A client can use subjects, positions and events where asyncpg, nats and FastAPI are not installed."""
    code = (
        "import sys; import tocsin.event, tocsin.subject, tocsin.position, tocsin.duration, tocsin.errors; "
        "print([name for name in ('asyncpg', 'nats', 'fastapi', 'tenacity', 'uvicorn') if name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
