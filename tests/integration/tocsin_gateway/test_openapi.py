"""What the gateway says over HTTP is what its OpenAPI description says, whatever is asked."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import hypothesis
import jwt
import pytest
import pytest_asyncio
import schemathesis.openapi

from tests.support import servers
from tests.support.conformance import schemathesis as conformance
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.stream import Stream

SECRET = "a-secret-of-at-least-thirty-two-bytes"
ENDLESS = ("--exclude-path", "/sse")
"""An answer without end is for test_event_streams_answer_as_described."""


def authorization() -> str:
    claims = {"exp": int(time.time()) + 900, "sub": "alice", "subscribe": ["pg.>"], "rows": {"public.orders": {"id": {"gt": 0}}}}
    return f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"


@pytest_asyncio.fixture
async def guarded(stream: Stream, nats_server: servers.Server) -> AsyncIterator[RunningGateway]:
    """A gateway that asks for tokens, before five events."""
    await stream.publish(*[stream.subject()] * 5)
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as running:
        yield running


async def test_it_answers_as_described_and_nothing_described_as_guarded_answers_without_a_token(guarded: RunningGateway, tmp_path: Path) -> None:
    code, said = await conformance(guarded.url, tmp_path, *ENDLESS, "-H", f"Authorization: {authorization()}")
    assert code == 0, said
    async with httpx.AsyncClient(base_url=guarded.url) as client:
        described = (await client.get("/openapi.json")).json()["paths"]
        asking = {path for path, operations in described.items() for operation in operations.values() if "security" in operation}
        assert asking >= {"/sse", "/events", "/tickets", "/state", "/why"}
        for path in asking:
            method = "POST" if "post" in described[path] else "GET"
            assert (await client.request(method, path, params={"subject": "pg.>"})).status_code == 401, path


async def test_event_streams_answer_as_described(guarded: RunningGateway) -> None:
    """The head and, where it is a refusal, the body; fifty questions that schemathesis invents."""
    async with httpx.AsyncClient(base_url=guarded.url, headers={"authorization": authorization()}) as client:
        document = (await client.get("/openapi.json")).json()
        cases: list[schemathesis.Case[Any]] = []

        @hypothesis.settings(max_examples=50, derandomize=True, database=None, deadline=None, suppress_health_check=list(hypothesis.HealthCheck))
        @hypothesis.given(schemathesis.openapi.from_dict(document)["/sse"]["GET"].as_strategy())
        def invent(case: schemathesis.Case[Any]) -> None:
            cases.append(case)

        invent()
        assert len(cases) >= 25
        described = document["paths"]["/sse"]["get"]["responses"]
        seen = set()
        for case in cases:
            headers = {name: value.encode("latin-1", "replace") for name, value in (case.headers or {}).items() if name.lower() != "authorization"}
            async with client.stream("GET", "/sse", params=case.query, headers=headers) as answer:
                seen.add(answer.status_code)
                assert str(answer.status_code) in described, case.query
                if answer.status_code == 200:
                    assert answer.headers["content-type"].startswith("text/event-stream")
                else:
                    assert set(await _json(answer)) >= {"code", "message"}
        assert seen >= {400}


async def _json(answer: httpx.Response) -> dict[str, object]:
    await answer.aread()
    body: dict[str, object] = answer.json()
    return body


@pytest.mark.slow
async def test_hundreds_of_inventions_without_tokens(gateway: RunningGateway, stream: Stream, tmp_path: Path) -> None:
    await stream.publish(*[stream.subject()] * 5)
    code, said = await conformance(gateway.url, tmp_path, *ENDLESS, invented=200)
    assert code == 0, said


@pytest.mark.slow
async def test_hundreds_of_inventions_with_a_token(guarded: RunningGateway, tmp_path: Path) -> None:
    code, said = await conformance(guarded.url, tmp_path, *ENDLESS, "-H", f"Authorization: {authorization()}", invented=200)
    assert code == 0, said
