"""Who may connect, and what they may do: tokens become grants."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from tocsin import access
from tocsin.access import TokenRefused, TokenRules, host_allowed, origin_allowed
from tocsin.errors import Unavailable
from tocsin.subject import Pattern, encode_token
from tocsin_gateway.admission.grant import ClaimError, Grant, grant_of
from tocsin_gateway.protocol import ProtocolError

__all__ = ["Access", "Grant", "Verified", "check_exposure", "host_allowed", "origin_allowed", "seconds_left"]


@dataclass(frozen=True, slots=True)
class Verified:
    """A token that holds: its claims, for a ticket, and the grant that they mean."""

    claims: dict[str, Any]
    grant: Grant


class Access:
    """Without `rules` everybody has everything below the prefix; with them, a token says what."""

    def __init__(self, prefix: str, source: str, rules: TokenRules | None = None) -> None:
        self._everything = Pattern(f"{prefix}.>")
        self._live = Pattern(f"{prefix}.{encode_token(source)}.live.>")
        self._rules = rules

    @property
    def live(self) -> Pattern:
        """What clients themselves may publish below, as far as they may."""
        return self._live

    @property
    def needs_token(self) -> bool:
        return self._rules is not None

    def anonymous(self) -> Grant | None:
        """What anybody may; None where a token is needed. Only this machine, or a network that is trusted by word, is asked for none."""
        return None if self.needs_token else Grant((self._everything,), publish=(self._live,), presence=(self._everything,))

    async def authenticate(self, token: str) -> Verified:
        """Raises ProtocolError unauthenticated or unavailable; the message never repeats the token."""
        if self._rules is None:
            anonymous = self.anonymous()
            assert anonymous is not None
            return Verified({}, anonymous)
        try:
            return self.granted(await self._rules.claims(token))
        except TokenRefused as refused:
            raise ProtocolError("unauthenticated", str(refused)) from None
        except Unavailable as error:
            raise ProtocolError("unavailable", str(error)) from None

    def granted(self, claims: dict[str, Any]) -> Verified:
        """What claims mean that a token, or a ticket made from one, has proved. Raises ProtocolError unauthenticated."""
        try:
            grant = grant_of(claims, self._everything, self._live)
        except ClaimError as error:
            raise ProtocolError("unauthenticated", str(error)) from None
        if seconds_left(grant) == 0:
            raise ProtocolError("unauthenticated", "the token has expired")
        return Verified(claims, grant)


def seconds_left(grant: Grant) -> float | None:
    """Seconds until the grant ends; None where it does not."""
    return None if grant.expires is None else max(0.0, grant.expires - time.time())


def check_exposure(host: str, *, needs_token: bool, insecure: bool) -> None:
    """Raises OperatorError where the gateway would serve everybody on an address other than loopback."""
    access.check_exposure(host, setting="TOCSIN_GATEWAY_HOST", exposes="read every event", needs_token=needs_token, insecure=insecure)
