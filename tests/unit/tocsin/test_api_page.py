"""The page at /docs: complete, from the documents alone, and in need of no other host."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path

from fastapi import FastAPI, Query
from pydantic import BaseModel

from tocsin.api_page import api_page

ASYNCAPI = json.loads((Path(__file__).parents[3] / "services/gateway/tocsin_gateway/static/asyncapi.json").read_text())


class Body(BaseModel):
    tables: list[str] = []


def openapi() -> dict[str, object]:
    app = FastAPI(title="A <b>title</b>", version="1", description="What it is & does")

    @app.get("/rows/{table}", summary="Rows <script>")
    async def rows(table: str, after: str | None = Query(None, description="Where to go on")) -> None: ...

    @app.post("/audits", summary="Audit now")
    async def audits(body: Body) -> None: ...

    return app.openapi()


def test_every_operation_and_parameter_is_on_the_page() -> None:
    page = api_page(openapi())
    for text in ("GET /rows/{table}", "POST /audits", "after", "Where to go on", "tables", "list of string"):
        assert text in page


def test_every_message_field_and_example_is_on_the_page() -> None:
    page = html.unescape(api_page(openapi(), ASYNCAPI))
    for message in ASYNCAPI["components"]["messages"].values():
        assert f"<code>{message['name']}</code>" in page
        assert all(json.dumps(example["payload"], ensure_ascii=False) in page for example in message["examples"])
    assert "The subscription's id, chosen by the client" in page


def test_the_page_loads_nothing_runs_nothing_and_quotes_what_it_shows() -> None:
    page = api_page(openapi(), ASYNCAPI)
    assert "<script" not in page
    assert "<b>title" not in page
    assert not re.search(r"(?:src|href)=.?(?:https?:)?//", page)
