"""The edge to NATS: a connection that never gives up, the state of a stream, and the service protocol.

nats-py gives up after 60 reconnects and drops messages of a slow subscriber; `connect` sets the first right, and callers
that subscribe must bound and watch their own queue.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import msgspec
import nats.errors
import nats.micro
import structlog
from nats.aio.client import Client
from nats.micro.request import Request

from tocsin import __version__
from tocsin.direct import DirectClient, fields
from tocsin.errors import OperatorError, Unavailable
from tocsin.event import EPOCH, EPOCH_METADATA
from tocsin.nats_login import NatsLogin

API_TIMEOUT: Final = 5.0
STREAM_NOT_FOUND: Final = 10059
NO_MESSAGE: Final = 10037

log = structlog.get_logger("tocsin.broker")


@dataclass(slots=True)
class Link:
    """What is known of a connection: `client` is nats-py's; `connected` is set while the server answers."""

    client: DirectClient
    connected: asyncio.Event = field(default_factory=asyncio.Event)
    reconnects: int = 0
    last_error: str = ""


class StreamState(msgspec.Struct, frozen=True, kw_only=True):
    """A stream at one moment. Sequences are JetStream's; `last_sequence` is 0 in a fresh stream."""

    name: str
    created: str
    epoch: str | None
    first_sequence: int
    last_sequence: int
    messages: int
    bytes: int
    config: dict[str, Any]


class StoredMessage(msgspec.Struct, frozen=True, kw_only=True):
    """A message as a stream has it; of a header that comes twice the last. `time` is when it was stored."""

    sequence: int
    subject: str
    headers: dict[str, str]
    data: bytes
    time: datetime


class JetStreamError(Exception):
    """JetStream's own refusal: `code` is the HTTP-like class, `err_code` the exact reason."""

    def __init__(self, code: int, err_code: int, description: str) -> None:
        super().__init__(f"{description} ({err_code})")
        self.code = code
        self.err_code = err_code
        self.description = description


@contextlib.asynccontextmanager
async def connect(servers: list[str], *, name: str, login: NatsLogin | None = None, pending_bytes: int = 8 << 20) -> AsyncIterator[Link]:
    """A connection that waits for the server as long as it takes, says so, and reconnects without end.

    Raises OperatorError for a URL that can't be one and for a wrong file of `login`. At the end what was published is flushed, for at most 2 s.
    """
    link, establish = _prepare(servers, name, login or NatsLogin(), pending_bytes)
    await establish()
    try:
        yield link
    finally:
        await _end(link.client)


@contextlib.asynccontextmanager
async def connecting(servers: list[str], *, name: str, login: NatsLogin | None = None, pending_bytes: int = 8 << 20) -> AsyncIterator[Link]:
    """Like `connect`, but there before the server is: wait for `connected` before the first use of `client`.

    Raises an ExceptionGroup with OperatorError for a URL that can't be one.
    """
    link, establish = _prepare(servers, name, login or NatsLogin(), pending_bytes)
    async with asyncio.TaskGroup() as group:
        establishing = group.create_task(establish())
        try:
            yield link
        finally:
            establishing.cancel()
            await _end(link.client)


def _prepare(servers: list[str], name: str, login: NatsLogin, pending_bytes: int) -> tuple[Link, Callable[[], Coroutine[Any, Any, None]]]:
    """A link, and what connects it for the first time."""
    client = DirectClient()
    link = Link(client)
    options = login.options_for(client)
    shown = ", ".join(server.rpartition("@")[2] for server in servers)
    said = 0.0

    async def on_error(error: Exception) -> None:
        nonlocal said
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            # wait_for of Python 3.11, in nats-py's connect, forgets a cancellation that comes with a refused connection.
            raise asyncio.CancelledError
        link.last_error = str(error) or type(error).__name__
        if time.monotonic() - said > 5:
            said = time.monotonic()
            log.warning("NATS", server=shown, error=link.last_error, hint="" if link.connected.is_set() else "waiting for it; TOCSIN_NATS_URL says where it is")

    async def on_disconnect() -> None:
        link.connected.clear()

    async def on_reconnect() -> None:
        link.reconnects += 1
        link.connected.set()
        log.info("NATS is back", server=shown)

    async def establish() -> None:
        try:
            await client.connect(
                servers,
                name=name,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                reconnected_cb=on_reconnect,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.25,  # type: ignore[arg-type]  # seconds; passed to sleep as it is
                connect_timeout=3,
                ping_interval=3,
                max_outstanding_pings=2,
                pending_size=pending_bytes,
                drain_timeout=2,
                # An inbox prefix of its own: a user that may read `_INBOX.>` reads everybody's answers.
                inbox_prefix=inbox_prefix(name).encode(),
                **options,
            )
        except (ValueError, nats.errors.Error) as error:
            raise OperatorError(f"TOCSIN_NATS_URL={shown!r}: {error}", "write it as nats://host:4222, several separated by commas", exit_code=2) from error
        link.connected.set()

    return link, establish


def inbox_prefix(name: str) -> str:
    """Where a part named so gets its answers: `_INBOX.tocsin-gateway`; one token after `_INBOX`, so that a permission can name it."""
    return "_INBOX." + "".join(character if character.isascii() and (character.isalnum() or character in "-_") else "-" for character in name)


async def _end(client: Client) -> None:
    with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
        async with asyncio.timeout(2):
            if client.is_connected:
                await client.flush(1)
    with contextlib.suppress(nats.errors.Error, OSError):
        await client.close()


async def api(client: Client, subject: str, request: Mapping[str, Any] | None = None, *, wait: float = API_TIMEOUT) -> dict[str, Any]:
    """One JetStream API request, `subject` without `$JS.API.`; the decoded answer.

    Raises JetStreamError for a refusal and Unavailable where nothing answers. It speaks the API in plain JSON, since
    nats-py's own classes drop the fields that they do not know when a configuration is read and written back.
    """
    try:
        message = await client.request(f"$JS.API.{subject}", msgspec.json.encode(request) if request else b"", timeout=wait)
    except (nats.errors.Error, TimeoutError) as error:
        raise Unavailable(f"JetStream does not answer to {subject}: {error}") from error
    return _answer(message.data)


def _answer(body: bytes) -> dict[str, Any]:
    answer: dict[str, Any] = msgspec.json.decode(body)
    if "error" in answer:
        refusal = answer["error"]
        raise JetStreamError(refusal.get("code", 0), refusal.get("err_code", 0), refusal.get("description", ""))
    return answer


async def publish(client: Client, subject: str, body: bytes, headers: dict[str, str] | None = None, *, wait: float = API_TIMEOUT) -> int:
    """Publish one message into the stream that binds the subject; the sequence under which it was stored. Raises Unavailable, JetStreamError."""
    try:
        message = await client.request(subject, body, timeout=wait, headers=headers)
    except (nats.errors.Error, TimeoutError) as error:
        raise Unavailable(f"no stream acknowledges {subject}: {error}") from error
    return int(_answer(message.data)["seq"])


async def stream_state(client: Client, name: str) -> StreamState | None:
    """The stream's state, or None where there is no such stream. Raises Unavailable, JetStreamError.

    A mirror does not take over its origin's metadata; there the epoch is that of the last event that it has.
    """
    try:
        answer = await api(client, f"STREAM.INFO.{name}")
    except JetStreamError as error:
        if error.err_code == STREAM_NOT_FOUND:
            return None
        raise
    state = state_of(answer)
    if state.epoch is None and "mirror" in state.config and state.last_sequence:
        state = msgspec.structs.replace(state, epoch=await _epoch_of_last(client, name))
    return state


async def _epoch_of_last(client: Client, name: str) -> str | None:
    last = await stored_message(client, name, last_by_subj=">")
    return None if last is None else last.headers.get(EPOCH)


async def stored_message(
    client: Client, stream: str, *, seq: int | None = None, last_by_subj: str | None = None, next_by_subj: str | None = None
) -> StoredMessage | None:
    """One message of a stream: the one at `seq`, the last of the subject `last_by_subj`, or the first of `next_by_subj` at `seq` or behind it.

    Subjects may be patterns. None where there is no such message. Raises Unavailable, and JetStreamError (STREAM_NOT_FOUND where there is no such stream).
    """
    asked = {"seq": seq, "last_by_subj": last_by_subj, "next_by_subj": next_by_subj}
    try:
        answer = await api(client, f"STREAM.MSG.GET.{stream}", {name: value for name, value in asked.items() if value is not None})
    except JetStreamError as error:
        if error.err_code == NO_MESSAGE:
            return None
        raise
    message = answer["message"]
    headers = fields(base64.b64decode(message.get("hdrs", "")))
    return StoredMessage(
        sequence=message["seq"],
        subject=message["subject"],
        headers={name.decode(errors="replace"): value.decode(errors="replace").rstrip() for name, value in headers.items()},
        data=base64.b64decode(message.get("data", "")),
        time=datetime.fromisoformat(message["time"]),
    )


def state_of(answer: Mapping[str, Any]) -> StreamState:
    """The state in an answer of STREAM.INFO, CREATE or UPDATE."""
    config, state = answer["config"], answer["state"]
    return StreamState(
        name=config["name"],
        created=answer["created"],
        epoch=(config.get("metadata") or {}).get(EPOCH_METADATA),
        first_sequence=state["first_seq"],
        last_sequence=state["last_seq"],
        messages=state["messages"],
        bytes=state["bytes"],
        config=config,
    )


@contextlib.asynccontextmanager
async def announce(
    client: Client,
    name: str,
    description: str,
    status: Callable[[], Awaitable[bytes]],
    *,
    source: str | None = None,
    measured: Callable[[], Mapping[str, Any]] | None = None,
) -> AsyncIterator[None]:
    """Answer NATS's service protocol (`nats micro ls`), with an endpoint `<name>.status` that replies with `status()`.

    One instance replies to that; `measured()` is in every instance's answer to `$SRV.STATS`, as its endpoint's `data`, with `source` in the metadata.
    """
    metadata = {} if source is None else {"source": source}
    handler = None if measured is None else lambda _: measured()
    service = await nats.micro.add_service(client, name=name, version=__version__, description=description, metadata=metadata, stats_handler=handler)

    async def answer(request: Request) -> None:
        await request.respond(await status())

    await service.add_endpoint(name="status", subject=f"{name}.status", handler=answer)
    try:
        yield
    finally:
        with contextlib.suppress(nats.errors.Error, TimeoutError, OSError):
            async with asyncio.timeout(2):
                await service.stop()
