"""Who may connect, and what they may subscribe to. Pure but for the clock that PyJWT reads."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

from tocsin import access
from tocsin.access import TokenRefused, TokenRules, host_allowed, origin_allowed
from tocsin.subject import Pattern, SubjectError
from tocsin_gateway.protocol import ProtocolError

__all__ = ["Access", "Grant", "check_exposure", "host_allowed", "origin_allowed", "seconds_left"]


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
        try:
            claims = TokenRules(self._secret, self._audience, self._issuer).claims(token)
            grant = Grant(tuple(self._granted(claims.get("subscribe"))), float(claims["exp"]))
            grant.expires_text  # noqa: B018  # raises for a time that no calendar has
        except TokenRefused as refused:
            raise ProtocolError("unauthenticated", str(refused)) from None
        except (ValueError, OverflowError) as error:
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


def check_exposure(host: str, *, needs_token: bool, insecure: bool) -> None:
    """Raises OperatorError where the gateway would serve everybody on an address other than loopback."""
    access.check_exposure(host, setting="TOCSIN_GATEWAY_HOST", exposes="read every event", needs_token=needs_token, insecure=insecure)
