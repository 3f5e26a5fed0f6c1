"""What has been taken back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.access import TokenRefused
from tocsin.revocation import Identity, Revocation, Revoked, identity_of


def grant(token_id: str | None = "t", user: str | None = "alice", issued: float = 100.0) -> Identity:
    return Identity(user, token_id, issued, expires=1e9)


@pytest.mark.parametrize(
    ("revocation", "held", "free"),
    [
        (Revocation(jti="t"), [grant(), grant(issued=999)], [grant("u"), grant(None)]),
        (Revocation(sub="alice"), [grant(), grant("u"), grant(issued=500.0)], [grant(issued=500.5), grant(user="bob"), grant(user=None)]),
        (Revocation(sub="alice", before=200), [grant(issued=200)], [grant(issued=201), grant(user="bob")]),
        (Revocation(before=200), [grant(), grant(user=None), grant(None, None, 0.0)], [grant(issued=201)]),
    ],
)
def test_a_revocation_holds_what_it_says_and_no_more(revocation: Revocation, held: list[Identity], free: list[Identity]) -> None:
    revoked = Revoked()
    revoked.add(revocation, 500.0)
    assert all(revoked.holds(one) for one in held)
    assert not any(revoked.holds(one) for one in free)
    assert not revoked.holds(Identity(None, None, 0.0, None)), "who needed no token has none that could be taken back"


def test_claims_say_whose_token_it_is_or_the_token_is_refused() -> None:
    assert identity_of({"exp": 9, "iat": 5, "sub": "alice", "jti": "t"}) == Identity("alice", "t", 5.0, 9.0)
    assert identity_of({"exp": 9}) == Identity(None, None, 0.0, 9.0), "a token that does not say when it was issued counts as old"
    for wrong in ({"sub": 7}, {"jti": ["t"]}, {"iat": "soon"}, {"iat": None}, {"iat": 10**400}):
        with pytest.raises(TokenRefused):
            identity_of({"exp": 9, **wrong})


@pytest.mark.parametrize(
    ("revocation", "sense"),
    [
        (Revocation(), False),
        (Revocation(jti="a", sub="b"), False),
        (Revocation(jti="a", before=1), False),
        (Revocation(sub="b", before=1), True),
        (Revocation(jti="a"), True),
    ],
)
def test_a_message_says_something_or_is_ignored(revocation: Revocation, sense: bool) -> None:
    assert revocation.says_something is sense


revocations = st.builds(Revocation, jti=st.sampled_from("ab")) | st.builds(
    Revocation, sub=st.sampled_from(["x", "y", None]), before=st.none() | st.integers(0, 9)
).filter(lambda made: made.says_something)


@given(
    st.lists(st.tuples(revocations, st.integers(0, 9)), max_size=8),
    st.randoms(),
    st.sampled_from(["a", "c", None]),
    st.sampled_from(["x", None]),
    st.integers(0, 10),
)
def test_order_and_repetition_do_not_matter(
    messages: list[tuple[Revocation, int]], chance: object, token_id: str | None, user: str | None, issued: int
) -> None:
    """A gateway hears some at once, some later, and some twice."""
    one, other = Revoked(), Revoked()
    for revocation, at in messages:
        one.add(revocation, at)
    again = [*messages, *messages]
    chance.shuffle(again)  # type: ignore[attr-defined]
    for revocation, at in again:
        other.add(revocation, at)
    asked = grant(token_id, user, float(issued))
    held = any(
        (said.jti is not None and said.jti == token_id)
        or (said.jti is None and (said.sub is None or said.sub == user) and issued <= (at if said.before is None else said.before))
        for said, at in messages
    )
    assert one.holds(asked) == other.holds(asked) == held
