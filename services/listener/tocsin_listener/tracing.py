"""Which events are traced, and the listener's part of their traces: journal and publish."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from tocsin.event import MSG_ID
from tocsin.tracing import TRACEPARENT, Exporter, Parent, Span, parse_parent, span_id, trace_id
from tocsin_listener.message import Message

MOST_A_PAGE: Final = 16
"""Events of applications' traces that one page of a batch may add."""

_WORD: Final = b"traceparent"
_FIRST_OF_TRANSACTION: Final = b'"txposition":1,"annotation":'
_NANO: Final = 1_000_000_000


class _Annotated(msgspec.Struct):
    annotation: Any = None


_decoder: Final = msgspec.json.Decoder(_Annotated)


class Tracing:
    """Of each page of a batch at most its first message is sampled, `sample` (0 to 1) of them; besides, the first event of each transaction
    that tells a sampled `traceparent` in its annotation. All others cost one search in their bytes.
    """

    def __init__(self, exporter: Exporter, sample: float) -> None:
        self._exporter = exporter
        self._sample = sample

    def mark(self, messages: list[Message]) -> None:
        """Put the header on the messages that are traced. The same at every reading of the same rows."""
        left = MOST_A_PAGE
        for place, message in enumerate(messages):
            # The rare and short word first: to look for the long one in each body takes ten times as long.
            if left and _WORD in message.body and _FIRST_OF_TRANSACTION in message.body:
                parent = _application(message.body)
                if parent is not None and parent.sampled:
                    left -= 1
                    messages[place] = _traced(message, parent.trace)
        if messages and TRACEPARENT not in messages[0].headers and self._chosen(messages[0]):
            messages[0] = _traced(messages[0], trace_id(_event_id(messages[0])))

    def acknowledged(self, messages: Sequence[Message]) -> None:
        """JetStream has them: their spans are complete."""
        for message in messages:
            if TRACEPARENT in message.headers:
                self._record(message, message.fields[TRACEPARENT])

    def _chosen(self, message: Message) -> bool:
        return int(trace_id(_event_id(message))[-8:], 16) < self._sample * (1 << 32)

    def _record(self, message: Message, header: str) -> None:
        parent = parse_parent(header)
        assert parent is not None, "we wrote it"
        now = time.time_ns()
        read = now - int((time.monotonic() - message.read_at) * _NANO)
        application = _application(message.body)
        above = application.span if application is not None and application.trace == parent.trace else ""
        journal = span_id(_event_id(message), "journal")
        told: dict[str, str | int] = {"messaging.system": "nats", "messaging.destination.name": message.subject, "tocsin.event.id": _event_id(message)}
        begun = read - int(message.age * _NANO)
        self._exporter.add(Span(parent.trace, journal, above, "journal", begun, read, attributes=told))
        self._exporter.add(Span(parent.trace, parent.span, journal, "publish", read, now, kind="producer", attributes=told))


def _traced(message: Message, trace: str) -> Message:
    return message._replace(headers=f"{message.headers}{TRACEPARENT}: {Parent(trace, _publish_span(message), sampled=True)}\r\n")


def _event_id(message: Message) -> str:
    """Without the epoch in front of it."""
    return message.fields[MSG_ID].partition("-")[2]


def _publish_span(message: Message) -> str:
    return span_id(_event_id(message), "publish")


def _application(body: bytes) -> Parent | None:
    """The trace that the application began, as its annotation tells it."""
    if _WORD not in body:
        return None
    try:
        annotation = _decoder.decode(body).annotation
    except msgspec.MsgspecError:
        return None
    return parse_parent(annotation.get(TRACEPARENT)) if isinstance(annotation, dict) else None
