"""How gently an audit goes: a share of one backend, rows a second, and pauses while the source or the replica has other worries."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Final

from tocsin_check.fence import Lagging
from tocsin_check.sides import Sides

MOST_ACTIVE: Final = 25
"""Backends at work on the source, and below, seconds of lag: where the service pauses."""
MOST_LAG: Final = 1.0
_LOOK_EVERY: Final = 1.0
_LONGEST_PAUSE: Final = 60.0
"""Seconds that one block waits at most, so that an audit of a source that is always busy comes to its end, too."""

# Backends at work besides ours, and the WAL that the worst logical slot of this database holds back.
_WORRIES: Final = """
SELECT (SELECT count(*) FROM pg_stat_activity
        WHERE state = 'active' AND backend_type = 'client backend' AND pid <> pg_backend_pid() AND application_name NOT LIKE 'tocsin%') AS active,
       (SELECT max(pg_wal_lsn_diff(pg_current_wal_insert_lsn(), restart_lsn))::bigint FROM pg_replication_slots
        WHERE database = current_database() AND slot_type = 'logical') AS retained
"""


@dataclass(slots=True)
class Pace:
    """`share` is how much of one source backend's time the audit takes, 1 being all; `rows_per_second` None is no such limit.

    It pauses while more than `active` backends work on the source, the replica is more than `lag` seconds behind, or a slot holds back more
    than `retained` bytes of WAL; None never does. `waiting` says for what it pauses now.
    """

    share: float = 1.0
    rows_per_second: int | None = None
    active: int | None = None
    lag: float | None = None
    retained: int | None = None
    waiting: str | None = None
    looked: float = -_LOOK_EVERY

    async def rest(self, seconds: float, rows: int) -> None:
        """After a read that took the source `seconds`."""
        pause = seconds * (1 / self.share - 1)
        if self.rows_per_second is not None:
            pause = max(pause, rows / self.rows_per_second - seconds)
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
        if self.active is not None or self.retained is not None:
            row = await sides.source.fetchrow(_WORRIES)
            assert row is not None
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
