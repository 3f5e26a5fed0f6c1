"""AsyncAPI's own JSON schema: 3.0.0-without-$id.json of @asyncapi/specs 6.11.1, as it came, under the Apache License 2.0 beside it."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema


@cache
def _validator() -> Any:
    return jsonschema.Draft7Validator(json.loads((Path(__file__).parent / "3.0.0.json").read_text(encoding="utf-8")))


def faults(document: Any) -> list[str]:
    """Where the document is none of AsyncAPI 3.0.0; empty where it is one."""
    return [f"{error.json_path}: {error.message[:200]}" for error in _validator().iter_errors(document)]
