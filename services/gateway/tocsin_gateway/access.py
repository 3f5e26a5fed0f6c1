"""Who may connect, and what they may subscribe to. Pure but for the clock that PyJWT reads."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

import jwt

from tocsin.errors import OperatorError
from tocsin.subject import Pattern, SubjectError
from tocsin_gateway.protocol import ProtocolError

_DEFAULT_PORTS: Final = {"http": 80, "https": 443, "ws": 80, "wss": 443}
_SECURE: Final = {"ws": "http", "wss": "https"}


@dataclass(frozen=True, slots=True)
class Grant:
    """What a client may do, until `expires` (Unix time), or for as long as it is connected."""

    allowed: tuple[Pattern, ...]
    expires: float | None = None

    def check(self, pattern: Pattern, id: str) -> None:  # noqa: A002  # the field's name
        """Raises ProtocolError forbidden unless one allowed pattern contains all of this one."""
        if not any(allowed.contains(pattern) for allowed in self.allowed):
            shown = ", ".join(allowed.text for allowed in self.allowed) or "nothing"
            raise ProtocolError("forbidden", f"{pattern.text!r} is not within what is allowed here: {shown}", id)

    @property
    def expires_text(self) -> str | None:
        return None if self.expires is None else datetime.fromtimestamp(self.expires, UTC).isoformat().replace("+00:00", "Z")


class Access:
    """Without a secret everybody has `everything`; with one, a token says which patterns within it, in its claim `subscribe`."""

    def __init__(self, everything: Pattern, *, secret: str | None = None, audience: str | None = None, issuer: str | None = None) -> None:
        self._everything = everything
        self._secret = secret
        self._audience = audience
        self._issuer = issuer

    @property
    def needs_token(self) -> bool:
        return self._secret is not None

    def anonymous(self) -> Grant | None:
        return None if self.needs_token else Grant((self._everything,))

    def authenticate(self, token: str) -> Grant:
        """Raises ProtocolError unauthenticated; the message never repeats the token."""
        if self._secret is None:
            return Grant((self._everything,))
        required = ["exp", *(["aud"] if self._audience else []), *(["iss"] if self._issuer else [])]
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                self._secret,
                algorithms=["HS256"],
                audience=self._audience,
                issuer=self._issuer,
                options={"require": required, "verify_aud": self._audience is not None},
            )
            grant = Grant(tuple(self._granted(claims.get("subscribe"))), float(claims["exp"]))
            grant.expires_text  # noqa: B018  # raises for a time that no calendar has
        except (jwt.PyJWTError, ValueError, OverflowError) as error:
            raise ProtocolError("unauthenticated", f"the token is refused: {error}") from None
        return grant

    def _granted(self, claim: object) -> Iterable[Pattern]:
        if not isinstance(claim, list) or not all(isinstance(text, str) for text in claim):
            raise ProtocolError("unauthenticated", "the token's claim `subscribe` must be a list of subject patterns")
        for text in claim:
            try:
                pattern = Pattern(text)
            except SubjectError as error:
                raise ProtocolError("unauthenticated", f"the token's claim `subscribe`: {error}") from None
            if self._everything.contains(pattern):
                yield pattern


def seconds_left(grant: Grant) -> float | None:
    """Seconds until the grant ends; None where it does not."""
    return None if grant.expires is None else max(0.0, grant.expires - time.time())


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


def check_exposure(host: str, *, needs_token: bool, insecure: bool) -> None:
    """Raises OperatorError where the gateway would serve everybody on an address other than loopback."""
    if needs_token or insecure or host == "localhost":
        return
    try:
        if ip_address(host).is_loopback:
            return
    except ValueError:
        pass
    raise OperatorError(
        f"TOCSIN_GATEWAY_HOST={host!r} is not a loopback address, and there is no TOCSIN_JWT_SECRET: everybody who reaches it could read every event",
        "set TOCSIN_JWT_SECRET, or TOCSIN_GATEWAY_HOST=127.0.0.1, or TOCSIN_INSECURE=1 where the network itself is trusted",
        exit_code=2,
    )
