"""The ASGI application: the endpoints and the console's files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Final

import msgspec
from fastapi import APIRouter, FastAPI, Header, Query, Request, WebSocket
from fastapi.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from tocsin import __version__
from tocsin.api_page import POLICY, api_page
from tocsin.service import add_health
from tocsin_gateway.admission.credentials import presented
from tocsin_gateway.endpoints.catalogue import Catalogue
from tocsin_gateway.endpoints.connection import Connection
from tocsin_gateway.endpoints.history_route import history_route
from tocsin_gateway.endpoints.sse import EventStream
from tocsin_gateway.endpoints.ticket_office import ticket_office
from tocsin_gateway.endpoints.visitor import REFUSALS, refusal, token_described
from tocsin_gateway.gateway import Gateway
from tocsin_gateway.protocol import ProtocolError

STATIC: Final = Path(__file__).parent / "static"
CONSOLE_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "font-src 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
        "form-action 'none'",
    )
)
HEADERS: Final = {"content-security-policy": CONSOLE_POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer", "cache-control": "no-cache"}


class Application(FastAPI):
    """FastAPI, but `/ws` goes straight to its connection: the coroutines and stacks in between cost each idle client kilobytes."""

    serve_socket: Callable[[WebSocket], Awaitable[None]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket" and scope["path"] == "/ws":
            await self.serve_socket(WebSocket(scope, receive, send))
        else:
            await super().__call__(scope, receive, send)


def create_app(gateway: Gateway, *, catalogue: Catalogue | None = None, routers: Iterable[APIRouter] = ()) -> FastAPI:
    """The application of one gateway; nothing runs in its lifespan. `catalogue` describes the watched tables, `routers` are further endpoints."""
    described = catalogue or Catalogue(STATIC / "asyncapi.json")
    app = Application(
        title="Tocsin gateway",
        version=__version__,
        description="Live events of PostgreSQL, by subject. The WebSocket's messages: /asyncapi.json",
        docs_url=None,  # FastAPI's own page loads its scripts from another host
        redoc_url=None,
    )
    token = token_described(gateway)
    for router in (*routers, ticket_office(gateway), history_route(gateway)):
        app.include_router(router, dependencies=token)
    add_health(app, gateway.registry, gateway.readiness)

    @app.websocket("/ws")
    async def websocket(socket: WebSocket) -> None:
        await Connection(gateway, socket).serve()

    app.serve_socket = websocket

    @app.get(
        "/sse",
        summary="Server-sent events; Last-Event-ID resumes",
        response_class=Response,
        tags=["events"],
        responses={200: {"content": {"text/event-stream": {}}}, **REFUSALS},
        dependencies=token,
    )
    async def sse(
        request: Request,
        subject: list[str] = Query([], description="Subject pattern; may be repeated", examples=[["pg.shop.change.public.orders.*"]]),  # noqa: ARG001, B008
        since: str = Query("now", description="now, start, snapshot, an age such as 5m, or a position"),  # noqa: ARG001
        where: str | None = Query(None, description='Conditions as JSON, such as {"customer_id": {"eq": 42}}'),  # noqa: ARG001
        select: list[str] = Query([], description="Columns, with commas between"),  # noqa: ARG001, B008
        presence: str | None = Query(None, description="true: be announced, and be told who else is there"),  # noqa: ARG001
        ticket: str | None = Query(None, description="Of POST /tickets, once, where no Authorization can be sent"),  # noqa: ARG001
        last_event_id: str | None = Header(None, description="Where the last connection ended, in place of `since`"),  # noqa: ARG001
    ) -> Response:
        return EventStream(gateway, request)

    @app.get("/", include_in_schema=False)
    async def console() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers=HEADERS)

    @app.get("/client.js", summary="The JavaScript client, one ES module", response_class=FileResponse, tags=["clients"])
    async def client() -> FileResponse:
        return FileResponse(STATIC / "client.js", media_type="text/javascript", headers={"access-control-allow-origin": "*", "cache-control": "no-cache"})

    @app.get(
        "/asyncapi.json",
        summary="The WebSocket's messages and each watched table's events, as AsyncAPI 3; without a token, the messages alone",
        response_class=Response,
        tags=["events"],
    )
    async def asyncapi(request: Request) -> Response:
        try:
            grant = await gateway.grant(presented(request)) if gateway.welcomes(request.headers) else None
        except ProtocolError as problem:
            return refusal(problem)
        return Response(msgspec.json.encode(await described.document(grant)), media_type="application/json", headers={"cache-control": "no-cache"})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi(), described.generic), headers={"content-security-policy": POLICY})

    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app
