"""One ordered reader of the stream: an ephemeral pull consumer without acknowledgements, checked for gaps.

Pull, not push: what has not been asked for stays in JetStream, so neither nats-py's queue nor our memory can overflow.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.subscription import Subscription

from tocsin import broker
from tocsin.direct import DirectClient, fields, status
from tocsin.errors import Unavailable
from tocsin.event import COPY, EPOCH, MSG_ID
from tocsin.subject import Pattern
from tocsin.tracing import TRACEPARENT
from tocsin_gateway.delivery.frames import StreamEvent

_SECOND: Final = 1_000_000_000
_DELIVERED: Final = b"$JS.ACK."
_EPOCH, _MSG_ID, _COPY, _TRACEPARENT = EPOCH.encode(), MSG_ID.encode(), COPY.encode(), TRACEPARENT.encode()
IDLE_SECONDS: Final = 10

Deliver = Callable[[StreamEvent, int], None]
"""Called with an event and the number of messages that JetStream still has for this consumer."""


OnTraced = Callable[[str, StreamEvent, Callable[[], None]], None]
"""Called in place of Deliver for a message of a trace: with its `traceparent`, the event, and what delivers it."""


class ConsumerLost(Exception):  # noqa: N818  # an event in a consumer's life rather than a fault of ours
    """Messages are missing, or the consumer is gone: open another one."""


class Consumer:
    """Opened from a stream sequence (inclusive) or a time; `deliver` gets the events in stream order.

    `sequence` is the stream sequence before the first message, and then that of the last message delivered.
    """

    def __init__(self, client: DirectClient, stream: str, filters: tuple[Pattern, ...], deliver: Deliver) -> None:
        self._client = client
        self._stream = stream
        self._filters = filters
        self._deliver = deliver
        self._inbox = client.new_inbox()
        self._subscription: Subscription | None = None
        self._name = ""
        self._next = 1
        self.sequence = 0
        self.outstanding = 0
        self.foreign = 0
        self.lost: Exception | None = None
        self.on_status: Callable[[str], None] | None = None
        self.on_traced: OnTraced | None = None
        self._heard_at = time.monotonic()

    def silence(self) -> float:
        """Seconds since anything was heard, heartbeats included."""
        return time.monotonic() - self._heard_at

    async def open(self, start: int | datetime) -> None:
        """Raises Unavailable, broker.JetStreamError."""
        self._name = self._inbox.rpartition(".")[2]
        config: dict[str, Any] = {
            "name": self._name,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": IDLE_SECONDS * _SECOND,
            "filter_subjects": [pattern.text for pattern in self._filters],
        }
        if isinstance(start, datetime):
            config |= {"deliver_policy": "by_start_time", "opt_start_time": start.isoformat()}
        else:
            config |= {"deliver_policy": "by_start_sequence", "opt_start_seq": max(start, 1)}
        request = {"stream_name": self._stream, "config": config, "action": "create"}
        try:
            answer = await broker.api(self._client, f"CONSUMER.CREATE.{self._stream}.{self._name}", request)
            self.sequence = answer["delivered"]["stream_seq"]
            self._subscription = await self._client.listen(self._inbox, self._on_message)
        except nats.errors.Error as error:
            raise Unavailable(f"NATS does not take a subscription: {error}") from error
        except BaseException:
            # JetStream may have made it all the same.
            await self.close()
            raise

    async def close(self) -> None:
        """Stop at once; what was on its way is ignored."""
        self.lost = self.lost or ConsumerLost("closed")
        with contextlib.suppress(nats.errors.Error, Unavailable, broker.JetStreamError):
            if self._subscription is not None:
                await self._client.forget(self._subscription)
            await self._client.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{self._name}", b"")

    async def pull(self, batch: int, max_bytes: int, *, wait: float | None = None, heartbeat: float | None = None) -> None:
        """Ask for up to `batch` more messages; without `wait` (seconds) only for those that are there."""
        request: dict[str, Any] = {"batch": batch, "max_bytes": max_bytes}
        if wait is None:
            request["no_wait"] = True
        else:
            request["expires"] = int(wait * _SECOND)
            if heartbeat is not None:
                request["idle_heartbeat"] = int(heartbeat * _SECOND)
        self.outstanding += batch
        try:
            await self._client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{self._name}", msgspec.json.encode(request), reply=self._inbox)
        except nats.errors.Error as error:
            raise Unavailable(f"NATS does not take a request: {error}") from error

    async def pending(self) -> tuple[int, int]:
        """(messages that JetStream has not delivered, consumer sequence of the last one it has)"""
        answer = await broker.api(self._client, f"CONSUMER.INFO.{self._stream}.{self._name}")
        return answer["num_pending"], answer["delivered"]["consumer_seq"]

    @property
    def consumer_sequence(self) -> int:
        """The consumer sequence of the last message delivered to us; 0 before the first."""
        return self._next - 1

    def _on_message(self, subject: bytes, reply: bytes, body: bytes, headers: bytes) -> None:
        if self.lost is not None:
            return
        self._heard_at = time.monotonic()
        try:
            if reply.startswith(_DELIVERED):
                self._on_event(subject, reply, body, headers)
            else:
                self._on_status_message(headers)
        except Exception as error:  # noqa: BLE001  # nobody above would see it but the connection itself
            self.lost = error
            self._tell("lost")

    def _on_event(self, subject: bytes, reply: bytes, body: bytes, headers: bytes) -> None:
        # $JS.ACK.<stream>.<consumer>.<deliveries>.<stream seq>.<consumer seq>.<time>.<pending>, with domain and account before the stream and
        # a token at the end in the second form of it.
        parts = reply.split(b".")
        offset = 0 if len(parts) == 9 else 2
        sequence, number, pending = int(parts[5 + offset]), int(parts[6 + offset]), int(parts[8 + offset])
        if number != self._next:
            raise ConsumerLost(f"message {number} of the consumer came in place of {self._next}")
        self._next = number + 1
        self.sequence = sequence
        self.outstanding -= 1
        told = fields(headers)
        epoch = told.get(_EPOCH)
        if epoch is None:
            # Somebody other than the listener wrote into the stream; its bytes need not even be JSON.
            self.foreign += 1
        else:
            event = StreamEvent(epoch.decode(), sequence, subject.decode(), body, told.get(_MSG_ID, b"").decode(), copy=_COPY in told)
            if self.on_traced is not None and (traced := told.get(_TRACEPARENT)) is not None:
                self.on_traced(traced.decode(), event, partial(self._deliver, event, pending))
            else:
                self._deliver(event, pending)
        self._tell("event")

    def _on_status_message(self, headers: bytes) -> None:
        code, description = status(headers)
        if code == "100":
            return
        if code not in ("404", "408", "409"):
            raise ConsumerLost(f"JetStream answered {code} {description}")
        if code == "409" and "Deleted" in description:
            raise ConsumerLost("the consumer was deleted")
        left = fields(headers).get(b"Nats-Pending-Messages")
        self.outstanding = max(0, self.outstanding - int(left)) if left is not None else 0
        self._tell("status")

    def _tell(self, what: str) -> None:
        if self.on_status is not None:
            self.on_status(what)
