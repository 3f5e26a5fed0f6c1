"""What the documents say is there, is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.support.settings_page import PAGE, page
from tocsin.cli.main import VERBS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")
COMMAND = re.compile(r"^\s*(?:\$ )?tocsin ([a-z]+)", re.MULTILINE)
INLINE = re.compile(r"`tocsin ([a-z]+)")
VARIABLE = re.compile(r"TOCSIN_[A-Z_]*[A-Z]")
OPERATOR = r"(?:eq|ne|lt|lte|gt|gte|in|like|null)\b"
CONDITION = re.compile(rf"""(?=--where '?(\w+)[=<>!~]|\b(\w+)"?: \{{ ?"?{OPERATOR}|%22(\w+)%22%3A%7B%22{OPERATOR})""")
NOT_SETTINGS = {"TOCSIN_SHOP", "TOCSIN_SHOP_REVOKED"}  # streams


def test_the_page_of_settings_is_the_settings() -> None:
    assert PAGE.read_text() == page(), "make docs"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    targets = [target.partition("#")[0] for target in LINK.findall(path.read_text()) if not target.startswith(("http://", "https://", "#", "mailto:"))]
    assert [target for target in targets if not (path.parent / target).exists()] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_verbs_targets_and_variables_exist(path: Path) -> None:
    text = path.read_text()
    verbs = {*COMMAND.findall(text), *INLINE.findall(text)}
    assert verbs <= set(VERBS), verbs - set(VERBS)
    known = set(re.findall(r"`(TOCSIN_[A-Z_]+)`", page()))
    used = set(VARIABLE.findall(text)) - NOT_SETTINGS
    assert all(name in known or name.startswith("TOCSIN_TEST_") for name in used), used - known


def test_make_has_every_target_that_the_documents_name() -> None:
    listed = subprocess.run(["make", "-C", str(ROOT), "help"], capture_output=True, text=True, check=True).stdout
    targets = set(re.findall(r"make ([a-z-]+) ", listed))
    named = {name for path in PAGES for name in re.findall(r"(?:`|^)make ([a-z-]+)", path.read_text(), re.MULTILINE)}
    assert named <= targets, named - targets


def test_the_readme_has_the_two_commands_and_a_first_subscription_of_each_kind() -> None:
    text = (ROOT / "README.md").read_text()
    for needed in ("make up", "make test", "curl -N", "client.js", "tocsin.client", "wscat", "websocat", "nats sub", "tocsin install", "tocsin replicate"):
        assert needed in text, needed


@pytest.mark.parametrize("name", ["README.md", "docs/clients.md", "docs/subscriptions.md", "docs/security.md"])
def test_every_condition_in_an_example_names_a_column_of_the_demo_s_orders(name: str) -> None:
    """Else who copies it is answered `bad-where`."""
    table = re.search(r"EXISTS orders \((.*?)^\);", (ROOT / "tocsin/stack/shop.sql").read_text(), re.DOTALL | re.MULTILINE)
    assert table is not None
    named = {column for columns in CONDITION.findall((ROOT / name).read_text()) for column in columns if column}
    assert named, "no example"
    assert named <= set(re.findall(r"^    (\w+) ", table[1], re.MULTILINE)), named
