"""Subjects: one token for every name and back; containment, overlap and cover against brute force over a small universe."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.subject import (
    MAX_TOKEN,
    OPS,
    Pattern,
    SubjectError,
    canary_subject,
    change_subject,
    cover,
    decode_token,
    encode_token,
    stream_subjects,
)

LETTERS = ("a", "b", "c")  # patterns use a and b; c stands for every token that no pattern names
UNIVERSE = [".".join(tokens) for length in range(1, 6) for tokens in itertools.product(LETTERS, repeat=length)]


@st.composite
def patterns(draw: st.DrawFn) -> Pattern:
    """Patterns of one to four tokens over a, b, * and a last >."""
    tokens = draw(st.lists(st.sampled_from(("a", "b", "*")), max_size=3))
    last = draw(st.sampled_from(("a", "b", "*", ">")))
    return Pattern(".".join((*tokens, last)))


def subjects_of(pattern: Pattern) -> set[str]:
    return {subject for subject in UNIVERSE if pattern.matches(subject)}


@given(patterns(), patterns())
def test_contains_is_the_subset_relation(one: Pattern, other: Pattern) -> None:
    assert one.contains(other) == (subjects_of(other) <= subjects_of(one))


@given(patterns(), patterns())
def test_overlaps_is_a_common_subject(one: Pattern, other: Pattern) -> None:
    assert one.overlaps(other) == bool(subjects_of(one) & subjects_of(other))


@given(patterns(), patterns())
def test_a_union_contains_both(one: Pattern, other: Pattern) -> None:
    union = one.union(other)
    assert union.contains(one)
    assert union.contains(other)


@given(st.lists(patterns(), max_size=7))
def test_a_cover_contains_everything_and_overlaps_nowhere(wanted: list[Pattern]) -> None:
    found = cover(wanted)
    for pattern in wanted:
        assert sum(one.contains(pattern) for one in found) == 1, f"{pattern} in {found}"
    for one, other in itertools.combinations(found, 2):
        assert not one.overlaps(other), f"NATS would refuse {one} beside {other}"
    assert cover(found) == found
    assert cover(reversed(wanted)) == found, "the order in which clients came must not matter"


@given(st.lists(patterns(), min_size=1, max_size=5))
def test_patterns_that_do_not_overlap_are_their_own_cover(wanted: list[Pattern]) -> None:
    if all(not one.overlaps(other) for one, other in itertools.combinations(set(wanted), 2)):
        assert set(cover(wanted)) == set(wanted)


@given(st.text())
def test_every_name_has_one_plain_token(name: str) -> None:
    try:
        token = encode_token(name)
    except UnicodeEncodeError:  # lone surrogates, which no PostgreSQL name can hold
        return
    assert Pattern(token).is_literal
    assert len(token) <= MAX_TOKEN
    if not token.startswith("%H"):
        assert decode_token(token) == name


@given(st.text(max_size=20), st.text(max_size=20))
def test_different_names_have_different_tokens(one: str, other: str) -> None:
    if one != other and one.isprintable() and other.isprintable():
        assert encode_token(one) != encode_token(other)


@pytest.mark.parametrize(
    ("value", "token"),
    [
        (None, "%N"),
        ("", "%E"),
        ("%N", "%25N"),
        ("orders", "orders"),
        ("Bestellungen 2026", "Bestellungen%202026"),
        ("für", "f%C3%BCr"),
        ("a.b", "a%2Eb"),
        ("x" * 128, "x" * 128),
        ("x" * 129, "%H" + hashlib.sha256(b"x" * 129).hexdigest()[:32]),
    ],
)
def test_the_tokens_of_the_contract(value: str | None, token: str) -> None:
    assert encode_token(value) == token


def test_a_subject_of_a_change_ends_in_its_route() -> None:
    assert change_subject("pg", "shop", "public", "orders", "insert", ["42", None, "a b"]) == "pg.shop.change.public.orders.insert.42.%N.a%20b"


def test_the_stream_binds_every_kind_but_live() -> None:
    bound = [Pattern(subject) for subject in stream_subjects("pg", "shop")]
    kinds = ("change.public.orders.insert", "event.order.paid", "schema.public.orders", "drift.public.orders", "notify.mail")
    for subject in (*(f"pg.shop.{kind}" for kind in kinds), canary_subject("shop")):
        assert sum(pattern.matches(subject) for pattern in bound) == 1, subject
    assert not any(pattern.matches("pg.shop.live.room.1") for pattern in bound)
    assert not Pattern("pg.>").matches(canary_subject("shop")), "who subscribes to everything must not see the canary"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (".a", "empty token"),
        ("a..b", "empty token"),
        ("a.", "empty token"),
        ("a.>.b", "last token"),
        ("a.b*", "stand alone"),
        ("a b", "not allowed"),
        ("a\x00b", "not allowed"),
        ("a." * 40 + "a", "tokens"),
        ("a" * 2000, "characters"),
    ],
)
def test_a_bad_pattern_says_why(text: str, reason: str) -> None:
    with pytest.raises(SubjectError, match=reason):
        Pattern(text)


def test_every_op_is_a_plain_token() -> None:
    assert [encode_token(op) for op in OPS] == list(OPS)
