"""Who asks over plain HTTP, and what a refusal looks like there."""

from __future__ import annotations

from typing import Any, Final

from fastapi import Depends
from fastapi.params import Depends as Dependency
from fastapi.security import HTTPBearer
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tocsin_gateway.admission.credentials import presented
from tocsin_gateway.admission.grant import Grant
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.protocol import ProtocolError

STATUS: Final = {"unauthenticated": 401, "forbidden": 403, "limit": 429, "unavailable": 503}

REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    400: {"description": "Something in the query can't be understood: `code` and `message` say what"},
    401: {"description": "No token, or one that is refused"},
    403: {"description": "Not allowed by the token, or asked by a foreign page"},
    429: {"description": "Over a limit"},
    503: {"description": "The stream can't be read at the moment"},
}
"""For the interface's description."""

_BEARER: Final = HTTPBearer(auto_error=False, description="A JWT; docs/security.md has its claims")


def token_described(gateway: Gateway) -> list[Dependency]:
    """What makes the interface's description ask for a token, where the gateway does; it checks nothing."""
    return [Depends(_BEARER)] if gateway.access.needs_token else []


async def visitor(gateway: Gateway, request: Request) -> Grant:
    """What the client of a request may do. Raises ProtocolError forbidden or unauthenticated."""
    gateway.check_page(request.headers)
    grant = await gateway.grant(presented(request))
    if grant is None:
        raise ProtocolError("unauthenticated", "a token is needed: Authorization: Bearer …")
    return grant


def refusal(problem: ProtocolError) -> Response:
    return JSONResponse({"code": problem.code, "message": str(problem)}, STATUS.get(problem.code, 400), {"cache-control": "no-store"})
