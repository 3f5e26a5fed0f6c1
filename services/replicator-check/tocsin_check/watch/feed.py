"""Reads the whole event stream for what changed. Any doubt ends the session, and a new one begins with every table wholly changed.

The stream is read without a filter, so that its sequence numbers show each hole.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from typing import Any, Final

import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg

from tocsin import broker, retry
from tocsin.broker import JetStreamError, Link, StreamState
from tocsin.errors import Unavailable
from tocsin.event import EPOCH
from tocsin.nats_login import NatsLogin
from tocsin.subject import Pattern, encode_token
from tocsin_check.watch.changes import NOT_CONNECTED, Changes

BATCH: Final = 500
WAIT: Final = 2.0
TOO_FAR_BEHIND: Final = 200_000
"""Messages; so many changes are read faster from the tables."""
_PATIENCE: Final = 3.0

log = structlog.get_logger("tocsin.check")


class Interrupted(Exception):  # noqa: N818  # an event in the stream's life, not a fault
    """Events may be missing; the message says why."""


class Feed:
    """`run` belongs into the service's TaskGroup; it never ends. `passed` is the last stream sequence that was noted."""

    def __init__(self, changes: Changes, *, stream: str, prefix: str, source: str) -> None:
        self._changes = changes
        self._stream = stream
        self._change = Pattern(f"{prefix}.{encode_token(source)}.change.>")
        self._client: Client | None = None
        self._passed = 0
        self._moved = asyncio.Event()

    async def run(self, link: Link) -> None:
        """Follow the stream as long as the connection's owner lives; a lost one is taken up again by a new session."""
        pauses = retry.Pauses()
        while True:
            begun = time.monotonic()
            try:
                await link.connected.wait()
                await self._session(link)
            except (Interrupted, Unavailable, JetStreamError, nats.errors.Error) as error:
                reason = str(error) or type(error).__name__
                self._changes.lost(f"{NOT_CONNECTED}: {reason}")
                log.info("events are not followed", reason=reason)
            finally:
                self._client = None
            if time.monotonic() - begun > 30:
                pauses.reset()
            await asyncio.sleep(pauses.next())

    async def arrived(self) -> bool:
        """Whether everything that the stream holds now is noted."""
        client = self._client
        if client is None:
            return False
        try:
            state = await self._state(client)
            async with asyncio.timeout(_PATIENCE):
                while self._client is client and self._passed < state.last_sequence:
                    self._moved.clear()
                    await self._moved.wait()
        except (TimeoutError, Interrupted, Unavailable, JetStreamError, nats.errors.Error):
            return False
        return self._client is client

    async def _session(self, link: Link) -> None:
        client, reconnects = link.client, link.reconnects
        state = await self._state(client)
        self._passed = state.last_sequence
        name = f"tocsin-check-{secrets.token_hex(6)}"
        config: dict[str, Any] = {
            "name": name, "ack_policy": "none", "replay_policy": "instant", "deliver_policy": "by_start_sequence", "opt_start_seq": self._passed + 1,
            "mem_storage": True, "num_replicas": 1, "inactive_threshold": 30_000_000_000,
        }  # fmt: skip
        await broker.api(client, f"CONSUMER.CREATE.{self._stream}.{name}", {"stream_name": self._stream, "config": config, "action": "create"})
        subscription = await client.jetstream().pull_subscribe_bind(consumer=name, stream=self._stream)
        try:
            self._changes.begin("the event stream was joined anew")
            self._client = client
            log.info("events are followed", stream=self._stream, after=self._passed)
            while True:
                if link.reconnects != reconnects:
                    raise Interrupted("the connection to NATS was lost in between")
                await self._read(subscription, client, state, name)
        finally:
            with contextlib.suppress(nats.errors.Error, Unavailable, JetStreamError, TimeoutError):
                await subscription.unsubscribe()
                await broker.api(client, f"CONSUMER.DELETE.{self._stream}.{name}", wait=1)

    async def _read(self, subscription: Any, client: Client, state: StreamState, consumer: str) -> None:
        try:
            messages: Sequence[Msg] = await subscription.fetch(BATCH, timeout=WAIT)
        except TimeoutError:  # nats-py's own derives from it
            # A stream or a consumer that is gone is silent, too.
            now = await self._state(client)
            if now.created != state.created or now.epoch != state.epoch:
                raise Interrupted("the stream was made anew, or began a new epoch") from None
            if now.last_sequence < self._passed:
                raise Interrupted("the stream went backwards") from None
            await broker.api(client, f"CONSUMER.INFO.{self._stream}.{consumer}")
            return
        for message in messages:
            self._take(message, state.epoch)
        self._moved.set()
        await asyncio.sleep(0)

    def _take(self, message: Msg, epoch: str | None) -> None:
        sequence = message.metadata.sequence.stream
        if sequence != self._passed + 1:
            raise Interrupted(f"the stream has a gap before {sequence}")
        if (message.headers or {}).get(EPOCH, epoch) != epoch:
            raise Interrupted("the stream began a new epoch")
        if message.metadata.num_pending > TOO_FAR_BEHIND:
            raise Interrupted(f"more than {TOO_FAR_BEHIND:,} events came at once")
        if self._change.matches(message.subject):
            self._changes.note(message.data)
        self._passed = sequence

    async def _state(self, client: Client) -> StreamState:
        state = await broker.stream_state(client, self._stream)
        if state is None:
            raise Interrupted(f"there is no stream {self._stream}")
        return state


async def follow(feed: Feed, servers: list[str], login: NatsLogin) -> None:
    """Run the feed over a connection of its own."""
    async with broker.connect(servers, name="tocsin check feed", login=login) as link:
        await feed.run(link)
