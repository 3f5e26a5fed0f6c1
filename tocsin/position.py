"""Positions in a stream: `<epoch>-<stream sequence>`, opaque to clients. Pure."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from typing import Final

_FORM: Final = re.compile(r"([a-z0-9]{4,32})-(0|[1-9][0-9]{0,18})")
_ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"


class PositionError(ValueError):
    """Text that is not a position."""


@dataclass(frozen=True, slots=True, order=False)
class Position:
    """A place between two events; exclusive: a resume begins with the next event after `sequence`.

    `sequence` is the JetStream stream sequence, 0 before the first event. Positions of different epochs can't be compared.
    """

    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Raises PositionError, with the form that is allowed."""
        match = _FORM.fullmatch(text)
        if match is None:
            raise PositionError(f"{text[:64]!r} is not a position; one looks like 'k3v9q2m7xa-1042' and comes from an event frame")
        return cls(match[1], int(match[2]))


def new_epoch() -> str:
    """A fresh random epoch: ten letters and digits without look-alikes."""
    return "".join(secrets.choice(_ALPHABET) for _ in range(10))
