"""Which part of each table was proven when: a map for the page, drawn from the blocks as the audits go through them."""

from __future__ import annotations

import bisect
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel

from tocsin_check.auditing.audit import OnBlock
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.rows.verdict import DRIFT, Key


class BlockReport(BaseModel):
    """`rows` rows of the source from number `first` on, in the key's order. dirty: changed since it was verified, and not read again yet."""

    first: int
    rows: int
    state: Literal["clean", "dirty", "drifted", "pending"]
    drifted: int = 0
    verified_at: datetime


@dataclass(frozen=True, slots=True)
class _Block:
    """A block's report, and the half-open range of its keys."""

    report: BlockReport
    low: Key | None
    high: Key | None


class BlockMap:
    """One list of blocks a table. While a pass is under way the blocks that it has not reached are those of the pass before."""

    def __init__(self) -> None:
        self._whole: dict[str, list[_Block]] = {}
        self._passing: dict[str, list[_Block]] = {}

    def blocks(self, table: str, dirty: Iterable[Key] = (), drifted: Iterable[Key] = ()) -> list[BlockReport]:
        """With the blocks of `dirty` keys and of `drifted` ones marked, where the key is one integer: others can't be ordered here."""
        passing = self._passing.get(table, [])
        reached = passing[-1].report.first + passing[-1].report.rows if passing else 0
        blocks = [*passing, *(block for block in self._whole.get(table, []) if block.report.first >= reached)]
        changed, wrong = _places(blocks, dirty), _places(blocks, drifted)
        found = []
        for i, block in enumerate(blocks):
            update: dict[str, Any] = {}
            if block.report.state != "drifted" and wrong[i]:
                update = {"state": "drifted", "drifted": wrong[i]}
            elif block.report.state == "clean" and changed[i]:
                update = {"state": "dirty"}
            found.append(block.report.model_copy(update=update))
        return found

    def following(self, table: str, then: OnBlock | None, *, from_row: int = 0, begun: Outcome | None = None) -> OnBlock:
        """For one audit of the table: notes each block, and goes on to `then`. `from_row` goes on with the pass under way, `begun` with an audit
        that an earlier session began: its blocks are not told apart any more.
        """
        passing = self._passing[table] = [block for block in self._passing.get(table, []) if block.report.first < from_row]
        base = passing[-1].report.first + passing[-1].report.rows if passing else 0
        seen = [0, 0, 0]
        if begun is not None and begun.rows:
            seen = [begun.rows, sum(begun.count(verdict) for verdict in DRIFT), len(begun.pending)]
            before: Literal["clean", "drifted", "pending"] = "drifted" if seen[1] else "pending" if seen[2] else "clean"
            passing.append(_Block(BlockReport(first=0, rows=seen[0], state=before, drifted=seen[1], verified_at=begun.started), None, begun.reached))
        low = passing[-1].high if passing else None

        async def on_block(outcome: Outcome) -> None:
            nonlocal low
            now = [outcome.rows, sum(outcome.count(verdict) for verdict in DRIFT), len(outcome.pending)]
            rows, drifted, pending = (after - before for after, before in zip(now, seen, strict=True))
            state: Literal["clean", "drifted", "pending"] = "drifted" if drifted else "pending" if pending else "clean"
            report = BlockReport(first=base + seen[0], rows=rows, state=state, drifted=drifted, verified_at=datetime.now(UTC))
            passing.append(_Block(report, low, outcome.reached))
            low = outcome.reached
            seen[:] = now
            if then is not None:
                await then(outcome)

        return on_block

    def complete(self, table: str) -> None:
        """The pass came to its end."""
        passing = self._passing.pop(table, None)
        if passing:
            self._whole[table] = passing


def _places(blocks: list[_Block], keys: Iterable[Key]) -> Counter[int]:
    """How many of the keys lie in which block."""
    found: Counter[int] = Counter()
    try:
        starts = [int(block.low[0]) if block.low is not None else -sys.maxsize for block in blocks]
        numbers = [int(value) for (value,) in keys]
    except ValueError:
        return found
    for number in numbers:
        found[max(0, bisect.bisect_right(starts, number) - 1)] += 1
    return found
