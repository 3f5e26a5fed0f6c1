"""enter, leave and stay against a model of the set that a client keeps; and that nothing leaks past a rule or a hidden column."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tocsin.subject import Pattern
from tocsin_gateway.delivery.cloudevents import BareOutbox
from tocsin_gateway.delivery.frames import StreamEvent, addressed
from tocsin_gateway.delivery.selection import Selection, Shown, Unseen
from tocsin_gateway.rows.change import fields_of
from tocsin_gateway.rows.condition import Where
from tocsin_gateway.rows.visibility import Visibility

ORDERS = Pattern("pg.shop.change.public.orders.>")
Row = dict[str, Any]


def stream_event(op: str, *, key: Any = None, new: Row | None = None, old: Row | None = None, route: str = "", **data: Any) -> StreamEvent:
    rows = {name: row for name, row in (("new", new), ("old", old)) if row is not None}
    body = {
        "specversion": "1.0",
        "id": "i-1",
        "type": f"public.orders.{op}",
        "subject": str((key or {}).get("id")),
        "txid": "7",
        "data": {"op": op, "schema": "public", "table": "orders", "key": key, **rows, **data},
    }
    return StreamEvent("epoch", 5, f"pg.shop.change.public.orders.{op}{route}", msgspec.json.encode(body))


def told(selection: Selection, event: StreamEvent) -> tuple[str | None, dict[str, Any]] | None:
    """(the mark, the CloudEvent) as the client gets them."""
    shown = selection.judge(event)
    if shown is None:
        return None
    assert isinstance(shown, Shown), shown
    return msgspec.json.decode(shown.mark), msgspec.json.decode(shown.payload)["event"]


def change_event(before: Row | None, after: Row | None, old: str) -> StreamEvent:
    """As the listener tells it, with --old full or changed."""
    key = {"id": (after or before or {})["id"]}
    if before is None or after is None:
        return stream_event("insert" if before is None else "delete", key=key, new=after, old=before)
    told_old = before if old == "full" else {name: value for name, value in before.items() if after[name] != value}
    return stream_event("update", key=key, new=after, old=told_old)


rows = st.fixed_dictionaries({"id": st.integers(1, 3), "customer": st.integers(1, 2), "total": st.integers(0, 3), "note": st.sampled_from(["", "secret"])})
histories = st.lists(st.tuples(st.integers(1, 3), st.none() | rows), max_size=20)


@given(histories, st.integers(0, 3), st.none() | st.integers(1, 2), st.sampled_from(["full", "changed"]))
def test_a_set_kept_by_enter_stay_and_leave_is_the_filtered_table(history: list[tuple[int, Row | None]], least: int, rule: int | None, old: str) -> None:
    """The algebra: enter only what was outside, leave and stay only what was inside; and the set is what the oracle says, keys that change included."""
    visibility = Visibility() if rule is None else Visibility.from_claims({"public.orders": {"customer": {"eq": rule}}}, {})
    selection = Selection.of(ORDERS, Where({"total": {"gte": least}}), None, visibility)
    assert selection is not None
    table: dict[int, Row] = {}
    kept: dict[int, Row] = {}
    for id_, wanted in history:
        before = table.pop(id_, None)
        after = None if wanted is None or wanted["id"] in table else wanted
        if before is None and after is None:
            continue
        if after is not None:
            table[after["id"]] = after
        answer = told(selection, change_event(before, after, old))
        if answer is not None:
            mark, event = answer
            data = event["data"]
            former = {**data.get("new", {}), **data.get("old", {})}.get("id", data["key"]["id"])
            assert (mark == "enter") == (former not in kept)
            kept.pop(former, None)
            if mark != "leave":
                kept[data["key"]["id"]] = data["new"]
        assert kept == {key: row for key, row in table.items() if row["total"] >= least and rule in (None, row["customer"])}


@given(st.none() | rows, st.none() | rows, st.sampled_from(["full", "changed"]))
def test_no_value_of_a_row_outside_the_rule_and_no_hidden_column_leaves(before: Row | None, after: Row | None, old: str) -> None:
    """Every value is unique to its row here, so that a leak is seen wherever it stands in the message."""
    if before is None and after is None:
        return
    before = before and {**before, "private": "before-private", "note": "hidden-before"}
    after = after and {**after, "id": 1000 + after["id"], "private": "after-private", "note": "hidden-after"}
    event = change_event(before, after, old)
    event.subject += f".{(after or before or {})['customer']}00"
    selection = Selection.of(ORDERS, None, None, Visibility.from_claims({"public.orders": {"customer": {"eq": 1}}}, {"public.orders": ["note"]}))
    assert selection is not None
    shown = selection.judge(event)
    sees_before, sees_after = (row is not None and row["customer"] == 1 for row in (before, after))
    assert (shown is not None) == (sees_before or sees_after)
    if shown is None:
        return
    assert isinstance(shown, Shown)
    assert b"hidden" not in shown.payload
    if not sees_after:
        assert b"after" not in shown.payload
        assert after is None or (b"100" not in shown.payload and b"200" not in shown.payload), "neither the new key nor the new route"
    if not sees_before:
        assert b"before" not in shown.payload


branches = st.fixed_dictionaries({"customer": st.integers(1, 2), "branch": st.sampled_from(["1", "2", "north", "south"]), "total": st.sampled_from([1, 2, 77])})


@example([{"customer": 1, "branch": "south", "total": 77}, {"customer": 2, "branch": "north", "total": 77}], "north", "changed")
@example([{"customer": 2, "branch": "north", "total": 77}, {"customer": 1, "branch": "south", "total": 77}], "north", "changed")
@given(st.lists(st.none() | branches, max_size=12), st.sampled_from(["1", "north"]), st.sampled_from(["full", "changed"]))
def test_under_a_rule_a_route_tells_of_the_rows_that_were_seen_there_and_of_no_other(history: list[Row | None], route: str, old: str) -> None:
    """Else `orders.*.north`, `orders.*.south` … would tell where a row went that left what the rule shows, and where one came from.

    What is told makes exactly the set of the rows of the route that the rule shows, whatever other columns have the text of the route.
    """
    pattern = Pattern(f"pg.shop.change.public.orders.*.{route}")
    selection = Selection.of(pattern, None, None, Visibility.from_claims({"public.orders": {"customer": {"eq": 1}}}, {}))
    assert selection is not None
    before: Row | None = None
    here = False
    for after in history:
        if before is None and after is None:
            continue
        routes = [row["branch"] for row in (after, before) if row is not None]
        was_here, is_here = (row is not None and row["customer"] == 1 and row["branch"] == route for row in (before, after))
        marks: list[str | None] = []
        for copy, at in enumerate(dict.fromkeys(routes)):
            event = change_event(before and {"id": 5, **before}, after and {"id": 5, **after}, old)
            event.subject, event.copy = f"{event.subject}.{at}", copy == 1
            found = told(selection, event) if pattern.matches(event.subject) else None
            marks += [] if found is None else [found[0]]
        assert len(marks) <= 1
        ambiguous = {"1", "2"} & set(routes)  # the text of another column too
        assert was_here or is_here or ambiguous or not marks, "nothing of a row that was not here and is not"
        moved = before is not None and after is not None and before["branch"] != after["branch"]
        # A move is told under both routes: under the old one `stay`, where the rule shows the row here and there; it is the subject that says where it went.
        here = (here or marks[:1] == ["enter"]) and marks[:1] != ["leave"] and not (moved and marks[:1] == ["stay"] and routes[0] != route)
        here = here or (moved and marks[:1] == ["stay"] and routes[0] == route)
        assert here == is_here
        before = after


@pytest.mark.parametrize("condition", [{"eq": "x"}, {"ne": "y"}, {"null": False}, {"null": True}, {"gte": ""}])
def test_which_rows_match_tells_nothing_of_a_hidden_column(condition: dict[str, Any]) -> None:
    """Otherwise its values could be searched for with `where`, in events and in a snapshot's rows."""
    hiding = Visibility.from_claims({}, {"public.orders": ["note"]})
    selection, plain = (Selection.of(Pattern("pg.>"), Where({"note": condition}), None, visibility) for visibility in (hiding, Visibility()))
    assert selection is not None
    assert plain is not None
    event = change_event({"id": 1, "note": "x"}, {"id": 1, "note": "x"}, "full")
    assert selection.judge(event) is None
    assert selection.row(("public", "orders"), {}, fields_of(b'{"id":1,"note":"x"}')) is None
    assert (plain.judge(event) is not None) == (condition != {"null": True})


def test_a_hidden_key_column_goes_from_the_key_and_from_the_subject_that_is_its_text() -> None:
    selection = Selection.of(ORDERS, None, None, Visibility.from_claims({}, {"public.orders": ["id"]}))
    assert selection is not None
    mark, event = told(selection, stream_event("insert", key={"id": 4711, "line": 2}, new={"id": 4711, "line": 2})) or (None, {})
    assert mark is None
    assert event["data"] == {"op": "insert", "schema": "public", "table": "orders", "key": {"line": 2}, "new": {"line": 2}}
    assert "4711" not in str(event)


def test_select_leaves_the_columns_that_were_asked_for_and_every_digit_of_them() -> None:
    selection = Selection.of(ORDERS, None, frozenset(["total"]), Visibility())
    assert selection is not None
    body = b'{"id":"i","subject":"1","txid":"7","data":{"op":"update","key":{"id":1},"new":{"id":1,"total":1.10000000000000000001},"old":{"total":1e400}}}'
    shown = selection.judge(StreamEvent("epoch", 5, "pg.shop.change.public.orders.update", body))
    assert isinstance(shown, Shown)
    assert shown.mark == b"null"
    assert b'"key":{"id":1},"new":{"total":1.10000000000000000001},"old":{"total":1e400}' in shown.payload
    assert b'"subject":"1"' in shown.payload


def test_what_where_cannot_judge_is_told_with_null() -> None:
    """--old none, and an event that was too large to be told whole."""
    selection = Selection.of(ORDERS, Where({"total": {"gt": 5}}), None, Visibility())
    assert selection is not None
    for event in (
        stream_event("update", key={"id": 1}, new={"id": 1, "total": 1}),
        stream_event("update", key={"id": 1}, truncated=True),
        stream_event("insert", key={"id": 1}, truncated=True),
        stream_event("truncate"),
        StreamEvent("epoch", 5, "pg.shop.change.public.orders.insert", b'{"data":{"deep":' + b"[" * 200_000 + b"]" * 200_000 + b"}}"),
    ):
        assert selection.judge(event) == Shown(event.payload)
    by_key = Selection.of(ORDERS, Where({"id": {"gt": 5}}), None, Visibility())
    assert by_key is not None
    assert by_key.judge(stream_event("insert", key={"id": 1}, truncated=True)) is None
    assert told(by_key, stream_event("delete", key={"id": 6}, truncated=True)) is not None


def test_what_a_rule_cannot_judge_is_withheld() -> None:
    """An event too large is a gap; a watch that never tells enough ends the subscription, with the fix."""
    rule = {"public.orders": {"customer": {"eq": 1}}}
    selection = Selection.of(ORDERS, None, None, Visibility.from_claims(rule, {}))
    assert selection is not None
    for truncated in (stream_event("update", key={"id": 1}, truncated=True), stream_event("insert", key={"id": 1}, truncated=True)):
        assert selection.judge(truncated) == Unseen(None)
    deep = StreamEvent("epoch", 5, "pg.shop.change.public.orders.insert", b'{"data":{"deep":' + b"[" * 200_000 + b"]" * 200_000 + b"}}")
    assert selection.judge(deep) == Unseen(None)
    for blind in (stream_event("update", key={"id": 1}, new={"id": 1, "customer": 2}), stream_event("insert", key={"id": 1}, new={"id": 1})):
        answer = selection.judge(blind)
        assert isinstance(answer, Unseen)
        assert "customer" in str(answer.forbidden)
        assert "--old changed" in str(answer.forbidden)
    assert told(selection, stream_event("update", key={"id": 1}, new={"id": 1, "customer": 1})) is not None
    assert isinstance(selection.judge(stream_event("truncate")), Shown)


def test_findings_about_a_table_with_a_rule_are_withheld_and_other_kinds_are_judged_by_their_payload() -> None:
    visibility = Visibility.from_claims({"public.orders": {"customer": {"eq": 1}}}, {})
    everything = Selection.of(Pattern("pg.>"), Where({"customer": {"eq": 1}}), None, visibility)
    assert everything is not None
    payload = b'{"txid":"7","data":{"customer":%d}}'
    assert everything.judge(StreamEvent("e", 1, "pg.shop.drift.public.orders", payload % 1)) is None
    assert everything.judge(StreamEvent("e", 1, "pg.shop.event.order.paid", payload % 2)) is None
    assert everything.judge(StreamEvent("e", 1, "pg.shop.event.order.paid", payload % 1)) is not None


@pytest.mark.parametrize(
    ("pattern", "touched"),
    [
        ("pg.>", True),
        ("pg.shop.change.public.orders.*", True),
        ("pg.*.change.*.orders.insert.7", True),
        ("pg.shop.drift.public.orders", True),
        ("pg.shop.change.public.customers.*", False),
        ("pg.shop.event.>", False),
    ],
)
def test_who_can_not_be_touched_by_a_rule_pays_nothing_for_it(pattern: str, touched: bool) -> None:
    visibility = Visibility.from_claims({"public.orders": {"customer": {"eq": 1}}}, {})
    assert (Selection.of(Pattern(pattern), None, None, visibility) is not None) == touched


def test_equal_selections_judge_an_event_once() -> None:
    """A thousand clients with one filter cost one judgement, and one parse."""
    made = [Selection.of(ORDERS, Where({"total": {"gt": 5}}), frozenset(["id"]), Visibility()) for _ in range(2)]
    event = stream_event("insert", key={"id": 1}, new={"id": 1, "total": 6})
    first, second = (selection.judge(event) for selection in made if selection is not None)
    assert first is second
    assert event.change is event.change


def test_a_column_nested_beyond_the_parser_reaches_a_client_of_bare_events_too() -> None:
    """An error there would end the stream's reader for everybody."""
    sent: list[bytes] = []

    class Sink:
        waiting = 0

        def send(self, payload: bytes) -> None:
            sent.append(payload)

        def send_event(self, event: StreamEvent) -> None:
            raise AssertionError(event)

        def close(self, code: int, reason: str) -> None:
            raise AssertionError(reason)

    body = b'{"data":{"deep":' + b"[" * 5000 + b"]" * 5000 + b"}}"
    event = StreamEvent("epoch", 5, "pg.shop.change.public.orders.insert", body)
    outbox = BareOutbox(cast("Any", Sink()))
    outbox.send(addressed(event.payload, [(b'"event"', b"null")]))
    outbox.send(b'{"op":"row","id":"a","key":null,"row":' + body + b"}")
    assert sent[0] == b'{"natssubject":"pg.shop.change.public.orders.insert","position":"epoch-5",' + body[1:]
    assert b'"type":"tocsin.row"' in sent[1]
