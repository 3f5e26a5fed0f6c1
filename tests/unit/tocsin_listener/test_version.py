"""The SQL that `tocsin install` runs changes only together with its VERSION: else an installed database would never be brought up to date."""

from __future__ import annotations

import hashlib
from importlib.resources import files

from tocsin_listener.install import SCRIPTS, VERSION

DIGESTS = {5: "3521f7eace96a7b7"}
"""Of the scripts of each version. A version that a release has is never changed again: raise VERSION, keep its SQL in tests/support/upgrades."""


def digest() -> str:
    folder = files("tocsin_listener") / "sql"
    return hashlib.sha256("".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS).encode()).hexdigest()[:16]


def test_installed_sql_changes_only_with_its_version() -> None:
    assert DIGESTS.get(VERSION) == digest(), (
        f"the SQL that is installed has changed: raise VERSION in tocsin_listener/install.py, copy the former SQL into tests/support/upgrades,"
        f" and note {VERSION + 1}: {digest()!r} here (only while version {VERSION} is in no release: change its digest here)"
    )
