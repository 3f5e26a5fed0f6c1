"""The limits: their page, their setting, and the census of connections."""

from __future__ import annotations

import re
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.access import MAX_TOKEN
from tocsin.errors import OperatorError
from tocsin.subject import MAX_PATTERN, MAX_TOKENS
from tocsin_gateway.admission.census import Census, Visit
from tocsin_gateway.admission.grant import MAX_PATTERNS
from tocsin_gateway.admission.headcount import SharedHeadcount
from tocsin_gateway.limits import JOIN_BUFFER_BYTES, REPLAY_PAGE, REPLAY_PAGE_BYTES, Limits, chosen_limits
from tocsin_gateway.protocol import MAX_ID, ProtocolError

PAGE = (Path(__file__).parents[3] / "docs/limits.md").read_text()


def test_the_page_of_limits_is_the_code_s() -> None:
    rows = dict(re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", PAGE, re.MULTILINE))
    assert rows == {name: str(getattr(Limits(), name)) for name in Limits.__struct_fields__}
    fixed = (MAX_PATTERN, MAX_TOKENS, MAX_ID, MAX_TOKEN, MAX_PATTERNS, REPLAY_PAGE, REPLAY_PAGE_BYTES, JOIN_BUFFER_BYTES)
    for number in fixed:
        assert re.search(rf"\b{number}\b", PAGE.partition("Not to be changed")[2]), number


def test_a_limit_is_changed_by_its_name() -> None:
    assert chosen_limits(["subscriptions=256", " auth_seconds = 2.5 "]) == Limits(subscriptions=256, auth_seconds=2.5)
    assert chosen_limits([]) == Limits()


@pytest.mark.parametrize(
    "change",
    ["subscription=1", "subscriptions", "subscriptions=", "subscriptions=0", "subscriptions=-1", "subscriptions=1.5", "auth_seconds=nan", "replays=9e99"],
)
def test_a_limit_that_is_none_is_named_with_what_is_allowed(change: str) -> None:
    with pytest.raises(OperatorError) as problem:
        chosen_limits([change])
    assert problem.value.exit_code == 2
    assert "TOCSIN_LIMITS" in str(problem.value)
    assert "allowed" in problem.value.fix or "these are there" in problem.value.fix


def test_each_limit_of_connections_refuses_the_one_too_many_and_says_which() -> None:
    refused: list[str] = []
    census = Census(Limits(connections=4, connections_per_address=2, connections_per_user=1), refused.append)
    first, _ = census.enter("10.0.0.1"), census.enter("10.0.0.1")
    with pytest.raises(ProtocolError, match="one address") as problem:
        census.enter("10.0.0.1")
    assert problem.value.code == "limit"
    other = census.enter("10.0.0.2")
    first.belongs_to("alice")
    first.belongs_to("alice")
    with pytest.raises(ProtocolError, match="one user"):
        other.belongs_to("alice")
    other.belongs_to("bob")
    with pytest.raises(ProtocolError, match="one user"):
        other.belongs_to("alice")
    first.leave()
    other.belongs_to("alice")
    census.enter("::1")
    census.enter("127.0.0.1")
    with pytest.raises(ProtocolError) as problem:
        census.enter("127.0.0.1")
    assert problem.value.code == "unavailable"
    assert refused == ["connections_per_address", "connections_per_user", "connections_per_user", "connections"]


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["a", "b", "é\ud800"]), st.booleans()), max_size=50), st.integers(0, 2))
def test_workers_count_together_and_without_who_has_ended(steps: list[tuple[int, str, bool]], ended: int) -> None:
    counts: Counter[tuple[int, str]] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "headcount"
        SharedHeadcount.create(path, 3)
        workers = [SharedHeadcount(path, number, 3) for number in range(3)]
        for number, key, comes in steps:
            if comes or counts[number, key]:
                counts[number, key] += 1 if comes else -1
                workers[number].add(key, 1 if comes else -1)
        for key in ("a", "b", "é\ud800", "nobody"):
            assert {worker.of(key) for worker in workers} == {sum(counts[number, key] for number in range(3))}
        workers[ended].forget(ended)
        for key in ("a", "b"):
            assert workers[0].of(key) == sum(counts[number, key] for number in range(3) if number != ended)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["in", "out", "user"]), st.sampled_from(["10.0.0.1", "10.0.0.2", "127.0.0.1", None]), st.sampled_from(["alice", "bob", None])
        ),
        max_size=60,
    )
)
def test_the_census_counts_as_a_list_would(steps: list[tuple[str, str | None, str | None]]) -> None:
    census = Census(Limits(connections=6, connections_per_address=3, connections_per_user=2), lambda _: None)
    there: list[tuple[Visit, str | None]] = []
    users: dict[Visit, str | None] = {}
    for step, address, user in steps:
        if step == "in":
            room = len(there) < 6 and (address in (None, "127.0.0.1") or sum(known == address for _, known in there) < 3)
            try:
                visit = census.enter(address)
                there.append((visit, address))
                users[visit] = None
                assert room
            except ProtocolError:
                assert not room
        elif there and step == "out":
            visit, _ = there.pop(0)
            visit.leave()
            del users[visit]
        elif there:
            visit = there[-1][0]
            room = user is None or users[visit] == user or sum(known == user for known in users.values()) < 2
            try:
                visit.belongs_to(user)
                users[visit] = user
                assert room
            except ProtocolError:
                assert not room
