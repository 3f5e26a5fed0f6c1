"""Durations as people write them: `90s`, `5m`, `24h`, `7d`. Pure."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Final

_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_FORM: Final = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)(ms|s|m|h|d|w)")


def parse_duration(text: str) -> timedelta:
    """Raises ValueError, with the forms that are allowed."""
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text[:40]!r} is not a duration; write a number and one of ms, s, m, h, d, w, such as 5m or 7d")
    try:
        return timedelta(seconds=float(match[1]) * _UNITS[match[2]])
    except OverflowError:
        raise ValueError(f"{text[:40]!r} is longer than a million years; write a number and one of ms, s, m, h, d, w, such as 5m or 7d") from None
