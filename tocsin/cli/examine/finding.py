"""One thing that was examined, and how it stands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Finding:
    """`part` is the heading it stands under. A finding that is not `ok` has a `fix`: a sentence, or a command to copy."""

    part: str
    ok: bool
    text: str
    fix: str | None = None


def good(part: str, text: str) -> Finding:
    return Finding(part, ok=True, text=text)


def bad(part: str, text: str, fix: str) -> Finding:
    return Finding(part, ok=False, text=text, fix=fix)
