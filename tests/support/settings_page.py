"""docs/settings.md, made from the settings themselves: `make docs` writes it, a test compares it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

from pydantic import ByteSize, SecretStr

from tocsin.settings import Settings

PAGE = Path(__file__).parents[2] / "docs/settings.md"

HEAD = """# Settings

<!-- made by `make docs` from tocsin/settings.py -->

Each is an environment variable, a line in a file `.env` in the working folder, or, where a verb has it, a flag (`TOCSIN_DATABASE_URL` is
`--database-url`). A flag wins over the environment, and the environment over the file. An invalid value is named with what is
allowed, and the process ends with 2.

Sizes are bytes, or such as `900KiB`; durations are such as `90s`, `5m`, `24h`, `7d`; lists are separated by commas.

| variable | default | what |
|---|---|---|
"""


def page() -> str:
    rows = (f"| `TOCSIN_{name.upper()}` | {_default(field.default)} | {_escaped(field.description or '')} |" for name, field in Settings.model_fields.items())
    return HEAD + "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if value is None or value == () or isinstance(value, SecretStr):
        return ""
    if isinstance(value, timedelta):
        return f"`{value.days}d`" if value >= timedelta(days=1) else f"`{value.total_seconds():g}s`"
    if isinstance(value, ByteSize):
        return f"`{value.human_readable().replace('.0', '')}`"
    return f"`{int(value)}`" if isinstance(value, bool) else f"`{value}`"


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


if __name__ == "__main__":
    PAGE.write_text(page())
