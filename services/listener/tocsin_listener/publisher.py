"""Publishing into the stream: in order, each message only directly after the one before it, in atomic batches.

Every attempt says which sequence must be the stream's last (`Nats-Expected-Last-Sequence`), so a writer that should not be
there, or a batch sent twice, fails loudly and stores nothing.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from tocsin.broker import JetStreamError
from tocsin.errors import Unavailable
from tocsin_listener.message import Message

LARGEST_BATCH: Final = 500
ACK_TIMEOUT: Final = 5.0

EXPECTED_LAST: Final = "Nats-Expected-Last-Sequence"
BATCH_ID: Final = "Nats-Batch-Id"
BATCH_SEQUENCE: Final = "Nats-Batch-Sequence"
BATCH_COMMIT: Final = "Nats-Batch-Commit"

WRONG_LAST_SEQUENCE: Final = 10071
MESSAGE_TOO_LARGE: Final = 10054


class Refused(Exception):  # noqa: N818  # it names an outcome, not a fault of ours
    """NATS refuses this message for good."""

    def __init__(self, message: Message, reason: str) -> None:
        super().__init__(reason)
        self.message = message
        self.reason = reason


class Publisher:
    """Sends chunks of at most LARGEST_BATCH messages and matches their acknowledgements; made by `publisher`."""

    def __init__(self, client: Client, *, atomic: bool) -> None:
        self._client = client
        self._atomic = atomic
        self._inbox = client.new_inbox()
        self._waiting: dict[str, asyncio.Future[Msg]] = {}

    async def send(self, messages: Sequence[Message], last: int) -> asyncio.Future[Msg]:
        """Write one chunk to the connection, to be stored right after sequence `last`; its acknowledgement is to come.

        Raises Refused for a message that the server would refuse for its size, Unavailable while there is no connection.
        """
        if not self._client.is_connected:
            raise Unavailable("NATS is not connected")
        try:
            if len(messages) == 1:
                return await self._send_one(messages[0], last)
            if self._atomic:
                return await self._send_batch(messages, last)
            for number, message in enumerate(messages[:-1]):
                await self._send_one(message, last + number)
            return await self._send_one(messages[-1], last + len(messages) - 1)
        except nats.errors.MaxPayloadError as error:
            largest = max(messages, key=lambda m: len(m.body))
            raise Refused(largest, f"{len(largest.body)} bytes are more than the server's max_payload of {self._client.max_payload}") from error
        except nats.errors.Error as error:
            raise Unavailable(f"NATS: {error}") from error

    async def acknowledged(self, future: asyncio.Future[Msg], last: int) -> None:
        """Wait until the chunk that `send` returned this for is stored, its end at sequence `last`.

        Raises JetStreamError for a refusal, Unavailable where no answer came or the message was not stored at `last`.
        """
        try:
            async with asyncio.timeout(ACK_TIMEOUT):
                answer = await future
        except TimeoutError:
            raise Unavailable(f"NATS did not acknowledge within {ACK_TIMEOUT:g} s") from None
        if answer.headers and answer.headers.get("Status") == "503":
            raise Unavailable("no stream takes the subject: it was removed, or JetStream does not answer")
        ack: dict[str, Any] = msgspec.json.decode(answer.data)
        if "error" in ack:
            raise JetStreamError(ack["error"].get("code", 0), ack["error"].get("err_code", 0), ack["error"].get("description", ""))
        if ack.get("duplicate") or ack["seq"] != last:
            # What is really there is read back before anything else is sent.
            raise Unavailable(f"the stream answered sequence {ack['seq']}{', a duplicate,' if ack.get('duplicate') else ''} where {last} was expected")

    async def _send_one(self, message: Message, last: int) -> asyncio.Future[Msg]:
        reply, future = self._expect()
        await self._client.publish(message.subject, message.body, reply=reply, headers={**message.headers, EXPECTED_LAST: str(last)})
        return future

    async def _send_batch(self, messages: Sequence[Message], last: int) -> asyncio.Future[Msg]:
        batch = secrets.token_hex(8)
        reply, future = self._expect()
        end = len(messages)
        for number, message in enumerate(messages, 1):
            headers = {**message.headers, BATCH_ID: batch, BATCH_SEQUENCE: str(number)}
            if number == 1:
                headers[EXPECTED_LAST] = str(last)
            if number == end:
                headers[BATCH_COMMIT] = "1"
            await self._client.publish(message.subject, message.body, reply=reply if number == end else "", headers=headers)
        return future

    def _expect(self) -> tuple[str, asyncio.Future[Msg]]:
        token = secrets.token_hex(6)
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        future.add_done_callback(lambda _: self._waiting.pop(token, None))
        return f"{self._inbox}.{token}", future

    async def on_answer(self, answer: Msg) -> None:
        future = self._waiting.get(answer.subject.rpartition(".")[2])
        if future is not None and not future.done():
            future.set_result(answer)

    @property
    def inbox(self) -> str:
        return f"{self._inbox}.*"


@asynccontextmanager
async def publisher(client: Client, *, atomic: bool) -> AsyncIterator[Publisher]:
    """A Publisher whose inbox is subscribed; `atomic` where the stream allows atomic batches, else single messages are pipelined."""
    made = Publisher(client, atomic=atomic)
    subscription = await client.subscribe(made.inbox, cb=made.on_answer)
    try:
        yield made
    finally:
        if not client.is_closed and client.is_connected:
            await subscription.unsubscribe()
