"""`GET /events`: who may read which page of history, and how it is asked for."""

from __future__ import annotations

from fastapi import APIRouter, Query, Request
from starlette.responses import JSONResponse, Response

from tocsin_gateway import protocol
from tocsin_gateway.admission.grant import Grant
from tocsin_gateway.delivery.selection import Selection
from tocsin_gateway.endpoints.visitor import REFUSALS, STATUS, visitor
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.limits import HISTORY_LIMIT
from tocsin_gateway.protocol import ProtocolError, Subscribe
from tocsin_gateway.stream.history import ID


def history_route(gateway: Gateway) -> APIRouter:
    """The endpoint."""
    router = APIRouter()

    @router.get("/events", summary="A page of history; `next` begins the following one", response_class=Response, tags=["events"], responses=REFUSALS)
    async def events(
        request: Request,
        subject: str = Query("", description="Subject pattern", examples=["pg.shop.change.public.orders.*"]),
        since: str = Query("start", description="start, an age such as 5m, or a position"),
        limit: str = Query("100", description=f"Events at most, 1 to {HISTORY_LIMIT}"),
        where: str | None = Query(None, description='Conditions as JSON, such as {"customer_id": {"eq": 42}}'),
        select: list[str] = Query([], description="Columns, with commas between"),  # noqa: B008
    ) -> Response:
        headers = gateway.cross_origin(request.headers)
        try:
            grant = await visitor(gateway, request)
            asked = protocol.from_query(ID, subject, since, where, select)
            page = await gateway.history.page(asked, await _selection(gateway, grant, asked), _limit(limit))
            await gateway.still_holds(grant)  # a page may take seconds
        except ProtocolError as problem:
            gateway.metrics.errors.labels(problem.code).inc()
            return JSONResponse({"code": problem.code, "message": str(problem)}, STATUS.get(problem.code, 400), headers)
        return Response(page.body, media_type="application/json", headers={**headers, "cache-control": "no-store"})

    return router


async def _selection(gateway: Gateway, grant: Grant, asked: Subscribe) -> Selection | None:
    """What the token lets through of what is asked. Raises ProtocolError."""
    pattern, where, select = protocol.checked_pattern(asked), protocol.checked_where(asked), protocol.checked_select(asked)
    if protocol.checked_since(asked) == "snapshot":
        raise ProtocolError("bad-since", "history has no snapshot: subscribe for one; start, an age such as 5m, or a position is allowed here")
    grant.check(pattern, None)
    await gateway.watched.check(asked, grant)
    return Selection.of(pattern, where, select, grant.visibility)


def _limit(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6 or not 1 <= int(text) <= HISTORY_LIMIT:
        raise ProtocolError("bad-message", f"limit is {text[:20]!r}; a number from 1 to {HISTORY_LIMIT} is allowed")
    return int(text)
