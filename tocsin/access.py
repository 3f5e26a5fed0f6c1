"""Who may reach a service over HTTP: what loopback, hosts, origins and tokens prove. Pure but for the clock."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from tocsin.errors import OperatorError
from tocsin.jwks import KeySet, UnknownKey, is_loopback
from tocsin.settings import Settings

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
MAX_TOKEN: Final = 8192
CLOCK_SKEW: Final = 10
"""Seconds that an issuer's clock may be ahead of ours: its fresh tokens begin (`nbf`, `iat`) in our future. Their end is not put off."""
_SECURE: Final = {"ws": "http", "wss": "https"}


class TokenRefused(Exception):  # noqa: N818  # the client's fault, told to it
    """The message says why, and never repeats the token."""


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must fulfil: signed with HS256 by the secret, or with RS256 or ES256 by one of the keys; not expired; and for this audience and by
    this issuer where they are set.

    The algorithm comes from the key, never from the token: a public key can't serve as an HS256 secret, and `none` is no algorithm.
    """

    secret: str | None = field(default=None, repr=False)
    audience: str | None = None
    issuer: str | None = None
    keys: KeySet | None = None

    async def claims(self, token: str) -> dict[str, Any]:
        """The token's claims. Raises TokenRefused, and Unavailable where the keys can't be had."""
        if len(token) > MAX_TOKEN:
            raise TokenRefused(f"the token has {len(token)} characters; at most {MAX_TOKEN} are allowed")
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError) as error:
            raise TokenRefused(f"the token is refused: {_plain(error)}") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm == "HS256" and self.secret is not None:
            return self._verified(token, self.secret, algorithm)
        if algorithm in ("RS256", "ES256") and self.keys is not None:
            try:
                key = await self.keys.find(key_id if isinstance(key_id, str) else None, algorithm)
            except UnknownKey as error:
                raise TokenRefused(f"the token is refused: {error}") from None
            return self._verified(token, key.public, key.algorithm)
        allowed = [*(["HS256"] if self.secret is not None else []), *(["RS256", "ES256"] if self.keys is not None else [])]
        raise TokenRefused(f"the token is refused: its algorithm is not {' or '.join(allowed)}")

    def _verified(self, token: str, key: Any, algorithm: str) -> dict[str, Any]:
        required = ["exp", *(["aud"] if self.audience else []), *(["iss"] if self.issuer else [])]
        options: Any = {"require": required, "verify_aud": self.audience is not None}
        try:
            claims: dict[str, Any] = jwt.decode(
                token, key, algorithms=[algorithm], audience=self.audience, issuer=self.issuer, options=options, leeway=CLOCK_SKEW
            )
            if float(claims["exp"]) <= time.time():
                raise jwt.ExpiredSignatureError("Signature has expired")
        except (jwt.PyJWTError, ValueError, OverflowError, RecursionError) as error:
            raise TokenRefused(f"the token is refused: {_plain(error)}") from None
        return claims


def token_rules(settings: Settings) -> TokenRules | None:
    """The rules that the settings say; None where they ask for no token. Raises OperatorError."""
    if settings.jwt_secret is None and settings.jwks_url is None:
        return None
    secret = settings.jwt_secret.get_secret_value() if settings.jwt_secret is not None else None
    keys = KeySet(settings.jwks_url, insecure=settings.insecure) if settings.jwks_url is not None else None
    return TokenRules(secret, settings.jwt_audience, settings.jwt_issuer, keys)


def _plain(error: Exception) -> str:
    """PyJWT's words, without what it may quote of the token."""
    text = str(error)
    return text if len(text) < 100 and text.isascii() else type(error).__name__


def origin_allowed(origin: str | None, host: str | None, allowed: Iterable[str]) -> bool:
    """Whether a browser's page of this origin may connect: our own host's, or one on the list, as parsed origins.

    No origin means no browser. `null`, what can't be parsed and what no browser writes, such as capitals, is refused.
    """
    if origin is None:
        return True
    asked = _origin(origin)
    if asked is None or origin != origin.lower():
        return False
    own = {_origin(f"{scheme}://{host}") for scheme in ("http", "https")} if host else set()
    return asked in own or asked in {_origin(text) for text in allowed}


def host_allowed(host: str | None, allowed: Iterable[str]) -> bool:
    """Whether a request to this host may be answered without a token: an address, localhost, or the host of an allowed origin.

    A page of any site can make its own name lead to 127.0.0.1 (DNS rebinding) and would then be of our own origin; an address can't be faked so.
    """
    asked = _origin(f"http://{host}") if host else None
    if asked is None:
        return False
    name = asked[1]
    if name == "localhost" or name.endswith(".localhost") or name in {origin[1] for origin in map(_origin, allowed) if origin is not None}:
        return True
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _origin(text: str) -> tuple[str, str, int] | None:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return None
    scheme = _SECURE.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname or parts.username or parts.path not in ("", "/") or parts.query or parts.fragment:
        return None
    return scheme, parts.hostname, port or _DEFAULT_PORTS[scheme]


def check_exposure(host: str, *, setting: str, exposes: str, needs_token: bool, insecure: bool) -> None:
    """Raises OperatorError where a service would serve everybody on an address other than loopback; `exposes` says what, `setting` names the address."""
    if needs_token or insecure or is_loopback(host):
        return
    raise OperatorError(
        f"{setting}={host!r} is not a loopback address, and there is no TOCSIN_JWT_SECRET: everybody who reaches it could {exposes}",
        f"set TOCSIN_JWT_SECRET, or {setting}=127.0.0.1, or TOCSIN_INSECURE=1 where the network itself is trusted",
        exit_code=2,
    )
