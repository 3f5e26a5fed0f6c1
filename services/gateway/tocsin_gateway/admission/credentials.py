"""What a request proves with: a token in `Authorization` or in the subprotocol, or a ticket in its query. Pure.

A token in a query string is refused: addresses are logged, kept in histories and sent as referrers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from starlette.requests import HTTPConnection

from tocsin_gateway.protocol import ProtocolError

PLAIN: Final = "tocsin"
CLOUDEVENTS: Final = "cloudevents.json"
TOKEN_PREFIX: Final = "bearer."
"""`Sec-WebSocket-Protocol: tocsin, bearer.<token>`; the answer names the first alone."""

_IN_QUERY: Final = frozenset({"token", "access_token", "jwt", "authorization", "auth"})


@dataclass(frozen=True, slots=True)
class Credentials:
    """At most one of the two is asked; a token before a ticket."""

    token: str | None = field(default=None, repr=False)
    ticket: str | None = field(default=None, repr=False)


def presented(request: HTTPConnection) -> Credentials:
    """Raises ProtocolError unauthenticated for a token in the query."""
    named = next((name for name in request.query_params if name.lower() in _IN_QUERY), None)
    if named is not None:
        raise ProtocolError(
            "unauthenticated",
            f"the query has {named!r}: a token does not belong into an address; send it in the first message, or get a ticket from POST /tickets",
        )
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer":
        token = ""
    offered = next((name for name in offered_protocols(request) if name.startswith(TOKEN_PREFIX)), "")
    return Credentials(token.strip() or offered.removeprefix(TOKEN_PREFIX) or None, request.query_params.get("ticket") or None)


def client_address(request: HTTPConnection) -> str | None:
    """Where it comes from; behind a proxy of TOCSIN_TRUSTED_PROXIES, what that says."""
    return request.client.host if request.client is not None else None


def offered_protocols(request: HTTPConnection) -> list[str]:
    return [name.strip() for line in request.headers.getlist("sec-websocket-protocol") for name in line.split(",") if name.strip()]


def chosen_protocol(request: HTTPConnection) -> str | None:
    """The first that we speak of those offered; None where none is, which leaves the decision to the client."""
    return next((name for name in offered_protocols(request) if name in (PLAIN, CLOUDEVENTS)), None)
