"""Coverage, comparability and the report, from facts alone."""

from __future__ import annotations

import dataclasses
import itertools
from datetime import UTC, datetime, timedelta

import pytest

from tocsin_check.catalog.coverage import MARKER, ColumnFacts, Facts, Published, Slot, Subscribed, Subscription, TableFacts
from tocsin_check.catalog.findings import CounterWatch, findings
from tocsin_check.catalog.table import Comparable, Unauditable, compare_table
from tocsin_check.rows.names import TableName
from tocsin_check.watch.report import EXIT_CODES, WORST_FIRST, FindingReport, Status, TableReport, aged, overall

T = TableName("public", "t")
HASHABLE = {"integer": True, "text": True, "json": False}


def column(name: str, kind: str = "text", **changes: object) -> ColumnFacts:
    facts = ColumnFacts(name, False, False, kind, kind, kind, True, True, kind == "text", "default/c/C" if kind == "text" else None)
    return dataclasses.replace(facts, **changes)  # type: ignore[arg-type]


def table(*columns: ColumnFacts, **changes: object) -> TableFacts:
    facts = TableFacts("r", "d", True, True, (), {c.name: c for c in columns}, ("id",))
    return dataclasses.replace(facts, **changes)  # type: ignore[arg-type]


BOTH = table(column("id", "integer"), column("v"))
SUBSCRIPTION = Subscription(1, "tocsin", True, True, "s", ("tocsin",))
SLOT = Slot("s", True, "pgoutput", "reserved", None, 1000, "0/1", None)
HEALTHY = Facts(
    (SUBSCRIPTION,),
    {"s": SLOT},
    (Published("tocsin", T, ("id", "v"), None), Published("tocsin", MARKER, None, None)),
    (Subscribed(1, T, "r"), Subscribed(1, MARKER, "r")),
    {T: BOTH},
    {T: BOTH},
)


def changed(**changes: object) -> Facts:
    return dataclasses.replace(HEALTHY, **changes)  # type: ignore[arg-type]


def test_a_healthy_pair_has_no_finding_and_can_be_compared() -> None:
    assert findings(HEALTHY) == []
    compared = compare_table(T, HEALTHY, HASHABLE, native=True)
    assert isinstance(compared, Comparable)
    assert [c.expression for c in compared.source.columns] == ['t."id"', 't."v" COLLATE pg_catalog."C"']
    assert compared.source.key[0].expression == 't."id"'


@pytest.mark.parametrize(
    ("facts", "code"),
    [
        (changed(subscriptions=()), "no-subscription"),
        (changed(subscriptions=(dataclasses.replace(SUBSCRIPTION, enabled=False),)), "disabled"),
        (changed(subscriptions=(dataclasses.replace(SUBSCRIPTION, worker=False),)), "no-worker"),
        (changed(subscriptions=(dataclasses.replace(SUBSCRIPTION, counters={"confl_update_missing": 2}),)), "conflict-update-missing"),
        (changed(subscriptions=(dataclasses.replace(SUBSCRIPTION, counters={"apply_error_count": 2}),)), "apply-error-count"),
        (changed(subscriptions=(dataclasses.replace(SUBSCRIPTION, skip_lsn="0/5"),)), "skip"),
        (changed(slots={}), "no-slot"),
        (changed(slots={"s": dataclasses.replace(SLOT, wal_status="lost")}), "slot-lost"),
        (changed(slots={"s": dataclasses.replace(SLOT, active=False)}), "slot-idle"),
        (changed(slots={"s": dataclasses.replace(SLOT, wal_status="unreserved")}), "slot-endangered"),
        (changed(versions=(170004, 180000)), "version-loses-rows"),
        (changed(versions=(160009, 180000)), "version-memory"),
        (changed(versions=(180000, 130020)), "version-old"),
        (changed(writers={"app": (T,)}), "writer"),
        (changed(replica={}), "no-table"),
        (changed(replica={T: dataclasses.replace(BOTH, firing=("audit",))}), "trigger"),
        (changed(replica={T: dataclasses.replace(BOTH, key=())}), "key-differs"),
        (changed(replica={T: dataclasses.replace(BOTH, required=("id", "own"))}), "column-required"),
        (changed(replica={T: table(column("id", "integer"))}), "no-column"),
        (changed(replica={T: table(column("id", "integer"), column("v", not_null=True))}), "null-differs"),
        (changed(published=(Published("tocsin", MARKER, None, None),)), "unpublished"),
        (changed(slots={"s": dataclasses.replace(SLOT, retained_bytes=3 << 30)}), "slot-retains"),
        (changed(subscribed=(Subscribed(1, MARKER, "r"),)), "uncovered"),
        (changed(subscribed=(Subscribed(1, T, "d"), Subscribed(1, MARKER, "r"))), "copying"),
        (changed(partial_publications=("tocsin",)), "partial-publication"),
        (changed(source={T: dataclasses.replace(BOTH, identity="n")}), "no-identity"),
        (changed(replica={T: table(column("id", "integer"), column("v", "json"))}), "type-differs"),
        (changed(replica={T: table(column("id", "integer"), column("v"), column("more"))}), "extra-columns"),
        (
            changed(source={T: dataclasses.replace(BOTH, sequences={"public.s": 9})}, replica={T: dataclasses.replace(BOTH, sequences={"public.s": None})}),
            "sequence-behind",
        ),
        (
            changed(
                source={T: dataclasses.replace(BOTH, kind="p", partitions=("a", "b"))}, replica={T: dataclasses.replace(BOTH, kind="p", partitions=("a",))}
            ),
            "no-partition",
        ),
    ],
)
def test_each_fault_has_its_finding_with_a_sentence_and_a_fix(facts: Facts, code: str) -> None:
    found = {f.code: f for f in findings(facts)}
    assert code in found
    assert found[code].message
    assert found[code].fix


@pytest.mark.parametrize(
    ("versions", "codes"),
    [
        ((140017, 0), ["version-loses-rows"]),
        ((140018, 0), ["version-memory"]),
        ((140019, 0), []),
        ((150012, 0), ["version-loses-rows"]),
        ((160010, 0), []),
        ((170006, 0), []),
        ((180000, 170004), []),
        ((130099, 180000), ["version-old"]),
    ],
)
def test_minor_versions_before_the_fixes_are_named_on_the_source_alone(versions: tuple[int, int], codes: list[str]) -> None:
    assert [f.code for f in findings(changed(versions=versions))] == codes


def test_an_error_counter_is_an_error_only_while_it_rises() -> None:
    def failed(times: int) -> Facts:
        return changed(subscriptions=(dataclasses.replace(SUBSCRIPTION, counters={"apply_error_count": times}),))

    watch = CounterWatch()
    seen = []
    for now, times in ((0.0, 7), (5.0, 7), (10.0, 9), (19.0, 9), (26.0, 9), (30.0, 0), (35.0, 1), (90.0, 1), (180.0, 2)):
        [*found] = findings(failed(times), watch.look(failed(times), now))
        seen.append([f.severity for f in found])
    assert seen == [["info"], ["info"], ["error"], ["error"], ["info"], [], ["error"], ["info"], ["error"]]


@pytest.mark.parametrize(
    ("facts", "part"),
    [
        (changed(source={}), "no such table any more"),
        (changed(replica={}), "the replica has no such table"),
        (changed(replica={T: dataclasses.replace(BOTH, readable=False)}), "may not read it on the replica"),
        (changed(published=(Published("tocsin", MARKER, None, None),)), "not published any more"),
        (changed(subscribed=(Subscribed(1, MARKER, "r"),)), "published but not subscribed"),
        (changed(slots={}), "slot is lost"),
        (changed(subscribed=(Subscribed(1, T, "d"), Subscribed(1, MARKER, "r"))), "initial copy is under way"),
        (changed(subscribed=(Subscribed(1, T, "r"), Subscribed(2, MARKER, "r"))), "does not carry the checker's marker"),
        (changed(replica={T: table(column("id", "integer"))}), "lacks the column v"),
    ],
)
def test_a_table_that_no_fence_covers_is_not_compared_and_says_why(facts: Facts, part: str) -> None:
    found = compare_table(T, facts, HASHABLE, native=True)
    assert isinstance(found, Unauditable)
    assert part in found.reason


def test_what_can_not_be_hashed_alike_is_compared_as_text() -> None:
    odd = table(column("id", "integer"), column("j", "json"), column("mood", "public.mood", built_in=False, native=False))
    facts = changed(source={T: odd}, replica={T: odd}, published=(Published("tocsin", T, None, None),))
    compared = compare_table(T, facts, HASHABLE, native=True)
    assert isinstance(compared, Comparable)
    assert [c.expression for c in compared.source.columns] == ['t."id"', 't."j"::text COLLATE pg_catalog."C"', 't."mood"::text COLLATE pg_catalog."C"']
    assert "md5(" in dataclasses.replace(compared.source, native=False).digest_sql(None, None, 7)[0]


def test_text_keys_are_ordered_byte_by_byte_where_the_collations_differ() -> None:
    ours, theirs = table(column("id")), table(column("id", collation="default/i/de/153.120"))
    compared = compare_table(T, changed(source={T: ours}, replica={T: theirs}, published=(Published("tocsin", T, None, None),)), HASHABLE, native=True)
    assert isinstance(compared, Comparable)
    assert compared.source.key[0].expression == compared.replica.key[0].expression == 't."id"::text COLLATE pg_catalog."C"'


def test_row_filters_of_several_publications_are_or_ed_and_one_without_wins() -> None:
    some = changed(published=(Published("a", T, None, "(id > 1)"), Published("b", T, None, "(id < 0)")))
    assert some.row_filter(T) == "((id > 1)) OR ((id < 0))"
    assert changed(published=(*some.published, Published("c", T, None, None))).row_filter(T) == ""


@pytest.mark.parametrize(("worse", "better"), list(itertools.pairwise(WORST_FIRST)))
def test_the_whole_is_as_bad_as_its_worst_table(worse: Status, better: Status) -> None:
    assert overall([TableReport(table="a", status=better), TableReport(table="b", status=worse)], []) == worse


def test_the_whole_is_never_in_sync_with_an_error_in_replication_or_without_a_table() -> None:
    error = FindingReport(severity="error", code="x", message="m", fix="f")
    assert overall([TableReport(table="a", status="in_sync")], [error]) == "unauditable"
    assert overall([TableReport(table="a", status="drift")], [error]) == "drift"
    assert overall([], []) == "unknown"
    assert set(EXIT_CODES) == set(WORST_FIRST)


NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "age", "lag", "reachable", "expected"),
    [
        ("in_sync", 5, 0.1, True, "in_sync"),
        ("in_sync", 5, 60.0, True, "lagging"),
        ("in_sync", 5, 0.1, False, "stale"),
        ("in_sync", 500, 0.1, True, "stale"),
        ("in_sync", 500, 500.0, True, "lagging"),
        ("drift", 500, 500.0, False, "drift"),
        ("unknown", 0, None, False, "unknown"),
    ],
)
def test_an_old_proof_is_not_shown_as_a_new_one(status: Status, age: float, lag: float | None, reachable: bool, expected: Status) -> None:
    verified = None if status == "unknown" else NOW - timedelta(seconds=age)
    report = TableReport(table="t", status=status, verified_at=verified)
    assert aged(report, now=NOW, lag=lag, reachable=reachable, reason=None, stale_after=timedelta(seconds=60)).status == expected
