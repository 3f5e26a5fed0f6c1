"""The verdict on one key: a state machine over observations. Pure; the audit makes the observations and the fences.

A fence is a marker written on the source and then seen on the replica: whatever was visible on the source before it was
written has been applied. To settle is to wait until no transaction below a marker's xid runs on the source: whatever the
replica has shown before is then visible there. Why each step is needed is proven in docs/guarantees.md; in short, the
replica may be behind the source (first fence), ahead of what the source shows (settling), and a row may have come and
gone in between without leaving a version on the source (the last fence).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

MAX_ROUNDS: Final = 8

Digest = tuple[int, int]
Key = tuple[str, ...]


class Version(NamedTuple):
    """One version of a row: where it stands (table oid and ctid), who wrote it, and the two hashes of its values.

    `untouched` says that no transaction, finished or not, has set its xmax.
    """

    place: str
    xmin: str
    untouched: bool
    digest: Digest


Seen = tuple[Version, ...]
"""All versions with one key on one side in one snapshot, sorted; empty is absence."""


class Stage(Enum):
    READ = "read the source"
    FENCE = "write a marker, wait until the replica shows it, read the replica"
    LOOK = "read the source again"
    SETTLE = "wait until every older transaction has ended, read the source again"
    CONFIRM = "write a marker, wait until the replica shows it, read the replica again"
    DONE = "judged"


class Verdict(Enum):
    IN_SYNC = "in_sync"
    MISSING = "missing"
    EXTRA = "extra"
    DIFFERENT = "different"
    PENDING = "pending"


DRIFT: Final = frozenset({Verdict.MISSING, Verdict.EXTRA, Verdict.DIFFERENT})


def same_versions(one: Seen, other: Seen) -> bool:
    """Whether both are the very same row versions, not only equal values."""
    return [(v.place, v.xmin) for v in one] == [(v.place, v.xmin) for v in other]


def same_values(source: Seen, replica: Seen) -> bool:
    if len(source) == len(replica) == 1:  # nearly always
        return source[0].digest == replica[0].digest
    return Counter(v.digest for v in source) == Counter(v.digest for v in replica)


def classify(source: Seen, replica: Seen) -> tuple[Verdict, int]:
    """What an unequal pair is, and how many rows it counts for."""
    ours, theirs = Counter(v.digest for v in source), Counter(v.digest for v in replica)
    missing, extra = (ours - theirs).total(), (theirs - ours).total()
    if missing and extra:
        return Verdict.DIFFERENT, max(missing, extra)
    return (Verdict.MISSING, missing) if missing else (Verdict.EXTRA, extra)


@dataclass(slots=True)
class Case:
    """One key on trial. `stage` says which observation is needed next; `verdict` stands once the stage is DONE."""

    key: Key
    stage: Stage = Stage.READ
    verdict: Verdict | None = None
    reason: str = ""
    count: int = 0
    rounds: int = 0
    columns: tuple[str, ...] = ()
    source: Seen = ()
    replica: Seen = ()

    def read(self, source: Seen) -> None:
        """The source, before a fence."""
        self._expect(Stage.READ)
        self.source, self.stage = source, Stage.FENCE

    def fenced(self, replica: Seen) -> None:
        """The replica, after a fence that was begun after the source was read."""
        self._expect(Stage.FENCE)
        self.replica = replica
        if same_values(self.source, replica):
            self._done(Verdict.IN_SYNC)
        else:
            self.stage = Stage.LOOK

    def looked(self, source: Seen) -> None:
        """The source again, after the replica was read."""
        self._expect(Stage.LOOK)
        if self._moved(source):
            return
        # Nobody has begun to change these versions, so the replica can't be ahead of them; it can be of rows it has more of.
        if source and len(self.replica) <= len(source) and all(v.untouched for v in source):
            self._drift()
        else:
            self.stage = Stage.SETTLE

    def settled(self, source: Seen) -> None:
        """The source again, after everything that the replica could have shown is visible on it."""
        self._expect(Stage.SETTLE)
        if self._moved(source):
            return
        if len(self.replica) > len(source):
            self.stage = Stage.CONFIRM
        else:
            self._drift()

    def confirmed(self, replica: Seen) -> None:
        """The replica again, after one more fence: a row that had already left the source must be gone by now."""
        self._expect(Stage.CONFIRM)
        if same_versions(self.replica, replica):
            self._drift()
        else:
            self._again(Stage.READ)

    def give_up(self, reason: str) -> None:
        """No proof in time."""
        self.reason = reason
        self._done(Verdict.PENDING)

    def _moved(self, source: Seen) -> bool:
        if same_versions(self.source, source):
            return False
        if same_values(source, self.replica):
            self._done(Verdict.IN_SYNC)  # the replica showed what the source has held
        else:
            self.source = source
            self._again(Stage.FENCE)
        return True

    def _again(self, stage: Stage) -> None:
        self.rounds += 1
        if self.rounds >= MAX_ROUNDS:
            self.give_up("the row changes faster than it can be compared")
        else:
            self.stage = stage

    def _drift(self) -> None:
        verdict, self.count = classify(self.source, self.replica)
        self._done(verdict)

    def _done(self, verdict: Verdict) -> None:
        self.verdict, self.stage = verdict, Stage.DONE

    def _expect(self, stage: Stage) -> None:
        assert self.stage is stage, f"case {self.key} is at {self.stage}, not {stage}"


def at(stage: Stage, cases: Sequence[Case]) -> list[Case]:
    return [case for case in cases if case.stage is stage]
