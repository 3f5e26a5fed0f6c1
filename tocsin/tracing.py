"""Traces, where TOCSIN_OTLP_URL is set: spans in OTLP's JSON over HTTP, to any OpenTelemetry collector.

One trace is the way of one event: journal, publish (the listener), gateway, send (the gateway). Its trace id follows from the
event's id, or comes from the application (a `traceparent` in tocsin.annotate); it travels in the message's header `traceparent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import urllib.request
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import msgspec
import structlog

from tocsin import __version__

TRACEPARENT: Final = "traceparent"
"""The message's header, as W3C Trace Context writes it."""

MOST_WAITING: Final = 10_000
MOST_AT_ONCE: Final = 500
EVERY: Final = 1.0
PATIENCE: Final = 5.0
LAST_WORDS: Final = 1.0
_PARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_KINDS: Final = {"internal": 1, "server": 2, "client": 3, "producer": 4, "consumer": 5}

log = structlog.get_logger("tocsin.tracing")


class Parent(NamedTuple):
    """Where a trace goes on: ids in lower hex, of 32 and 16 digits."""

    trace: str
    span: str
    sampled: bool

    def __str__(self) -> str:
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"


@dataclass(frozen=True, slots=True)
class Span:
    """`begun` and `ended` are Unix time in nanoseconds; `parent` is a span's id, empty at the root."""

    trace: str
    id: str
    parent: str
    name: str
    begun: int
    ended: int
    kind: str = "internal"
    attributes: Mapping[str, str | int] = field(default_factory=dict)


def trace_id(event_id: str) -> str:
    """The trace of an event that no application's trace contains: whoever has the event's id finds it."""
    return hashlib.sha256(event_id.encode()).hexdigest()[:32]


def span_id(*parts: str) -> str:
    """Derived, so that what is sent again after a crash is the same span."""
    return hashlib.sha256("/".join(parts).encode()).hexdigest()[:16]


def parse_parent(text: object) -> Parent | None:
    """A `traceparent`, or None for what is not one."""
    found = _PARENT.fullmatch(text) if isinstance(text, str) else None
    if found is None or not int(found[1], 16) or not int(found[2], 16):
        return None
    return Parent(found[1], found[2], bool(int(found[3], 16) & 1))


class Exporter:
    """Spans wait in memory, bounded, and are sent in the background; `run` belongs into the service's TaskGroup. A collector that is
    away costs spans, never events: the oldest are dropped and counted.
    """

    def __init__(self, url: str, service: str, headers: Mapping[str, str] | None = None) -> None:
        """`url` is the collector's base, such as http://127.0.0.1:4318; `service` the resource's service.name."""
        self._url = url.rstrip("/") + "/v1/traces"
        self._headers = {"Content-Type": "application/json", **(headers or {})}
        self._resource = {"attributes": _attributes({"service.name": service, "service.version": __version__})}
        self._waiting: deque[Span] = deque(maxlen=MOST_WAITING)
        self.dropped = 0

    def add(self, span: Span) -> None:
        self.dropped += len(self._waiting) == MOST_WAITING
        self._waiting.append(span)

    async def run(self) -> None:
        """Send what waits, about every second, for ever; what waits when it is cancelled is sent first, as far as that is quick."""
        failing = False
        try:
            while True:
                await asyncio.sleep(EVERY)
                failing = await self._send(failing=failing)
        finally:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS):
                    await self._send(failing=True)

    async def _send(self, *, failing: bool) -> bool:
        """Whether the collector could not be reached."""
        while self._waiting:
            spans = [self._waiting.popleft() for _ in range(min(MOST_AT_ONCE, len(self._waiting)))]
            try:
                await asyncio.to_thread(self._post, self._body(spans))
            except OSError as error:
                self.dropped += len(spans)
                if not failing:
                    log.warning("traces are not taken", url=self._url, reason=str(error), hint="TOCSIN_OTLP_URL is the collector's OTLP/HTTP address")
                return True
        return False

    def _body(self, spans: list[Span]) -> bytes:
        scope = {"name": "tocsin", "version": __version__}
        return msgspec.json.encode({"resourceSpans": [{"resource": self._resource, "scopeSpans": [{"scope": scope, "spans": [_as_otlp(s) for s in spans]}]}]})

    def _post(self, body: bytes) -> None:
        request = urllib.request.Request(self._url, body, self._headers)  # noqa: S310  # an operator's own URL
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            answer.read()


def _as_otlp(span: Span) -> dict[str, Any]:
    return {
        "traceId": span.trace,
        "spanId": span.id,
        **({"parentSpanId": span.parent} if span.parent else {}),
        "name": span.name,
        "kind": _KINDS[span.kind],
        "startTimeUnixNano": str(span.begun),
        "endTimeUnixNano": str(max(span.begun, span.ended)),
        "attributes": _attributes(span.attributes),
    }


def _attributes(values: Mapping[str, str | int]) -> list[dict[str, Any]]:
    # OTLP's JSON writes 64-bit integers as strings.
    return [{"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}} for key, value in values.items()]
