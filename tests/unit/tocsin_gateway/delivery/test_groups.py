"""Groups of clients are found by the values that they ask for: none that an event is for is missed, and few that it is not for are looked at."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.tocsin_gateway.delivery.test_selection import stream_event
from tocsin.subject import Pattern
from tocsin_gateway.delivery.groups import Groups
from tocsin_gateway.delivery.selection import Selection
from tocsin_gateway.rows.condition import Where
from tocsin_gateway.rows.visibility import Visibility

PATTERNS = ("pg.shop.change.public.orders.>", "pg.shop.change.public.*.>", "pg.shop.change.>", "pg.>")
SCALARS = [True, 1, "1", "1.0", Decimal("1.00"), 2**53 + 1, str(2**53 + 1), "x"]
scalars = st.sampled_from(SCALARS)
values = st.sampled_from([None, *SCALARS, [1]])
tests = st.one_of(
    st.fixed_dictionaries({"eq": scalars}),
    st.fixed_dictionaries({"in": st.lists(scalars, min_size=1, max_size=20)}),
    st.fixed_dictionaries({"eq": scalars, "in": st.lists(scalars, min_size=1, max_size=3)}),
    st.fixed_dictionaries({"gte": st.just(0)}),
    st.fixed_dictionaries({"null": st.booleans()}),
)
wheres = st.dictionaries(st.sampled_from(["a", "b", "missing"]), tests, min_size=1, max_size=2).map(Where)
rules = st.one_of(st.just(Visibility()), wheres.map(lambda rule: Visibility({("public", "orders"): rule})))
rows = st.fixed_dictionaries({"id": st.integers(1, 2), "a": values, "b": values}) | st.fixed_dictionaries({"id": st.integers(1, 2), "a": values})
events = st.tuples(st.sampled_from(["insert", "read", "update", "delete", "truncate", "event"]), st.none() | rows, st.none() | rows)


@settings(max_examples=300)
@given(st.sampled_from(PATTERNS), st.lists(st.tuples(st.none() | wheres, rules), min_size=1, max_size=8), st.lists(events, min_size=1, max_size=5), st.data())
def test_no_group_that_an_event_is_for_is_missed(pattern: str, asked: list[tuple[Any, Visibility]], told: list[Any], data: st.DataObject) -> None:
    """Also after some have left; an event that a rule can't judge is told to its group too."""
    groups: Groups[object] = Groups(Pattern(pattern))
    for number, (where, visibility) in enumerate(asked):
        groups.join(Selection.of(Pattern(pattern), where, None, visibility), str(number).encode())
    for group in data.draw(st.lists(st.sampled_from(groups.all()), unique=True)):
        groups.leave(group)
    for op, new, old in told:
        event = stream_event(op, key={"id": 1}, new=new, old=old)
        if op == "event":
            event.subject = "pg.shop.event.public.orders.insert"
            event.body = event.body.replace(b'"op":"event"', b'"op":"insert"')
        if not Pattern(pattern).matches(event.subject):
            continue
        wanting = set(groups.wanting(event))
        assert [group for group in groups.all() if group.frame(event) is not None and group not in wanting] == []


def test_of_thousands_that_follow_a_value_each_an_event_is_judged_for_its_own() -> None:
    pattern = Pattern(PATTERNS[0])
    groups: Groups[object] = Groups(pattern)
    for customer in range(5000):
        groups.join(Selection.of(pattern, Where({"a": {"eq": customer}, "b": {"gte": 0}}), None, Visibility()), b'"a"')
    own = groups.join(Selection.of(pattern, None, None, Visibility({("public", "orders"): Where({"a": {"in": ["7", 8]}})})), b'"a"')
    plain = groups.join(None, b'"a"')
    event = stream_event("update", key={"id": 1}, new={"a": 7, "b": 1}, old={"a": "4999", "b": 1})
    assert len(tuple(groups.wanting(event))) == 4
    assert {own, plain} < set(groups.wanting(event))
    assert len(tuple(groups.wanting(stream_event("truncate")))) == 5002
    for group in groups.all():
        groups.leave(group)
    assert not groups
    assert tuple(groups.wanting(event)) == ()
