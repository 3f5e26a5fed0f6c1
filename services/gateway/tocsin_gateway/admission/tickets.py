"""Tickets: a way into a URL for clients that can set neither header nor subprotocol, such as EventSource.

`POST /tickets` gives one for a token. It is good for one connection within half a minute, on any gateway of the source, with the rights
and until the end of the token. The ticket is 256 random bits; NATS has only its SHA-256, with the token's claims, never the token. Whoever
comes first replaces the claims by nothing, on the condition that they were not replaced before: JetStream decides between two gateways.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from typing import Any, Final

import msgspec

from tocsin import broker
from tocsin.errors import Unavailable
from tocsin.revocation import create_stream
from tocsin.subject import encode_token
from tocsin_gateway.admission.access import Verified
from tocsin_gateway.protocol import ProtocolError

SECONDS: Final = 30.0
NOT_THE_LAST: Final = frozenset({10071, 10164})
EXPECTED: Final = "Nats-Expected-Last-Subject-Sequence"
MAX_TICKETS_BYTES: Final = 64 << 20
_NANOSECONDS: Final = 1_000_000_000


class _Kept(msgspec.Struct, frozen=True):
    until: float
    claims: dict[str, Any]


_decoder: Final = msgspec.json.Decoder(_Kept)


def subjects(source: str) -> str:
    return f"_tocsin.{encode_token(source)}.ticket.*"


def stream_name(stream: str) -> str:
    return f"{stream}_TICKETS"


class Tickets:
    """Issued and redeemed through NATS."""

    def __init__(self, link: broker.Link, stream: str, source: str, *, replicas: int = 1) -> None:
        self._link = link
        self._name = stream_name(stream)
        self._subjects = subjects(source)
        self._replicas = replicas

    async def issue(self, verified: Verified) -> tuple[str, float]:
        """(the ticket, seconds that it is good for). Raises ProtocolError unavailable."""
        ticket = secrets.token_urlsafe(32)
        seconds = SECONDS if verified.grant.expires is None else min(SECONDS, verified.grant.expires - time.time())
        body = msgspec.json.encode(_Kept(time.time() + seconds, verified.claims))
        try:
            try:
                await broker.publish(self._link.client, self._subject(ticket), body)
            except (Unavailable, broker.JetStreamError):
                # Most likely the first ticket of this source: nobody has made the stream yet.
                await self._create_stream()
                await broker.publish(self._link.client, self._subject(ticket), body)
        except (Unavailable, broker.JetStreamError) as error:
            raise ProtocolError("unavailable", f"no ticket can be issued at the moment: {error}") from None
        return ticket, seconds

    async def redeem(self, ticket: str) -> dict[str, Any]:
        """The claims of the token that it was issued for; only once. Raises ProtocolError unauthenticated or unavailable."""
        try:
            claims = await self._take(ticket)
        except broker.JetStreamError as error:
            if error.err_code not in (*NOT_THE_LAST, broker.STREAM_NOT_FOUND):
                raise ProtocolError("unavailable", f"tickets can't be checked at the moment: {error}") from None
            claims = None
        except Unavailable as error:
            raise ProtocolError("unavailable", f"tickets can't be checked at the moment: {error}") from None
        if claims is None:
            raise ProtocolError("unauthenticated", "the ticket is not known, too old, or was used before; POST /tickets gives a new one")
        return claims

    async def _take(self, ticket: str) -> dict[str, Any] | None:
        subject = self._subject(ticket)
        message = await broker.stored_message(self._link.client, self._name, last_by_subj=subject)
        if message is None:
            return None
        try:
            kept = _decoder.decode(message.data)
        except msgspec.MsgspecError:
            return None  # the empty message of whoever was first
        if kept.until < time.time():
            return None
        await broker.publish(self._link.client, subject, b"", {EXPECTED: str(message.sequence)})
        return kept.claims

    def _subject(self, ticket: str) -> str:
        return self._subjects.replace("*", hashlib.sha256(ticket.encode()).hexdigest())

    async def _create_stream(self) -> None:
        config = {"storage": "memory", "max_age": int(SECONDS) * _NANOSECONDS, "max_bytes": MAX_TICKETS_BYTES, "max_msgs_per_subject": 1}
        await create_stream(self._link, self._name, self._subjects, self._replicas, **config)
