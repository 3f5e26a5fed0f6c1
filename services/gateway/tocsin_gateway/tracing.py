"""The gateway's part of a trace: the event handed to its clients, and sent."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable

from tocsin.tracing import Exporter, Span, parse_parent
from tocsin_gateway.delivery.frames import StreamEvent


class Tracing:
    """`deliver` is called in place of the delivery itself, for messages with a `traceparent` only."""

    def __init__(self, exporter: Exporter) -> None:
        self._exporter = exporter

    def deliver(self, header: str, event: StreamEvent, hand_out: Callable[[], None]) -> None:
        """Hand the event out, and record `gateway` (reading it, routing it, filling outboxes) and `send` (until the sockets have the bytes)."""
        begun = time.time_ns()
        hand_out()
        parent = parse_parent(header)
        if parent is None or not parent.sampled:
            return
        handed = time.time_ns()
        # Several gateways and workers deliver the same event: their spans need ids of their own.
        gateway, send = secrets.token_hex(8), secrets.token_hex(8)
        told: dict[str, str | int] = {
            "messaging.system": "nats",
            "messaging.destination.name": event.subject,
            "tocsin.epoch": event.epoch,
            "tocsin.stream.sequence": event.sequence,
        }

        def sent() -> None:
            self._exporter.add(Span(parent.trace, gateway, parent.span, "gateway", begun, handed, kind="consumer", attributes=told))
            self._exporter.add(Span(parent.trace, send, gateway, "send", handed, time.time_ns(), kind="producer", attributes=told))

        # The outboxes were asked to flush in the loop's next turn, before this.
        asyncio.get_running_loop().call_soon(sent)
