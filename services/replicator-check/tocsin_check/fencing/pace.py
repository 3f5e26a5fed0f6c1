"""How gently an audit goes: a share of one backend, less of it while others write, rows a second, and pauses for other worries."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.sides import Sides

MOST_ACTIVE: Final = 25
"""Backends at work on the source, and below, seconds of lag: where the service pauses."""
MOST_LAG: Final = 1.0
BUSY: Final = 50.0
"""Transactions a second beside which an audit takes less of its share: more than Tocsin's other parts make where nothing happens."""
_OWN: Final = 2
"""Transactions that a read of ours makes: itself, and its marker."""
_YIELDING: Final = 0.04
_FOLLOWING: Final = 0.2
"""How much of it: to read whole blocks, and to read the keys that writers change, which else would only become more."""
_LOOK_EVERY: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
"""Seconds that one block waits at most, so that an audit of a source that is always busy comes to its end, too."""
_SLICE: Final = 0.35
_GENTLE_SLICE: Final = 0.01
"""Seconds of a read at full speed, and at a small share: so short that a commit beside it waits for a CPU no longer than for another commit."""
_GENTLE: Final = 0.5
_FAST: Final = 0.75
"""Up to the first share reads stay that short, and give way; from the second one on, the source and the replica are read at the same time, further ahead."""

# Backends at work besides ours, the server's transactions so far, and the WAL that the worst logical slot of this database holds back.
_WORRIES: Final = """
SELECT (SELECT count(*) FROM pg_stat_activity
        WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name NOT LIKE 'tocsin%') AS active,
       (SELECT sum(xact_commit + xact_rollback)::bigint FROM pg_stat_database) AS transactions,
       (SELECT max(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn))::bigint FROM pg_replication_slots
        WHERE database = current_database() AND slot_type = 'logical') AS retained
"""


@dataclass(slots=True)
class Pace:
    """`share` is how much of one source backend's time the audit takes, 1 being all; `rows_per_second` None is no such limit.

    It pauses while more than `active` backends work on the source, the replica is more than `lag` seconds behind, or a slot holds back more
    than `retained` bytes of WAL; None never does. `waiting` says for what it pauses now. With `gives_way` a gentle share is less while others
    are at work: `busy` says whether they are.
    """

    share: float = 1.0
    rows_per_second: int | None = None
    active: int | None = None
    lag: float | None = None
    retained: int | None = None
    gives_way: bool = False
    busy: bool = False
    counted: tuple[float, int] | None = None
    reads: int = 0
    waiting: str | None = None
    looked: float = -_LOOK_EVERY
    due: float = 0.0

    @property
    def fast(self) -> bool:
        """Whether both sides may be read at once, and several blocks held back until what drifted in them is judged: under a limit of rows a
        second that would hold back what a run knows for minutes.
        """
        return self.share >= _FAST and self.rows_per_second is None

    @property
    def slice(self) -> float:
        """Seconds that one read of the source should take; between a gentle share and all it grows in proportion."""
        return max(_GENTLE_SLICE, _SLICE * (self.share - _GENTLE) / (1 - _GENTLE))

    @property
    def looks(self) -> bool:
        """Whether `clear` has something to ask now."""
        limited = self.gives_way or self.active is not None or self.lag is not None or self.retained is not None
        return limited and (self.waiting is not None or time.monotonic() - self.looked >= _LOOK_EVERY)

    def spent(self, seconds: float, rows: int, *, following: bool = False) -> None:
        """A read took the source `seconds`: the next one is due only after the rest that this one has earned. `following`: of keys that were changed."""
        self.reads += 1
        pause = seconds * (1 / self.share - 1)
        if self.busy and self.share <= _GENTLE:
            pause += min(seconds * (1 / (_FOLLOWING if following else _YIELDING) - 1) / self.share, _LONGEST_PAUSE)
        if self.rows_per_second is not None:
            pause = max(pause, rows / self.rows_per_second - seconds)
        if pause > 0:
            self.due = max(self.due, time.monotonic()) + pause

    async def rest(self) -> None:
        """Before a read: returns once it is due. Meanwhile the replica is read, and not at the same time as the source."""
        pause = self.due - time.monotonic()
        if pause > 0:
            await asyncio.sleep(pause)

    async def clear(self, sides: Sides) -> None:
        """Before a block: returns once nothing is in the way, or after a minute."""
        begun = time.monotonic()
        try:
            while time.monotonic() - begun < _LONGEST_PAUSE and (self.waiting or time.monotonic() - self.looked >= _LOOK_EVERY):
                self.looked = time.monotonic()
                self.waiting = await self._worry(sides)
                if self.waiting is None:
                    return
                await asyncio.sleep(_LOOK_EVERY / 2)
        finally:
            self.waiting = None

    async def _worry(self, sides: Sides) -> str | None:
        if self.gives_way or self.active is not None or self.retained is not None:
            row = await sides.source.fetchrow(_WORRIES)
            assert row is not None
            self._count(row["transactions"])
            if self.active is not None and row["active"] > self.active:
                return f"{row['active']} backends are at work on the source"
            if self.retained is not None and (row["retained"] or 0) > self.retained:
                return f"a slot holds back {row['retained'] / (1 << 30):.1f} GiB of WAL on the source"
        if self.lag is not None and (sides.fence.lag or 0) > self.lag:
            try:
                await sides.fence.arrived(await sides.fence.mark(), self.lag)
            except Lagging:
                return f"the replica is more than {self.lag:g} s behind"
        return None

    def _count(self, transactions: int) -> None:
        """Sets `busy` by the server's transactions since the last look; a statistic that was reset tells nothing."""
        now = time.monotonic()
        if self.counted is not None and transactions >= self.counted[1]:
            others = transactions - self.counted[1] - _OWN * self.reads
            self.busy = self.gives_way and others / max(now - self.counted[0], 0.001) > BUSY
        self.counted, self.reads = (now, transactions), 0
