"""Named queries in `.sql` files: each begins with a line `-- name: some_name`. Pure but for reading package data."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Final

_NAME: Final = re.compile(r"^-- name: (\w+)[^\n]*\n", re.MULTILINE)


def load_queries(package: str, file: str) -> dict[str, str]:
    """The queries of `file` in `package` by name, in the file's order; text before the first name is ignored."""
    text = (files(package) / file).read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}
