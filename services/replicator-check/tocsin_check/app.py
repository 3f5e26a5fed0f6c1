"""The checker over HTTP: the report as JSON and as a page, and audits on demand."""

from __future__ import annotations

import base64
import hashlib
import re
from collections import Counter
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import APIRouter, FastAPI, HTTPException, Path, Query, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

from tocsin import __version__
from tocsin.api_page import POLICY, api_page
from tocsin.service import Readiness, add_health
from tocsin_check.guard import REFUSALS, Guard
from tocsin_check.watch.asked import Audit
from tocsin_check.watch.block_map import BlockReport
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.history import History, LagPoint, Stretch
from tocsin_check.watch.report import Report, RowPage, TableReport

LONGEST_PAGE: Final = 1000
_MISSING: Final[dict[int | str, dict[str, Any]]] = {404: {"description": "No such table is replicated"}}
TableName = Annotated[str, Path(description="As the report names it: schema.table", max_length=200)]
Limit = Annotated[int, Query(ge=1, le=LONGEST_PAGE)]


class AuditRequest(BaseModel):
    """Which tables, as the report names them; all of them where `tables` is left out."""

    model_config = ConfigDict(extra="forbid")

    tables: list[str] | None = Field(None, examples=[["public.orders"]], max_length=10_000)


class AuditProgress(BaseModel):
    """`status` is queued, running, done or failed; `table` is the one at work, `rows` the rows compared so far."""

    id: str
    status: str
    tables: list[str] | None
    done: int
    total: int
    table: str | None
    rows: int
    error: str | None


def make_app(checker: Checker, registry: CollectorRegistry, readiness: Callable[[], Readiness], history: History, guard: Guard) -> FastAPI:
    """The ASGI app; it starts nothing by itself."""
    app = FastAPI(
        title="Tocsin checker",
        version=__version__,
        description="Proves that a logical replica equals its source, row by row.",
        docs_url=None,  # FastAPI's own page loads its scripts from another host
        redoc_url=None,
    )
    _add_page(app)
    data = APIRouter(dependencies=guard.dependencies(), responses=REFUSALS)
    _add_report(data, checker)
    _add_history(data, history)
    _add_audits(data, checker)
    app.include_router(data)
    add_health(app, registry, readiness)

    @app.exception_handler(405)
    async def wrong_method(request: Request, _error: Exception) -> JSONResponse:
        """With every method that the path has; Starlette names those of the first route only."""
        methods = {method for path, operations in app.openapi()["paths"].items() if _matches(path, request.url.path) for method in operations}
        return JSONResponse({"detail": "Method Not Allowed"}, 405, {"Allow": ", ".join(sorted(method.upper() for method in methods))})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(api_page(app.openapi()), headers={"Content-Security-Policy": POLICY, "X-Content-Type-Options": "nosniff"})

    return app


def _matches(template: str, path: str) -> bool:
    return re.fullmatch(re.sub(r"\\{\w+\\}", "[^/]+", re.escape(template)), path) is not None


def _add_page(app: FastAPI) -> None:
    page = (files("tocsin_check") / "page.html").read_text(encoding="utf-8")
    policy = content_policy(page)

    @app.get("/", response_class=HTMLResponse, summary="The report as a page", tags=["report"])
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"})


def content_policy(page: str) -> str:
    """Only the page's own script and style run, known by their hashes; nothing is fetched but from this server."""
    hashes = {tag: _hash(page, tag) for tag in ("script", "style")}
    return (
        f"default-src 'none'; script-src '{hashes['script']}'; style-src '{hashes['style']}'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _hash(page: str, tag: str) -> str:
    found = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    assert found is not None, f"the page has no {tag}"
    return "sha256-" + base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()


def _add_report(app: APIRouter, checker: Checker) -> None:
    @app.get("/drift", summary="The report", tags=["report"])
    async def drift() -> Report:
        return checker.report()

    @app.get("/drift/{table}", summary="One table, by the name that the report gives it", tags=["report"], responses=_MISSING)
    async def one(table: TableName) -> TableReport:
        return _table(checker, table)

    @app.get("/drift/{table}/rows", summary="Its drifted rows, paged", tags=["report"], responses=_MISSING)
    async def rows(
        table: TableName,
        after: Annotated[str | None, Query(description="`next` of the page before; empty: from the beginning", pattern=r"^\d{0,18}$")] = None,
        limit: Limit = 100,
    ) -> RowPage:
        page = checker.ledger.page(_table(checker, table).table, after or None, limit)
        assert page is not None
        return page

    @app.get("/drift/{table}/columns", summary="How many of its drifted rows differ in which column", tags=["report"], responses=_MISSING)
    async def columns(table: TableName) -> dict[str, int]:
        entry = checker.ledger.get(_table(checker, table).table)
        return dict(Counter(name for _, row in entry.rows.values() for name in row.columns).most_common()) if entry is not None else {}

    @app.get("/drift/{table}/blocks", summary="A map of it: which part was proven when", tags=["report"], responses=_MISSING)
    async def blocks(table: TableName) -> list[BlockReport]:
        return checker.block_reports(_table(checker, table).table)


def _add_history(app: APIRouter, history: History) -> None:
    @app.get("/history", summary="How the tables stood, and since when; the newest first", tags=["history"])
    async def stretches(table: Annotated[str | None, Query(max_length=200)] = None, limit: Limit = 100) -> list[Stretch]:
        return history.stretches(table, limit)

    @app.get("/history/lag", summary="How far the replica was behind, up to an hour back", tags=["history"])
    async def lag(minutes: Annotated[int, Query(ge=1, le=60)] = 15, points: Annotated[int, Query(ge=2, le=600)] = 180) -> list[LagPoint]:
        return history.lag(minutes * 60, points)


def _table(checker: Checker, name: str) -> TableReport:
    found = next((table for table in checker.report().tables if table.table == name), None)
    if found is None:
        known = ", ".join(table.table for table in checker.report().tables[:20]) or "none yet"
        raise HTTPException(404, f"no table {name!r} is replicated; there are: {known}")
    return found


def _add_audits(app: APIRouter, checker: Checker) -> None:
    @app.post("/audits", status_code=202, summary="Audit now", tags=["audits"], responses={**_MISSING, 400: {"description": "The body is no JSON"}})
    async def start(response: Response, request: AuditRequest | None = None) -> AuditProgress:
        tables = tuple(dict.fromkeys(_table(checker, name).table for name in request.tables)) if request is not None and request.tables is not None else None
        audit = checker.ask(tables)
        response.headers["Location"] = f"/audits/{audit.id}"
        return _progress(audit)

    @app.get("/audits", summary="The audits asked for since the checker runs; the newest first", tags=["audits"])
    async def asked(limit: Limit = 20) -> list[AuditProgress]:
        return [_progress(audit) for audit in checker.audits()[:limit]]

    @app.get("/audits/{audit}", summary="How far an audit is", tags=["audits"], responses={404: {"description": "No such audit, or long done"}})
    async def progress(audit: Annotated[str, Path(max_length=50)]) -> AuditProgress:
        found = checker.audit(audit)
        if found is None:
            raise HTTPException(404, f"no audit {audit!r}: it never was, or it is forgotten; POST /audits begins one")
        return _progress(found)


def _progress(audit: Audit) -> AuditProgress:
    return AuditProgress(
        id=audit.id,
        status=audit.status,
        tables=list(audit.tables) if audit.tables is not None else None,
        done=audit.done,
        total=audit.total,
        table=audit.table,
        rows=audit.rows,
        error=audit.error,
    )
