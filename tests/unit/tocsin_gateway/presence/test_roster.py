"""Who is present, over gateways that come, go and fall silent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tocsin_gateway.presence.roster import MAX_MEMBERS, SILENCE_SECONDS, Member, Roster, Said

A, B = Member("pg.x", "a", "alice"), Member("pg.x", "b", None)


def test_a_member_comes_once_and_goes_once() -> None:
    roster = Roster()
    assert roster.hear(Said("g", joined=A), 0) == [(A, True)]
    assert roster.hear(Said("g", joined=A), 0) == []
    assert roster.hear(Said("g", (A, B)), 0) == [(B, True)]
    assert roster.at("pg.x") == [A, B]
    assert roster.hear(Said("g", left=A), 0) == [(A, False)]
    assert roster.hear(Said("g", ()), 0) == [(B, False)]
    assert roster.at("pg.x") == []


def test_a_gateway_that_falls_silent_has_nobody() -> None:
    roster = Roster()
    roster.hear(Said("mine", joined=A), 0)
    roster.hear(Said("dead", joined=B), 0)
    assert roster.forget(SILENCE_SECONDS, but="mine") == []
    assert roster.forget(SILENCE_SECONDS + 1, but="mine") == [(B, False)]
    assert roster.at("pg.x") == [A]


def test_a_gateway_can_t_fill_our_memory() -> None:
    roster = Roster()
    crowd = tuple(Member("pg.x", str(number)) for number in range(MAX_MEMBERS + 10))
    assert len(roster.hear(Said("g", crowd), 0)) == MAX_MEMBERS
    assert roster.hear(Said("g", joined=A), 0) == []


@given(
    st.lists(st.tuples(st.sampled_from("gh"), st.sampled_from(["join", "leave", "all", "silent"]), st.sets(st.sampled_from("abc"), max_size=3)), max_size=40)
)
def test_what_changed_adds_up_to_who_is_there(steps: list[tuple[str, str, set[str]]]) -> None:
    roster, there, now = Roster(), set[tuple[str, Member]](), 0.0
    counted: dict[Member, int] = {}
    for gateway, step, names in steps:
        members = tuple(Member("pg.x", f"{gateway}{name}") for name in sorted(names))
        changes = []
        if step == "silent":
            now += SILENCE_SECONDS + 1
            changes = roster.forget(now, but="nobody")
            there.clear()
        elif step == "all":
            changes = roster.hear(Said(gateway, members), now)
            there = {entry for entry in there if entry[0] != gateway} | {(gateway, member) for member in members}
        else:
            for member in members:
                changes += roster.hear(Said(gateway, joined=member) if step == "join" else Said(gateway, left=member), now)
                (there.add if step == "join" else there.discard)((gateway, member))
        for member, here in changes:
            counted[member] = counted.get(member, 0) + (1 if here else -1)
        assert {member for member, number in counted.items() if number} == {member for _, member in there} == set(roster.at("pg.x"))
        assert set(counted.values()) <= {0, 1}
