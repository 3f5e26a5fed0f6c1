"""The checker over HTTP: the report as JSON and as a page, and audits on demand."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from importlib.resources import files
from typing import Annotated, Any, Final

from fastapi import FastAPI, HTTPException, Query, Response
from fastapi.responses import HTMLResponse
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, ConfigDict, Field

from tocsin import __version__
from tocsin.service import Readiness, add_health
from tocsin_check.checker import Audit, Checker
from tocsin_check.report import Report, RowPage, TableReport

LONGEST_PAGE: Final = 1000
_MISSING: Final[dict[int | str, dict[str, Any]]] = {404: {"description": "No such table is replicated"}}


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


def make_app(checker: Checker, registry: CollectorRegistry, readiness: Callable[[], Readiness]) -> FastAPI:
    """The ASGI app; it starts nothing by itself."""
    app = FastAPI(title="Tocsin checker", version=__version__, description="Proves that a logical replica equals its source, row by row.")
    _add_page(app)
    _add_report(app, checker)
    _add_audits(app, checker)
    add_health(app, registry, readiness)
    return app


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


def _add_report(app: FastAPI, checker: Checker) -> None:
    @app.get("/drift", summary="The report", tags=["report"])
    async def drift() -> Report:
        return checker.report()

    @app.get("/drift/{table}", summary="One table, by the name that the report gives it", tags=["report"], responses=_MISSING)
    async def one(table: str) -> TableReport:
        return _table(checker, table)

    @app.get("/drift/{table}/rows", summary="Its drifted rows, paged", tags=["report"], responses=_MISSING)
    async def rows(
        table: str,
        after: Annotated[str | None, Query(description="`next` of the page before", pattern=r"^\d{1,18}$")] = None,
        limit: Annotated[int, Query(ge=1, le=LONGEST_PAGE)] = 100,
    ) -> RowPage:
        page = checker.ledger.page(_table(checker, table).table, after, limit)
        assert page is not None
        return page


def _table(checker: Checker, name: str) -> TableReport:
    found = next((table for table in checker.report().tables if table.table == name), None)
    if found is None:
        known = ", ".join(table.table for table in checker.report().tables[:20]) or "none yet"
        raise HTTPException(404, f"no table {name!r} is replicated; there are: {known}")
    return found


def _add_audits(app: FastAPI, checker: Checker) -> None:
    @app.post("/audits", status_code=202, summary="Audit now", tags=["audits"], responses=_MISSING)
    async def start(response: Response, request: AuditRequest | None = None) -> AuditProgress:
        tables = tuple(dict.fromkeys(_table(checker, name).table for name in request.tables)) if request is not None and request.tables is not None else None
        audit = checker.ask(tables)
        response.headers["Location"] = f"/audits/{audit.id}"
        return _progress(audit)

    @app.get("/audits/{audit}", summary="How far an audit is", tags=["audits"], responses={404: {"description": "No such audit, or long done"}})
    async def progress(audit: str) -> AuditProgress:
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
