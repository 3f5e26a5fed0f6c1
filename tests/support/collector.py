"""An OpenTelemetry collector as far as traces go: OTLP over HTTP in JSON, checked against the protocol's field rules."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import msgspec


@dataclass(slots=True)
class Collected:
    """Spans by trace; each has `service`, the resource's name, beside what OTLP has."""

    url: str = ""
    spans: list[dict[str, Any]] = field(default_factory=list)

    def trace(self, trace_id: str) -> dict[str, dict[str, Any]]:
        return {span["name"]: span for span in self.spans if span["traceId"] == trace_id}

    async def until(self, trace_id: str, *names: str) -> dict[str, dict[str, Any]]:
        async with asyncio.timeout(15):
            while not set(names) <= set(self.trace(trace_id)):
                await asyncio.sleep(0.02)
        return self.trace(trace_id)

    def take(self, body: bytes) -> None:
        for resource in msgspec.json.decode(body)["resourceSpans"]:
            named = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
            for scope in resource["scopeSpans"]:
                for span in scope["spans"]:
                    check(span)
                    self.spans.append({**span, "service": named["service.name"]["stringValue"]})


def check(span: dict[str, Any]) -> None:
    """What the protocol says of a span in JSON: ids in hex, enums as integers, 64-bit integers as strings, lowerCamelCase names."""
    assert set(span) <= {"traceId", "spanId", "parentSpanId", "name", "kind", "startTimeUnixNano", "endTimeUnixNano", "attributes"}, span
    assert re.fullmatch(r"[0-9a-f]{32}", span["traceId"]), span
    assert re.fullmatch(r"[0-9a-f]{16}", span["spanId"]), span
    assert re.fullmatch(r"[0-9a-f]{16}", span.get("parentSpanId", "0" * 16)), span
    assert span["kind"] in range(1, 6), span
    assert int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"]), span
    assert isinstance(span["startTimeUnixNano"], str), span
    for attribute in span["attributes"]:
        ((kind, value),) = attribute["value"].items()
        assert kind in ("stringValue", "intValue"), span
        assert isinstance(value, str), span


@contextlib.asynccontextmanager
async def collector() -> AsyncIterator[Collected]:
    collected = Collected()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("POST /v1/traces HTTP/1.1"), head
        assert "content-type: application/json" in head.lower(), head
        length = re.search(r"content-length: (\d+)", head.lower())
        assert length is not None, head
        collected.take(await reader.readexactly(int(length[1])))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    collected.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield collected
