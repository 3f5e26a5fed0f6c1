"""The verdict's state machine against a model of replication: commit order, late visibility, late apply."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin_check.rows.verdict import DRIFT, Case, Seen, Stage, Verdict, Version, classify


@dataclass
class Pair:
    """One key on two servers. Transactions write, commit into the log, become visible later, and are applied in the log's order."""

    choose: Callable[[int], int]
    visible: tuple[int, str] | None = None  # (xid, value) as the source shows it
    touched: bool = False
    running: list[tuple[int, str | None]] = field(default_factory=list)  # written, not in the log
    logged: list[tuple[int, str | None]] = field(default_factory=list)  # in the log, not visible yet
    log: list[tuple[int, str | None]] = field(default_factory=list)
    applied: int = 0
    replica: tuple[int, str] | None = None
    xid: int = 0
    versions: int = 0

    def step(self) -> None:
        """One of the things that can happen now."""
        possible: list[Callable[[], None]] = []
        if self.running:
            possible.append(self.commit)
        elif self.logged:
            possible.append(self.show)
        else:
            possible.append(self.write)  # the row lock lets one writer in
        if self.applied < len(self.log):
            possible.append(self.apply)
        possible[self.choose(len(possible))]()

    def write(self) -> None:
        self.xid += 1
        self.running.append((self.xid, ("a", "b", None)[self.choose(3)]))
        self.touched = self.visible is not None

    def commit(self) -> None:
        self.logged.append(self.running.pop())
        self.log.append(self.logged[-1])

    def show(self) -> None:
        xid, value = self.logged.pop()
        self.visible, self.touched = ((xid, value) if value is not None else None), False

    def apply(self) -> None:
        _, value = self.log[self.applied]
        self.applied += 1
        self.versions += 1
        self.replica = (self.versions, value) if value is not None else None

    def source_seen(self) -> Seen:
        if self.visible is None:
            return ()
        xid, value = self.visible
        return (Version("s", str(xid), not self.touched, (ord(value), 0)),)

    def replica_seen(self) -> Seen:
        return () if self.replica is None else (Version("r", str(self.replica[0]), True, (ord(self.replica[1]), 0)),)

    def fence(self) -> None:
        """Everything logged by now is applied; more may happen before and after."""
        end = len(self.log)
        self.drift()
        while self.applied < end:
            self.apply()

    def settle(self) -> None:
        """Everything that has an xid by now has ended and is visible."""
        if self.running:
            self.commit()
        if self.logged:
            self.show()

    def drift(self) -> None:
        for _ in range(self.choose(6)):
            self.step()


def judge(pair: Pair) -> Case:
    """The audit's loop, with other things happening between any two steps."""
    case = Case(("k",))
    while case.stage is not Stage.DONE:
        pair.drift()
        match case.stage:
            case Stage.READ:
                case.read(pair.source_seen())
            case Stage.FENCE:
                pair.fence()
                pair.drift()
                case.fenced(pair.replica_seen())
            case Stage.LOOK:
                case.looked(pair.source_seen())
            case Stage.SETTLE:
                pair.settle()
                pair.drift()
                case.settled(pair.source_seen())
            case Stage.CONFIRM:
                pair.fence()
                pair.drift()
                case.confirmed(pair.replica_seen())
    return case


def test_replication_alone_is_never_called_drift() -> None:
    """Whatever the interleaving: behind, ahead, there and gone again. Each step of the verdict, taken out, fails here."""
    for seed in range(20_000):
        chance = random.Random(seed)
        pair = Pair(chance.randrange)
        pair.drift()
        assert judge(pair).verdict not in DRIFT, f"seed {seed}"


@given(st.sampled_from(["a", "b", None]), st.sampled_from(["a", "x", None]))
def test_a_planted_difference_on_a_quiet_key_is_found_and_named(ours: str | None, theirs: str | None) -> None:
    """Its own key is quiet; that is all that a proof needs."""
    pair = Pair(lambda _n: 0)
    pair.visible = (1, ours) if ours else None
    pair.replica = (1, theirs) if theirs else None
    expected = Verdict.IN_SYNC if ours == theirs else Verdict.MISSING if theirs is None else Verdict.EXTRA if ours is None else Verdict.DIFFERENT
    assert judge(pair).verdict is expected


def seen(*values: str) -> Seen:
    return tuple(Version(f"p{i}", "1", True, (ord(v), 0)) for i, v in enumerate(values))


@pytest.mark.parametrize(
    ("ours", "theirs", "expected"),
    [
        (seen("a"), (), (Verdict.MISSING, 1)),
        ((), seen("a", "a"), (Verdict.EXTRA, 2)),
        (seen("a"), seen("b"), (Verdict.DIFFERENT, 1)),
        (seen("a", "a", "a"), seen("a"), (Verdict.MISSING, 2)),
        (seen("a"), seen("a", "a"), (Verdict.EXTRA, 1)),
    ],
)
def test_an_unequal_pair_is_classified_and_counted(ours: Seen, theirs: Seen, expected: tuple[Verdict, int]) -> None:
    assert classify(ours, theirs) == expected


def test_a_row_that_never_rests_is_given_up_as_pending_with_the_reason() -> None:
    case = Case(("k",))
    case.read(seen("a"))
    for i in range(100):
        case.fenced((Version("r", "1", True, (1000 + i, 0)),))
        case.looked((Version("s", str(i + 2), True, (ord("a"), i)),))
        if case.stage is Stage.DONE:
            break
    assert (case.verdict, case.reason) == (Verdict.PENDING, "the row changes faster than it can be compared")


def test_observations_out_of_order_are_refused() -> None:
    with pytest.raises(AssertionError, match="is at"):
        Case(("k",)).fenced(())
