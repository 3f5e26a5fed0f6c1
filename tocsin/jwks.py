"""The public keys of RS256 and ES256 tokens, from a JWKS endpoint whose keys rotate.

Only signing keys of these two kinds are taken; a symmetric key, a weak one or one for another use is as if it were not there.
"""

from __future__ import annotations

import asyncio
import http.client
import time
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import jwt
import msgspec
import structlog

from tocsin.errors import OperatorError, Unavailable

MAX_BYTES: Final = 256 << 10
MAX_KEYS: Final = 64
MIN_RSA_BITS: Final = 2048
FRESH_SECONDS: Final = 300.0
"""Older keys are asked for again before the next token is checked, so that a withdrawn key is refused by then."""

ASK_AGAIN_SECONDS: Final = 5.0
"""At least so long between two requests, whatever key ids clients invent."""

FETCH_SECONDS: Final = 3.0

log = structlog.get_logger("tocsin.jwks")


class UnknownKey(Exception):  # noqa: N818  # the token's fault
    """The endpoint has no such key."""


@dataclass(frozen=True, slots=True)
class Key:
    """A public key with the one algorithm that it may be used with."""

    algorithm: str
    public: Any


class KeySet:
    """Keys by their id. Asked for when first needed, when a token names a key that is not known, and when they are old.

    One request at a time, in a thread, bounded in time and size. While the endpoint is down the known keys stay.
    """

    def __init__(self, url: str, *, insecure: bool = False, ask_again: float = ASK_AGAIN_SECONDS, fresh: float = FRESH_SECONDS) -> None:
        _check_url(url, insecure=insecure)
        self._url = url
        self._ask_again = ask_again
        self._fresh = fresh
        self._lock = asyncio.Lock()
        self._keys: dict[str, Key] = {}
        self._fetched: float | None = None
        self._asked: float | None = None

    async def find(self, key_id: str | None, algorithm: str) -> Key:
        """The key that a token's header names. Raises UnknownKey, and Unavailable where no key was ever got."""
        if self._old() or self._known(key_id, algorithm) is None:
            async with self._lock:
                if self._may_ask() and (self._old() or self._known(key_id, algorithm) is None):
                    await self._refresh()
        if self._fetched is None:
            raise Unavailable("the keys of tokens can't be had at the moment; try again in a few seconds")
        key = self._known(key_id, algorithm)
        if key is None:
            raise UnknownKey("no key of TOCSIN_JWKS_URL fits the token's `kid` and `alg`")
        return key

    def _known(self, key_id: str | None, algorithm: str) -> Key | None:
        """A token without `kid` is accepted where only one key can be meant."""
        if key_id is not None:
            key = self._keys.get(key_id)
            return key if key is not None and key.algorithm == algorithm else None
        fitting = [key for key in self._keys.values() if key.algorithm == algorithm]
        return fitting[0] if len(fitting) == 1 else None

    def _old(self) -> bool:
        return self._fetched is None or time.monotonic() - self._fetched > self._fresh

    def _may_ask(self) -> bool:
        return self._asked is None or time.monotonic() - self._asked >= self._ask_again

    async def _refresh(self) -> None:
        self._asked = time.monotonic()
        try:
            async with asyncio.timeout(FETCH_SECONDS + 1):
                body = await asyncio.to_thread(_fetch, self._url)
            self._keys = parse_keys(body)
        except (OSError, TimeoutError, http.client.HTTPException, ValueError) as error:
            log.warning(
                "TOCSIN_JWKS_URL gives no keys; those known stay", url=_shown(self._url), keys=len(self._keys), error=str(error) or type(error).__name__
            )
            return
        self._fetched = time.monotonic()
        log.info("keys of tokens", url=_shown(self._url), keys=sorted(self._keys))


def parse_keys(body: bytes) -> dict[str, Key]:
    """The usable keys of a JWKS document by id; a key without one gets its place as id. Raises ValueError for what is no such document."""
    try:
        entries = msgspec.json.decode(body)["keys"]
    except (msgspec.DecodeError, KeyError, TypeError, UnicodeError, RecursionError):
        raise ValueError("the answer is not a JSON object with `keys`") from None
    if not isinstance(entries, list):
        raise ValueError("`keys` is not a list")  # noqa: TRY004  # a fault of the document
    found = {}
    for place, entry in enumerate(entries[:MAX_KEYS]):
        key = _usable(entry) if isinstance(entry, Mapping) else None
        if key is not None:
            found[str(entry.get("kid", f"#{place}"))] = key
    return found


def _usable(entry: Mapping[str, Any]) -> Key | None:
    kind = entry.get("kty")
    algorithm = "RS256" if kind == "RSA" else "ES256" if kind == "EC" and entry.get("crv") == "P-256" else None
    if algorithm is None or entry.get("alg", algorithm) != algorithm or entry.get("use", "sig") != "sig":
        return None
    try:
        # Only the public part, should somebody publish the private one as well.
        public = jwt.PyJWK({name: entry[name] for name in ("kty", "crv", "n", "e", "x", "y") if name in entry}, algorithm).key
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    return Key(algorithm, public) if kind == "EC" or public.key_size >= MIN_RSA_BITS else None


def _fetch(url: str) -> bytes:
    """Blocking. Redirects are not followed: whoever can redirect could name the keys."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=FETCH_SECONDS)
    try:
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else "") or "/", headers={"accept": "application/json", "connection": "close"})
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"HTTP status {answer.status}")
        body = answer.read(MAX_BYTES + 1)
    finally:
        connection.close()
    if len(body) > MAX_BYTES:
        raise ValueError(f"the answer is larger than {MAX_BYTES} bytes")
    return body


def _check_url(url: str, *, insecure: bool) -> None:
    parts = urlsplit(url)
    fix = "set it to the https:// address of your identity provider's key set"
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OperatorError(f"TOCSIN_JWKS_URL={_shown(url)!r} is not an https:// URL", fix, exit_code=2)
    if parts.scheme == "http" and not insecure and not is_loopback(parts.hostname):
        message = f"TOCSIN_JWKS_URL={_shown(url)!r}: without TLS, whoever is on the way can put in a key of his own"
        raise OperatorError(message, f"{fix}, or TOCSIN_INSECURE=1 where the network itself is trusted", exit_code=2)


def is_loopback(host: str) -> bool:
    """Whether only this machine can be there."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(url: str) -> str:
    """Without a user's name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
