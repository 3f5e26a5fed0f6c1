"""Tokens signed with keys from an endpoint: rotation, outages, and every way to pass off a key as another."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import time
from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.key_server import KeyServer, SigningKey, ec_key, key_server, rsa_key
from tocsin.access import MAX_TOKEN, TokenRefused, TokenRules
from tocsin.errors import OperatorError, Unavailable
from tocsin.jwks import MAX_BYTES, KeySet, parse_keys

RSA, EC = rsa_key("one"), ec_key("two")


def rules(server: KeyServer, *, ask_again: float = 0.0, fresh: float = 300.0, **options: Any) -> TokenRules:
    return TokenRules(keys=KeySet(server.url, ask_again=ask_again, fresh=fresh), **options)


async def refused(checker: TokenRules, token: str) -> str:
    with pytest.raises(TokenRefused) as problem:
        await checker.claims(token)
    assert token not in str(problem.value)
    return str(problem.value)


@pytest.mark.parametrize("key", [RSA, EC], ids=["RS256", "ES256"])
async def test_a_token_of_a_published_key_holds(key: SigningKey) -> None:
    async with key_server(RSA, EC) as server:
        checker = rules(server, audience="tocsin", issuer="https://issuer")
        claims = await checker.claims(key.token(aud="tocsin", iss="https://issuer", sub="alice"))
        assert claims["sub"] == "alice"
        each: tuple[dict[str, Any], ...] = ({}, {"aud": "tocsin"}, {"aud": "x", "iss": "https://issuer"}, {"aud": "tocsin", "iss": "https://issuer.evil"})
        for wrong in each:
            await refused(checker, key.token(**wrong))
        await refused(checker, key.token(aud="tocsin", iss="https://issuer", exp=1))
        assert server.asked == 1


async def test_keys_rotate_and_a_withdrawn_one_is_refused() -> None:
    async with key_server(RSA) as server:
        checker = rules(server)
        await checker.claims(RSA.token())
        # The new key is asked for when the first token names it.
        server.keys = [EC.public]
        await checker.claims(EC.token())
        assert server.asked == 2
        await refused(checker, RSA.token())


async def test_a_withdrawn_key_is_refused_once_what_we_know_is_old() -> None:
    async with key_server(RSA) as server:
        checker = rules(server, fresh=0.05)
        await checker.claims(RSA.token())
        server.keys = []
        await asyncio.sleep(0.06)
        await refused(checker, RSA.token())


async def test_invented_key_ids_do_not_make_us_ask_again_and_again() -> None:
    async with key_server(RSA) as server:
        checker = rules(server, ask_again=60.0)
        await checker.claims(RSA.token())
        for number in range(50):
            await refused(checker, RSA.token(headers={"kid": f"invented-{number}"}))
        assert server.asked == 1


async def test_many_at_once_ask_once_and_the_loop_goes_on() -> None:
    async with key_server(RSA) as server:
        server.pause = 0.3
        checker = rules(server, ask_again=5.0)
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        async with asyncio.TaskGroup() as group:
            ticking = group.create_task(tick())
            async with asyncio.TaskGroup() as asking:
                for _ in range(50):
                    asking.create_task(checker.claims(RSA.token()))
            ticking.cancel()
        assert server.asked == 1
        assert ticks > 10, "the request was made in the event loop"


@pytest.mark.parametrize("fault", ["down", "500", "not JSON", "no keys", "huge", "redirect"])
async def test_an_endpoint_that_fails_leaves_the_known_keys(fault: str) -> None:
    async with key_server(RSA) as server:
        checker = rules(server, fresh=0.0)
        await checker.claims(RSA.token())
        server.down = fault == "down"
        server.status = {"500": 500, "redirect": 302}.get(fault, 200)
        server.location = server.url if fault == "redirect" else ""
        server.body = {"not JSON": b"<html>", "no keys": b"[]", "huge": b" " * (MAX_BYTES + 1), "500": b""}.get(fault)
        await checker.claims(RSA.token())
        assert server.asked > 1
        await refused(checker, EC.token())


async def test_without_ever_having_had_keys_nobody_comes_in() -> None:
    async with key_server(RSA) as server:
        server.status = 503
        checker = rules(server, ask_again=0.2)
        with pytest.raises(Unavailable):
            await checker.claims(RSA.token())
        server.status = 200
        with pytest.raises(Unavailable):
            await checker.claims(RSA.token())
        await asyncio.sleep(0.25)
        await checker.claims(RSA.token())


def signed_by_hand(header: dict[str, Any], secret: bytes) -> str:
    """PyJWT itself refuses to sign with a public key."""
    parts = [header, {"exp": int(time.time()) + 60, "subscribe": ["pg.>"]}]
    head = ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
    return f"{head}.{base64.urlsafe_b64encode(hmac.new(secret, head.encode(), hashlib.sha256).digest()).rstrip(b'=').decode()}"


async def test_a_public_key_is_no_hmac_secret() -> None:
    secrets = [RSA.pem, RSA.pem.strip(), json.dumps(RSA.public).encode(), RSA.public["n"].encode(), b""]
    async with key_server(RSA) as server:
        for secret in (None, "a-secret-of-at-least-thirty-two-bytes"):
            checker = rules(server, secret=secret)
            for guess in secrets:
                for algorithm in ("HS256", "RS256"):
                    await refused(checker, signed_by_hand({"alg": algorithm, "kid": "one"}, guess))


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "nOnE", "", None, 5, ["RS256"], "HS256", "HS512", "RS512", "PS256", "EdDSA", "ES384"])
async def test_an_algorithm_of_the_token_s_choice_is_refused(algorithm: Any) -> None:
    async with key_server(RSA, EC) as server:
        _, body, signature = RSA.token().split(".")
        header = base64.urlsafe_b64encode(json.dumps({"alg": algorithm, "kid": "one"}).encode()).rstrip(b"=").decode()
        for text in (f"{header}.{body}.{signature}", f"{header}.{body}."):
            await refused(rules(server), text)


async def test_a_key_is_used_with_its_own_algorithm_and_id_only() -> None:
    stranger = rsa_key("one")
    async with key_server(RSA, EC) as server:
        checker = rules(server)
        await refused(checker, stranger.token())
        await refused(checker, RSA.token(headers={"kid": "two"}))
        await refused(checker, EC.token(headers={"kid": "one"}))
        await refused(checker, RSA.token(headers={"kid": "../../etc/passwd"}))
        await refused(checker, stranger.token(headers={"kid": "new", "jku": "http://127.0.0.1:1/", "jwk": stranger.public}))
        await refused(checker, jwt.encode({"exp": 9_999_999_999}, RSA.private, "RS512", headers={"kid": "one"}))
        # Without an id it is clear which is meant as long as there is one of the kind.
        await checker.claims(jwt.encode({"exp": 9_999_999_999}, RSA.private, "RS256"))
        server.keys.append(rsa_key("three").public)
        checker = rules(server)
        await refused(checker, jwt.encode({"exp": 9_999_999_999}, RSA.private, "RS256"))


async def test_weak_symmetric_and_foreign_keys_are_not_taken() -> None:
    secret = base64.urlsafe_b64encode(b"s" * 32).rstrip(b"=").decode()
    document = {
        "keys": [
            {"kty": "oct", "kid": "oct", "k": secret, "alg": "HS256"},
            rsa_key("weak", 1024).public,
            {**RSA.public, "kid": "encrypts", "use": "enc"},
            {**RSA.public, "kid": "other algorithm", "alg": "HS256"},
            {**EC.public, "kid": "other curve", "crv": "P-384"},
            {"kty": "RSA", "kid": "broken", "n": "!", "e": None},
            "no key",
            None,
            RSA.public,
        ]
    }
    assert list(parse_keys(json.dumps(document).encode())) == ["one"]


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)).map(
        lambda v: json.dumps({"keys": v}).encode()
    )
)
def test_no_document_is_more_than_refused(body: bytes) -> None:
    with contextlib.suppress(ValueError):
        parse_keys(body)


async def test_a_huge_token_is_refused_before_it_is_parsed() -> None:
    async with key_server(RSA) as server:
        said = await refused(rules(server), RSA.token(x="x" * MAX_TOKEN))
        assert str(MAX_TOKEN) in said
        assert server.asked == 0


@pytest.mark.parametrize("url", ["http://keys.example/jwks", "file:///etc/passwd", "ftp://127.0.0.1/keys", "127.0.0.1:80", "https://"])
def test_keys_come_by_tls_or_from_this_machine(url: str) -> None:
    with pytest.raises(OperatorError) as problem:
        KeySet(url)
    assert problem.value.exit_code == 2
    KeySet("http://keys.example/jwks", insecure=True)
    KeySet("https://keys.example/jwks")
