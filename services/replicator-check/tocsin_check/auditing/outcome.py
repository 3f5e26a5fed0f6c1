"""What an audit of a table, or of a part of it, came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from tocsin_check.rows.verdict import DRIFT, Case, Key, Verdict

CASES_KEPT: Final = 100_000
"""Drifted rows kept by key; the counts go on beyond it."""


@dataclass(slots=True)
class Outcome:
    """What an audit of one table proved. `started` and `position` are from before its first read: everything up to there is covered.

    `drifted` has the first CASES_KEPT cases, `counts` counts the rows of all. `reached` is where the next block begins; None is the table's end.
    `keys` are those that an audit of keys has judged.
    """

    started: datetime
    position: str
    rows: int = 0
    blocks: int = 0
    source_seconds: float = 0.0
    reached: Key | None = None
    drifted: list[Case] = field(default_factory=list)
    pending: list[Case] = field(default_factory=list)
    counts: Counter[Verdict] = field(default_factory=Counter)
    keys: set[Key] = field(default_factory=set)

    def count(self, verdict: Verdict) -> int:
        return self.counts[verdict]

    def take(self, cases: Iterable[Case]) -> None:
        """Take in cases that were judged."""
        for case in cases:
            if case.verdict in DRIFT:
                self.counts[case.verdict] += case.count
                if len(self.drifted) < CASES_KEPT:
                    self.drifted.append(case)
            elif case.verdict is Verdict.PENDING:
                self.pending.append(case)


class Changed(Exception):  # noqa: N818  # of the table, not a fault
    """Rows differ, but the table or how it is replicated is not what it was when the audit began, so that this proves nothing."""

    def __init__(self) -> None:
        super().__init__("the table, or how it is replicated, was changed while it was audited; it is audited anew")
