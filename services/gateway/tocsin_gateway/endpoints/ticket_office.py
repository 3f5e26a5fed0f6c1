"""`POST /tickets`: a ticket for a token."""

from __future__ import annotations

from typing import Any, Final

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from tocsin_gateway.admission.credentials import Credentials, presented
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.protocol import ProtocolError

_STATUS: Final = {"unauthenticated": 401, "forbidden": 403, "limit": 429, "unavailable": 503}
_ANSWER: Final[dict[str, Any]] = {
    "description": "A ticket for one connection",
    "content": {"application/json": {"example": {"ticket": "mN2…", "seconds": 30}}},
}


def ticket_office(gateway: Gateway) -> APIRouter:
    """The routes of one gateway."""
    router = APIRouter(tags=["access"])

    @router.post(
        "/tickets",
        summary="A ticket that lets one connection in by /ws?ticket=… or /sse?ticket=…, once, within 30 s, with the token's rights",
        response_class=JSONResponse,
        responses={
            200: _ANSWER,
            401: {"description": "No token, or one that is refused"},
            403: {"description": "The request comes by a foreign page"},
            503: {"description": "NATS can't be reached"},
        },
    )
    async def issue(request: Request) -> Response:
        headers = {"cache-control": "no-store", **gateway.cross_origin(request.headers)}
        try:
            gateway.check_page(request.headers)
            if not gateway.access.needs_token:
                return JSONResponse({"ticket": None, "seconds": None, "message": "this gateway asks for no token"}, headers=headers)
            # Only for a token: a ticket that bought another would never end.
            verified = await gateway.verified(Credentials(presented(request).token))
            ticket, seconds = await gateway.tickets.issue(verified)
        except ProtocolError as problem:
            gateway.metrics.errors.labels(problem.code).inc()
            status = _STATUS.get(problem.code, 400)
            more = {"www-authenticate": "Bearer"} if status == 401 else {"retry-after": "1"} if status in (429, 503) else {}
            return JSONResponse({"code": problem.code, "message": str(problem)}, status, {**headers, **more})
        return JSONResponse({"ticket": ticket, "seconds": round(seconds)}, headers=headers)

    @router.options("/tickets", include_in_schema=False)
    @router.options("/sse", include_in_schema=False)
    async def preflight(request: Request) -> Response:
        """A browser asks before it sends a page's `Authorization` to another origin."""
        allowed = gateway.cross_origin(request.headers)
        if not allowed:
            return Response(status_code=403)
        asked = {"access-control-allow-methods": "GET, POST", "access-control-allow-headers": "authorization, last-event-id", "access-control-max-age": "600"}
        return Response(status_code=204, headers={**allowed, **asked})

    return router
