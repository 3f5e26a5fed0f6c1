"""From the stream to whoever asks: where the event stands, and whether the gateway gives it to this token; for `tocsin why`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from tocsin.broker import JetStreamError, stored_message
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.cli.examine.nats_session import UNREACHABLE, nats_session
from tocsin.cli.examine.way import Reached
from tocsin.cli.https import certificate_fix
from tocsin.errors import Unavailable
from tocsin.event import EPOCH, MSG_ID
from tocsin.settings import Settings

PATIENCE: Final = 5.0


async def stream(what: str, settings: Settings, identity: Mapping[str, Any], reached: Reached) -> AsyncIterator[Finding]:
    """The event's place in the stream, as the position that a client would resume from."""
    subject = f"{identity['prefix']}.{identity['source']}.{reached.subject}"
    try:
        async with nats_session(settings, "tocsin why") as client:
            message = await stored_message(client, identity["stream"], last_by_subj=subject)
    except (JetStreamError, Unavailable) as error:
        yield bad(what, f"the stream {identity['stream']} does not answer: {error}", "tocsin doctor")
        return
    except UNREACHABLE as error:
        yield bad(what, f"NATS does not answer: {error}", "correct TOCSIN_NATS_URL, or start it; tocsin doctor says more")
        return
    if message is None:
        if not reached.passed:
            yield bad(what, "NATS has not acknowledged it yet", "wait a moment; else see whether NATS takes messages: tocsin doctor")
            return
        fix = "raise TOCSIN_STREAM_MAX_AGE or TOCSIN_STREAM_MAX_BYTES; once more from the journal: tocsin replay --since 24h --to replay.again"
        yield bad(what, f"the stream {identity['stream']} has no message under {subject} any more: it aged out, or was purged", fix)
        return
    position = f"{message.headers.get(EPOCH)}-{message.sequence}"
    if message.headers.get(MSG_ID, "").endswith(f"-{identity['incarnation']}-{reached.seq}"):
        yield good(what, f"it stands in the stream {identity['stream']} at the position {position}, under {subject}")
    else:
        yield good(what, f"the stream {identity['stream']} has a later one under {subject}, at the position {position}; this one stands before it")


async def gateway(what: str, url: str, subject: str, token: str | None) -> Finding:
    """Whether the gateway takes a subscription to `subject`, with the token or without: it alone knows who may see what."""
    whose = "the holder of this token" if token else "everybody who reaches it"
    try:
        async with connect(url, compression=None, open_timeout=PATIENCE, close_timeout=1) as socket:
            if token:
                await socket.send(msgspec.json.encode({"op": "auth", "token": token}).decode())
            await socket.send(msgspec.json.encode({"op": "subscribe", "id": "why", "subject": subject, "since": "now"}).decode())
            frame = await _verdict(socket)
    except (OSError, TimeoutError, WebSocketException, msgspec.DecodeError) as error:
        fix = certificate_fix(error, "why") or "tocsin gateway   # or name it: --url http://host:8080"
        return bad(what, f"the gateway does not answer at {url}: {error or type(error).__name__}", fix)
    if frame["op"] == "subscribed":
        return good(what, f"the gateway gives it to {whose}; from here on at the position {frame['position']}")
    code, message = frame.get("code"), frame.get("message")
    if code == "unauthenticated" and token is None:
        return good(what, "the gateway asks for a token: who may see it, `--token …` tells of one")
    return bad(what, f"the gateway does not give it to {whose}: {message} ({code})", "give the token a pattern that contains the subject; see docs/security.md")


async def _verdict(socket: Any) -> dict[str, Any]:
    """The frame that answers the subscription, or the last refusal before the gateway closed."""
    last: dict[str, Any] = {"op": "error", "code": "closed", "message": "the gateway closed the connection"}
    with contextlib.suppress(WebSocketException):
        async for text in socket:
            frame: dict[str, Any] = msgspec.json.decode(text)
            if frame["op"] in ("error", "subscribed"):
                last = frame
                break
    return last
