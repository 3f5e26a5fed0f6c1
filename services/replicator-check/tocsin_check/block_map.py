"""Which part of each table was proven when: a map for the page, drawn from the blocks as the audits go through them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel

from tocsin_check.audit import OnBlock, Outcome
from tocsin_check.verdict import DRIFT


class BlockReport(BaseModel):
    """`rows` rows of the source from number `first` on, in the key's order. dirty: changed since it was verified, and not read again yet."""

    first: int
    rows: int
    state: Literal["clean", "dirty", "drifted", "pending"]
    drifted: int = 0
    verified_at: datetime


class BlockMap:
    """One list of blocks a table. While a pass is under way the blocks that it has not reached are those of the pass before."""

    def __init__(self) -> None:
        self._whole: dict[str, list[BlockReport]] = {}
        self._passing: dict[str, list[BlockReport]] = {}

    def blocks(self, table: str) -> list[BlockReport]:
        passing = self._passing.get(table, [])
        reached = passing[-1].first + passing[-1].rows if passing else 0
        return [*passing, *(block for block in self._whole.get(table, []) if block.first >= reached)]

    def following(self, table: str, then: OnBlock | None) -> OnBlock:
        """For one audit of the table: notes each block, and goes on to `then`."""
        seen = [0, 0, 0]
        passing = self._passing[table] = []

        async def on_block(outcome: Outcome) -> None:
            now = [outcome.rows, sum(outcome.count(verdict) for verdict in DRIFT), len(outcome.pending)]
            rows, drifted, pending = (after - before for after, before in zip(now, seen, strict=True))
            state: Literal["clean", "drifted", "pending"] = "drifted" if drifted else "pending" if pending else "clean"
            passing.append(BlockReport(first=seen[0], rows=rows, state=state, drifted=drifted, verified_at=datetime.now(UTC)))
            seen[:] = now
            if then is not None:
                await then(outcome)

        return on_block

    def complete(self, table: str) -> None:
        """The pass came to its end."""
        passing = self._passing.pop(table, None)
        if passing:
            self._whole[table] = passing
