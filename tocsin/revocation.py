"""Tokens that are taken back before they expire.

A revocation is a JSON message on `_tocsin.<source>.revoke`: `{"jti": "…"}` one token, `{"sub": "…"}` every token that a user has had
until now, `{"before": <Unix time>}` every token of everybody issued until then; `sub` and `before` may stand together. A stream of
its own keeps them, so that a service that starts later refuses too; a core subscription brings them at once. The gateway keeps the stream,
the checker reads it only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Protocol

import msgspec
import structlog
from nats.aio.msg import Msg

from tocsin import broker, retry
from tocsin.access import TokenRefused
from tocsin.errors import Unavailable
from tocsin.subject import encode_token

NAME_IN_USE: Final = 10058
LOAD_SECONDS: Final = 5.0
RELOAD_SECONDS: Final = 5.0
KEPT: Final = timedelta(days=30)
MAX_BYTES: Final = 64 << 20
_NANOSECONDS: Final = 1_000_000_000

log = structlog.get_logger("tocsin.revocation")


class TokenIdentity(Protocol):
    """What of a token a revocation can name. `expires` is None for who needed no token; `issued` is 0 where the token does not say it."""

    @property
    def user(self) -> str | None: ...
    @property
    def token_id(self) -> str | None: ...
    @property
    def issued(self) -> float: ...
    @property
    def expires(self) -> float | None: ...


@dataclass(frozen=True, slots=True)
class Identity:
    """A `TokenIdentity` and no more."""

    user: str | None
    token_id: str | None
    issued: float
    expires: float | None


def identity_of(claims: Mapping[str, Any]) -> Identity:
    """Of verified claims. Raises TokenRefused where one is not well formed: such a token can't be told from a revoked one."""
    user, token_id = claims.get("sub"), claims.get("jti")
    if not all(value is None or isinstance(value, str) for value in (user, token_id)):
        raise TokenRefused("the token's claims `sub` and `jti` must be texts")
    try:
        return Identity(user or None, token_id or None, float(claims.get("iat", 0.0)), float(claims["exp"]))
    except (ValueError, TypeError, OverflowError):
        raise TokenRefused("a time in the token is not one") from None


class Revocation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One message. `before` is a Unix time; without it a user's tokens end that were issued until the message came."""

    jti: str | None = None
    sub: str | None = None
    before: float | None = None

    @property
    def says_something(self) -> bool:
        return self.jti is not None if self.sub is None and self.before is None else self.jti is None


_decoder: Final = msgspec.json.Decoder(Revocation)


def subject(source: str) -> str:
    return f"_tocsin.{encode_token(source)}.revoke"


def stream_name(stream: str) -> str:
    return f"{stream}_REVOKED"


class Revoked:
    """What has been taken back. Pure. Applying a revocation twice is as once."""

    def __init__(self) -> None:
        self._tokens: set[str] = set()
        self._users: dict[str, float] = {}
        self._everybody = float("-inf")

    def add(self, revocation: Revocation, at: float) -> None:
        """`at` is when it came (Unix time)."""
        if revocation.jti is not None:
            self._tokens.add(revocation.jti)
            return
        before = at if revocation.before is None else revocation.before
        if revocation.sub is not None:
            self._users[revocation.sub] = max(before, self._users.get(revocation.sub, before))
        else:
            self._everybody = max(before, self._everybody)

    def holds(self, token: TokenIdentity) -> bool:
        """Whether the token is among them. A token that does not say when it was issued counts as old."""
        if token.expires is None:
            return False
        user = self._users.get(token.user) if token.user is not None else None
        return token.token_id in self._tokens or token.issued <= max(self._everybody, float("-inf") if user is None else user)


class Revocations:
    """`run` belongs into the service's TaskGroup. `on_change` is called when there are new ones.

    With `replicas` (1, 3 or 5) the stream is made where there is none; without, it is only read, and none means that nothing was revoked yet.
    """

    def __init__(self, link: broker.Link, stream: str, source: str, on_change: Callable[[], None] = lambda: None, *, replicas: int | None = None) -> None:
        self._link = link
        self._name = stream_name(stream)
        self._subject = subject(source)
        self._on_change = on_change
        self._replicas = replicas
        self._revoked = Revoked()
        self._read = 0
        self._created: str | None = None
        self._loaded = asyncio.Event()

    def holds(self, token: TokenIdentity) -> bool:
        return self._revoked.holds(token)

    async def check(self, token: TokenIdentity) -> None:
        """Raises TokenRefused for what was taken back, and Unavailable while that is not known."""
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await self._loaded.wait()
        except TimeoutError:
            raise Unavailable("which tokens were revoked is not known yet; try again in a second") from None
        if self.holds(token):
            raise TokenRefused("the token was revoked")

    async def run(self) -> None:
        """Follow for ever. What the subscription misses in an outage, the stream has."""
        await self._link.connected.wait()
        await self._link.client.subscribe(self._subject, cb=self._on_message)
        while True:
            async for attempt in retry.forever(Unavailable, broker.JetStreamError, longest=1.0):
                with attempt:
                    await self._link.connected.wait()
                    if self._replicas is not None:
                        await create_stream(self._link, self._name, self._subject, self._replicas)
                    await self._load()
            self._loaded.set()
            reconnects = self._link.reconnects
            wait_until = time.monotonic() + RELOAD_SECONDS
            while time.monotonic() < wait_until and self._link.reconnects == reconnects:
                await asyncio.sleep(0.25)

    async def _on_message(self, message: Msg) -> None:
        self._add(message.data, time.time())
        self._on_change()

    def _add(self, body: bytes, at: float) -> None:
        try:
            revocation = _decoder.decode(body)
        except msgspec.MsgspecError:
            revocation = Revocation()
        if revocation.says_something:
            self._revoked.add(revocation, at)
        else:
            log.warning("a revocation that says nothing", subject=self._subject, allowed='{"jti": "…"}, {"sub": "…"} or {"before": <Unix time>}')

    async def _load(self) -> None:
        """Read what the stream has behind what was read. Raises Unavailable, JetStreamError."""
        state = await broker.stream_state(self._link.client, self._name)
        if state is None:
            if self._replicas is None:
                return
            raise Unavailable(f"there is no stream {self._name}")
        if state.created != self._created:
            self._read, self._created = 0, state.created
        read = self._read
        while self._read < state.last_sequence:
            message = await broker.stored_message(self._link.client, self._name, seq=self._read + 1, next_by_subj=self._subject)
            if message is None:
                break
            self._add(message.data, message.time.timestamp())
            self._read = message.sequence
        if self._read != read:
            self._on_change()


async def create_stream(link: broker.Link, name: str, subject: str, replicas: int, **config: Any) -> None:
    """The stream that keeps revocations, or with another `config` tickets; one that is there stays as it is. Raises Unavailable, JetStreamError.

    It refuses what it has no room for: dropping the oldest would make a token good again.
    """
    wanted = {
        "name": name,
        "subjects": [subject],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_age": int(KEPT.total_seconds()) * _NANOSECONDS,
        "max_bytes": MAX_BYTES,
        "max_msg_size": 16 << 10,
        "num_replicas": replicas,
        **config,
    }
    try:
        await broker.api(link.client, f"STREAM.CREATE.{name}", wanted)
    except broker.JetStreamError as error:
        if error.err_code != NAME_IN_USE:
            raise


async def revoke(link: broker.Link, stream: str, source: str, revocation: Revocation, *, replicas: int = 1) -> None:
    """Publish a revocation, and return once the stream has it. Raises Unavailable, JetStreamError."""
    assert revocation.says_something
    await create_stream(link, stream_name(stream), subject(source), replicas)
    await broker.publish(
        link.client, subject(source), msgspec.json.encode({name: value for name, value in msgspec.structs.asdict(revocation).items() if value is not None})
    )
