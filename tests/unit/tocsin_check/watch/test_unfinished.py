"""What is kept of an audit under way, and for whom it counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tests.unit.tocsin_check.rows.test_reading import COMPOSITE
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog.table import Comparable
from tocsin_check.rows.names import TableName
from tocsin_check.rows.verdict import Case, Stage, Verdict
from tocsin_check.watch.unfinished import MOST_CASES, Begun, Reached, Unfinished

TABLE = Comparable(TableName("public", "t"), COMPOSITE, COMPOSITE)
NOW = datetime.now(UTC)


def drifted(number: int) -> Case:
    return Case((str(number), "x"), Stage.DONE, Verdict.MISSING, count=1)


def test_what_is_kept_is_how_it_stood_after_the_block_though_the_audit_goes_on() -> None:
    outcome = Outcome(NOW, "0/1", rows=10, blocks=1, reached=("5", "x"))
    outcome.take([drifted(1)])
    reached = Reached.of(TABLE, outcome)
    outcome.take([drifted(7)])
    outcome.rows, outcome.reached = 20, ("9", "x")
    again = Begun.model_validate_json(reached.begun().model_dump_json()).outcome()
    assert (again.rows, again.reached, again.count(Verdict.MISSING), [case.key for case in again.drifted]) == (10, ("5", "x"), 1, [("1", "x")])


def test_an_audit_goes_on_only_for_who_asked_before_it_began_and_till_it_has_ended() -> None:
    unfinished = Unfinished()
    outcome = Outcome(NOW, "0/1", rows=10, blocks=1, reached=("5", "x"))
    unfinished.note(TABLE, outcome)
    assert unfinished.begun(TABLE) is not None
    assert unfinished.begun(TABLE, NOW - timedelta(seconds=1)) is not None
    assert unfinished.begun(TABLE, NOW + timedelta(seconds=1)) is None
    outcome.reached = None  # the table's end
    unfinished.note(TABLE, outcome)
    assert unfinished.begun(TABLE) is None


def test_of_very_many_drifted_rows_all_are_counted_and_the_first_are_named() -> None:
    unfinished = Unfinished()
    outcome = Outcome(NOW, "0/1", rows=10, blocks=1, reached=("5", "x"))
    outcome.take([drifted(number) for number in range(MOST_CASES + 5)])
    unfinished.note(TABLE, outcome)
    again = unfinished.begun(TABLE)
    assert again is not None
    assert (again.count(Verdict.MISSING), len(again.drifted), again.drifted[0].key) == (MOST_CASES + 5, MOST_CASES, ("0", "x"))


def test_where_too_many_rows_are_pending_an_audit_goes_on_where_it_was_before() -> None:
    """None of them may be left out: nothing is proven while one is open."""
    unfinished = Unfinished()
    outcome = Outcome(NOW, "0/1", rows=10, blocks=1, reached=("5", "x"))
    unfinished.note(TABLE, outcome)
    outcome.take([Case((str(number), "x"), Stage.DONE, Verdict.PENDING, "blocked") for number in range(MOST_CASES + 1)])
    outcome.rows, outcome.reached = 20, ("9", "x")
    unfinished.note(TABLE, outcome)
    again = unfinished.begun(TABLE)
    assert again is not None
    assert (again.rows, again.reached, again.pending) == (10, ("5", "x"), [])


def test_another_shape_of_the_table_or_another_pair_of_databases_is_another_audit() -> None:
    outcome = Outcome(NOW, "0/1", rows=10, blocks=1, reached=("5", "x"))
    shapes = {
        Reached.of(TABLE, outcome, "one pair").begun().shape,
        Reached.of(TABLE, outcome, "another").begun().shape,
        Reached.of(Comparable(TABLE.name, COMPOSITE, COMPOSITE.__class__("t", COMPOSITE.key, COMPOSITE.columns)), outcome, "another").begun().shape,
    }
    assert len(shapes) == 3
