"""Who may connect, and what may be asked for."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from itertools import product
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin.access import TokenRefused, TokenRules
from tocsin.errors import OperatorError
from tocsin.subject import Pattern
from tocsin_gateway.admission.access import Access, Grant, check_exposure, host_allowed, origin_allowed, seconds_left
from tocsin_gateway.protocol import ProtocolError

SECRET = "a-secret-of-at-least-thirty-two-bytes"


def access(**options: Any) -> Access:
    return Access("pg", "shop", TokenRules(SECRET, **options))


def granted(checker: Access, text: str) -> Grant:
    return asyncio.run(checker.authenticate(text)).grant


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    return jwt.encode({"exp": time.time() + 3600, "subscribe": ["pg.shop.>"], **claims}, secret, algorithm)


def refused(checker: Access, text: str) -> str:
    with pytest.raises(ProtocolError) as problem:
        granted(checker, text)
    assert problem.value.code == "unauthenticated"
    assert len(text) < 16 or text not in str(problem.value), "a token must not get into a log"
    return str(problem.value)


def test_a_good_token_grants_its_patterns_until_it_expires() -> None:
    grant = granted(access(), token(subscribe=["pg.shop.change.public.orders.*.42", "pg.shop.event.>"]))
    grant.check(Pattern("pg.shop.change.public.orders.insert.42"), "a")
    grant.check(Pattern("pg.shop.event.order.*"), "a")
    assert 3595 < (seconds_left(grant) or 0) <= 3600
    assert (grant.expires_text or "").endswith("Z")


@pytest.mark.parametrize(
    "asked", ["pg.shop.change.>", "pg.shop.change.public.orders.*.*", "pg.shop.change.public.orders.*", "pg.*.event.x", "pg.>", ">", "*.>"]
)
def test_a_pattern_that_overlaps_but_is_not_contained_is_forbidden(asked: str) -> None:
    grant = granted(access(), token(subscribe=["pg.shop.change.public.orders.*.42", "pg.shop.event.>"]))
    with pytest.raises(ProtocolError) as problem:
        grant.check(Pattern(asked), "a")
    assert (problem.value.code, problem.value.id) == ("forbidden", "a")


tokens = st.sampled_from(["a", "b"])
patterns = st.builds(lambda head, last: Pattern(".".join([*head, last])), st.lists(tokens | st.just("*"), max_size=2), tokens | st.sampled_from(["*", ">"]))
SUBJECTS = [".".join(parts) for size in range(1, 5) for parts in product("ab", repeat=size)]


@given(st.lists(patterns, max_size=3), patterns)
def test_what_is_allowed_is_never_more_than_the_grant(allowed: list[Pattern], asked: Pattern) -> None:
    """Against brute force over every subject of up to four tokens."""
    try:
        Grant(tuple(allowed)).check(asked, "a")
    except ProtocolError:
        return
    assert all(any(pattern.matches(subject) for pattern in allowed) for subject in SUBJECTS if asked.matches(subject))


WIDER = [".".join(parts) for size in range(1, 5) for parts in product("abc", repeat=size)]
"""With a token that no pattern names, for what a wildcard matches besides."""


@given(patterns, st.lists(patterns, max_size=2), patterns)
def test_a_subscription_is_allowed_exactly_if_every_subject_of_it_is(allowed: Pattern, denied: list[Pattern], asked: Pattern) -> None:
    """Against brute force, with one allowed pattern; with several, one of them has to contain the whole."""
    free = all(allowed.matches(subject) and not any(no.matches(subject) for no in denied) for subject in WIDER if asked.matches(subject))
    try:
        Grant((allowed,), denied=tuple(denied)).check(asked, "a")
    except ProtocolError:
        assert not free, "refused without a reason"
    else:
        assert free, "allowed too much"


@given(st.lists(patterns, max_size=3), st.lists(patterns, max_size=2), st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=4))
def test_a_message_goes_exactly_where_it_may(allowed: list[Pattern], denied: list[Pattern], tokens: list[str]) -> None:
    subject = ".".join(tokens)
    free = any(yes.matches(subject) for yes in allowed) and not any(no.matches(subject) for no in denied)
    try:
        Grant((), publish=tuple(allowed), denied=tuple(denied)).check_publish(Pattern(subject), "a")
    except ProtocolError:
        assert not free
    else:
        assert free


@pytest.mark.parametrize(
    "claims",
    [
        {"deny": "pg.>"},
        {"deny": None},
        {"deny": [1]},
        {"deny": ["pg..x"]},
        {"publish": {"pg.shop.live.x": 1}},
        {"publish": True},
        {"presence": "yes"},
        {"presence": 1},
        {"subscribe": ["pg.x"] * 257},
        {"sub": "x" * 257},
        {"jti": "x" * 257},
        {"rows": {"public.orders": {"id": {"about": 1}}}},
        {"rows": [1]},
        {"rows": {"orders": {"id": {"eq": 1}}}},
        {"hidden": {"public.orders": "note"}},
    ],
)
def test_a_claim_that_is_not_well_formed_refuses_the_token(claims: dict[str, Any]) -> None:
    """Taken for less than it says it would open what it closes."""
    assert next(iter(claims)) in refused(access(), token(**claims)).lower()


def test_what_may_be_published_and_seen_is_cut_to_what_there_is() -> None:
    grant = granted(access(), token(publish=["pg.>", "pg.shop.live.a.*", "pg.other.live.a", "pg.shop.change.>"], presence=["pg.shop.live.a.*", "$SYS.>"]))
    assert [pattern.text for pattern in grant.publish] == ["pg.shop.live.a.*"]
    assert [pattern.text for pattern in grant.presence] == ["pg.shop.live.a.*"]
    assert granted(access(), token(presence=True)).may_see_presence(Pattern("pg.shop.change.>"))
    assert not granted(access(), token()).may_see_presence(Pattern("pg.shop.x"))


def test_a_claim_outside_the_prefix_grants_nothing() -> None:
    grant = granted(access(), token(subscribe=[">", "$SYS.>", "_INBOX.>", "$JS.API.>"]))
    assert grant.allowed == ()


@pytest.mark.parametrize("claim", [None, "pg.>", [1], {"pg.>": True}, ["pg..x"], ["pg.>.x"], [["pg.>"]]])
def test_a_token_without_a_list_of_patterns_is_refused(claim: object) -> None:
    assert "subscribe" in refused(access(), token(subscribe=claim))


@pytest.mark.parametrize(
    "claims",
    [
        {"exp": time.time() - 1},
        {"exp": "soon"},
        {"exp": None},
        {"exp": 10**30},
        {"exp": -(10**30)},
        {"exp": 1e308},
        {"nbf": time.time() + 86_400},
        {"iat": time.time() + 86_400},
    ],
)
def test_a_token_that_does_not_hold_now_is_refused(claims: dict[str, Any]) -> None:
    refused(access(), token(**claims))


async def test_an_issuer_s_clock_may_be_a_little_ahead_and_the_end_is_the_end() -> None:
    rules = TokenRules(secret=SECRET)
    await rules.claims(token(iat=time.time() + 5, nbf=time.time() + 5))
    with pytest.raises(TokenRefused, match="expired"):
        await rules.claims(token(exp=time.time() - 0.1))


def test_a_token_without_an_end_is_refused() -> None:
    assert "exp" in refused(access(), jwt.encode({"subscribe": ["pg.>"]}, SECRET, "HS256"))


def test_audience_and_issuer_must_be_the_configured_ones() -> None:
    checker = access(audience="tocsin", issuer="https://issuer")
    granted(checker, token(aud="tocsin", iss="https://issuer"))
    granted(checker, token(aud=["other", "tocsin"], iss="https://issuer"))
    for wrong in ({}, {"aud": "tocsin"}, {"iss": "https://issuer"}, {"aud": "other", "iss": "https://issuer"}, {"aud": "tocsin", "iss": "https://issuer.evil"}):
        refused(checker, token(**wrong))


def forged(header: dict[str, Any]) -> str:
    parts = [json.dumps(part).encode() for part in (header, {"exp": time.time() + 86_400, "subscribe": ["pg.>"]})]
    return ".".join([base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts] + [""])


@pytest.mark.parametrize(
    "text",
    [
        forged({"alg": "none", "typ": "JWT"}),
        forged({"alg": "NONE"}),
        forged({"alg": "HS256"}),
        token("another-secret-of-at-least-thirty-two-bytes"),
        token(SECRET + "x" * 40, "HS512"),
        token(SECRET * 2, "HS384"),
        "",
        "a.b.c",
        "....",
        "ü",
        "\ud800",
        "\0",
        "x" * 60_000,
        token() + "x",
        token().rpartition(".")[0] + ".",
    ],
    # The texts hold the time, and each process that collects must find the same names.
    ids=[
        "none",
        "NONE",
        "unsigned",
        "another-secret",
        "longer-secret",
        "twice-the-secret",
        "empty",
        "dots",
        "only-dots",
        "umlaut",
        "surrogate",
        "nul",
        "huge",
        "changed",
        "cut",
    ],
)
def test_a_forged_token_is_refused(text: str) -> None:
    refused(access(), text)


@given(st.text())
def test_no_text_is_more_than_refused(text: str) -> None:
    refused(access(), text)


def test_without_a_secret_everybody_has_everything_of_the_prefix_only() -> None:
    grant = Access("pg", "shop").anonymous()
    assert grant is not None
    assert seconds_left(grant) is None
    grant.check(Pattern("pg.>"), "a")
    with pytest.raises(ProtocolError):
        grant.check(Pattern(">"), "a")
    assert access().anonymous() is None


ALLOWED = ("https://app.example.com", "http://localhost:3000")


@pytest.mark.parametrize("origin", [None, "https://app.example.com", "https://app.example.com:443", "http://localhost:3000", "http://127.0.0.1:8080"])
def test_our_own_page_and_the_listed_ones_may_connect(origin: str | None) -> None:
    assert origin_allowed(origin, "127.0.0.1:8080", ALLOWED)


@pytest.mark.parametrize(
    "origin",
    [
        "null",
        "",
        "https://evil.example",
        "https://app.example.com.evil",
        "https://evil-app.example.com",
        "https://app.example.com@evil.example",
        "https://evil.example/https://app.example.com",
        "https://app.example.com/path",
        "https://app.example.com:444",
        "http://app.example.com",
        "HTTPS://APP.EXAMPLE.COM",
        "https://App.example.com",
        "https://app.example.com.",
        "https://app.example.com https://evil.example",
        "http://localhost:3001",
        "http://127.0.0.1:8081",
        "http://127.0.0.1.evil:8080",
        "file://",
        "http://[::1",
        "http://127.0.0.1:99999",
        "https://\u0430pp.example.com",
    ],
)
def test_any_other_origin_is_refused(origin: str) -> None:
    assert not origin_allowed(origin, "127.0.0.1:8080", ALLOWED)


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "10.0.0.5", "app.example.com", "console.localhost:8080"])
def test_hosts_that_no_stranger_can_make_his_own(host: str) -> None:
    assert host_allowed(host, ALLOWED)


@pytest.mark.parametrize("host", [None, "", "evil.example:8080", "127.0.0.1.evil:8080", "localhost.evil", "evil-localhost", "a@127.0.0.1", "x y"])
def test_a_name_that_leads_here_is_not_ours(host: str | None) -> None:
    assert not host_allowed(host, ALLOWED)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost", "127.8.8.8"])
def test_loopback_needs_no_token(host: str) -> None:
    check_exposure(host, needs_token=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "gateway.example.com"])
def test_another_address_needs_a_token_or_a_word(host: str) -> None:
    with pytest.raises(OperatorError) as problem:
        check_exposure(host, needs_token=False, insecure=False)
    assert problem.value.exit_code == 2
    assert "TOCSIN_JWT_SECRET" in problem.value.fix
    check_exposure(host, needs_token=True, insecure=False)
    check_exposure(host, needs_token=False, insecure=True)
