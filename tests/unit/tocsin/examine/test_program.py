"""What doctor says of the settings alone."""

from __future__ import annotations

import pytest

from tocsin.cli.examine.program import examine
from tocsin.settings import load_settings


@pytest.mark.parametrize(("secret", "ok"), [(None, True), ("x" * 31, False), ("x" * 32, True), ("ü" * 16, True)])
def test_a_secret_that_can_be_guessed_is_named_and_not_shown(secret: str | None, ok: bool) -> None:
    found = [finding for finding in examine(load_settings(jwt_secret=secret)) if not finding.ok]
    assert (found == []) is ok
    assert all("TOCSIN_JWT_SECRET has 31 bytes" in finding.text and "openssl rand -hex 32" in str(finding.fix) for finding in found)
    assert not any("xxx" in finding.text for finding in found)
