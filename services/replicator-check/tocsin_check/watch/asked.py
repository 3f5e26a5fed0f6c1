"""Audits that somebody asked for: a queue, and how far each is."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, Literal

_FORGOTTEN_AFTER: Final = 100


@dataclass(slots=True)
class Audit:
    """An audit that somebody asked for; `tables` is None for all, `did` those that it is done with."""

    id: str
    tables: tuple[str, ...] | None
    status: Literal["queued", "running", "done", "failed"] = "queued"
    done: int = 0
    total: int = 0
    table: str | None = None
    rows: int = 0
    error: str | None = None
    asked: datetime = field(default_factory=lambda: datetime.now(UTC))
    did: list[str] = field(default_factory=list)
    finished: asyncio.Event = field(default_factory=asyncio.Event)


class Asked:
    """`arrived` is set when one is asked for."""

    def __init__(self) -> None:
        self._audits: dict[str, Audit] = {}
        self._queue: list[Audit] = []
        self.arrived = asyncio.Event()

    def __bool__(self) -> bool:
        return bool(self._queue)

    def add(self, tables: tuple[str, ...] | None) -> Audit:
        return self.restore(Audit(secrets.token_hex(6), tables))

    def restore(self, audit: Audit) -> Audit:
        """Queue one again that an earlier process did not finish."""
        self._audits[audit.id] = audit
        for old in list(self._audits)[:-_FORGOTTEN_AFTER]:
            del self._audits[old]
        self._queue.append(audit)
        self.arrived.set()
        return audit

    def next(self) -> Audit | None:
        return self._queue.pop(0) if self._queue else None

    def open(self) -> list[Audit]:
        """Those that are not finished."""
        return [audit for audit in self._audits.values() if audit.status in ("queued", "running")]

    def all(self) -> list[Audit]:
        """The newest first."""
        return list(reversed(self._audits.values()))

    def get(self, id_: str) -> Audit | None:
        return self._audits.get(id_)
