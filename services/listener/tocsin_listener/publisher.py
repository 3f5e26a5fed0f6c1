"""Publishing into the stream: in order, each message only directly after the one before it, pipelined or in atomic batches.

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
from tocsin_listener import wire
from tocsin_listener.message import Message
from tocsin_listener.pace import Pace

LARGEST_BATCH: Final = 500
ACK_TIMEOUT: Final = 5.0
MOST_SUBJECTS: Final = 10_000

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
        self._openings: dict[str, asyncio.Future[Msg]] = {}
        """By the first message of a chunk of single ones, the whole chunk's."""
        self._fit: set[str] = set()
        self._pace = Pace()

    async def send(self, messages: Sequence[Message], last: int) -> asyncio.Future[Msg]:
        """Write one chunk to the connection, to be stored right after sequence `last`; its acknowledgement is to come.

        Raises Refused for a message that the server would refuse for its size, Unavailable while there is no connection.
        """
        if not self._client.is_connected:
            raise Unavailable("NATS is not connected")
        self._refuse_unfit(messages)
        batch = self._atomic and self._pace.batch(len(messages))
        frames, future = self._batch(messages, last) if batch else self._singles(messages, last)
        self._pace.measure(future, len(messages), batch=batch)
        try:
            await wire.write(self._client, frames)
        except nats.errors.Error as error:
            raise Unavailable(f"NATS: {error}") from error
        return future

    def _refuse_unfit(self, messages: Sequence[Message]) -> None:
        """Raises Refused for the first message that the server would refuse for itself, or for which it would drop the connection."""
        most = self._client.max_payload
        for message in messages:
            if 2 * len(message.body) > most and (size := wire.size(message)) > most:
                raise Refused(message, f"{size} bytes, headers included, are more than the server's max_payload of {most}")
            # The same few subjects come again and again.
            if message.subject not in self._fit:
                reason = wire.unfit(message.subject)
                if reason is not None:
                    raise Refused(message, reason)
                if len(self._fit) >= MOST_SUBJECTS:
                    self._fit.clear()
                self._fit.add(message.subject)

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

    def _singles(self, messages: Sequence[Message], last: int) -> tuple[list[bytes], asyncio.Future[Msg]]:
        """The last one's acknowledgement stands for all, since none can be stored without those before it. The first one's is asked for
        too: after a refusal the relay begins with the message that was refused, whose own answer says why.
        """
        reply, future = self._expect()
        end = len(messages) - 1
        frames = [wire.frame(message, f"{EXPECTED_LAST}: {last + number}\r\n", reply if number == end else "") for number, message in enumerate(messages)]
        if end:
            token = secrets.token_hex(6)
            self._openings[token] = future
            future.add_done_callback(lambda _: self._openings.pop(token, None))
            frames[0] = wire.frame(messages[0], f"{EXPECTED_LAST}: {last}\r\n", f"{self._inbox}.{token}")
        return frames, future

    def _batch(self, messages: Sequence[Message], last: int) -> tuple[list[bytes], asyncio.Future[Msg]]:
        batch = f"{BATCH_ID}: {secrets.token_hex(8)}\r\n{BATCH_SEQUENCE}: "
        reply, future = self._expect()
        end = len(messages)
        frames = [wire.frame(messages[0], f"{batch}1\r\n{EXPECTED_LAST}: {last}\r\n")]
        frames += [wire.frame(message, f"{batch}{number}\r\n") for number, message in enumerate(messages[1:-1], 2)]
        frames.append(wire.frame(messages[-1], f"{batch}{end}\r\n{BATCH_COMMIT}: 1\r\n", reply))
        return frames, future

    def _expect(self) -> tuple[str, asyncio.Future[Msg]]:
        token = secrets.token_hex(6)
        future: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self._waiting[token] = future
        future.add_done_callback(lambda _: self._waiting.pop(token, None))
        return f"{self._inbox}.{token}", future

    async def on_answer(self, answer: Msg) -> None:
        token = answer.subject.rpartition(".")[2]
        future = self._waiting.get(token)
        # Here and not in a callback: in the same read comes the last one's answer, which says only that one before it is missing.
        if future is None and _refuses(answer):
            future = self._openings.get(token)
        if future is not None and not future.done():
            future.set_result(answer)

    @property
    def inbox(self) -> str:
        return f"{self._inbox}.*"


def _refuses(answer: Msg) -> bool:
    return b'"error"' in answer.data or not answer.data


@asynccontextmanager
async def publisher(client: Client, *, atomic: bool) -> AsyncIterator[Publisher]:
    """A Publisher whose inbox is subscribed; `atomic` where stream and server allow atomic batches, else single messages are pipelined."""
    version = client.connected_server_version
    # 2.12.0 refuses a message's id within an atomic batch.
    made = Publisher(client, atomic=atomic and (version.major, version.minor, version.patch) >= (2, 12, 1))
    subscription = await client.subscribe(made.inbox, cb=made.on_answer)
    try:
        yield made
    finally:
        if not client.is_closed and client.is_connected:
            await subscription.unsubscribe()
