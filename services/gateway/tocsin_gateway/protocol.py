"""The messages between client and gateway, and their errors. Pure.

Client to gateway, by `op`: auth, subscribe, unsubscribe, ping. What a client sends wrong becomes a ProtocolError whose
code and message go back to it; the connection survives.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from decimal import Decimal
from enum import IntEnum
from typing import Any, Final, Literal

import msgspec

from tocsin.duration import parse_duration
from tocsin.position import Position, PositionError
from tocsin.subject import Pattern, SubjectError
from tocsin_gateway.rows.condition import ConditionError, Where, parse_where

VERSION: Final = 1
MAX_ID: Final = 128
MAX_SELECT: Final = 256

Code = Literal["bad-message", "bad-subject", "bad-since", "bad-where", "duplicate-id", "unknown-id", "unauthenticated", "forbidden", "limit", "unavailable"]
Reason = Literal["expired", "epoch", "gap", "limit"]


class Close(IntEnum):
    """Close codes, as the contract numbers them."""

    BAD_MESSAGE = 4400
    UNAUTHENTICATED = 4401
    FORBIDDEN = 4403
    AUTH_TIMEOUT = 4408
    TOO_SLOW = 4411
    OVER_LIMIT = 4429
    RESTARTING = 1012


class ProtocolError(Exception):
    """What is sent back as `{"op": "error"}`; `id` names the subscription where there is one."""

    def __init__(self, code: Code, message: str, id: str | None = None) -> None:  # noqa: A002  # the field's name
        super().__init__(message)
        self.code = code
        self.id = id


class Auth(msgspec.Struct, tag="auth", tag_field="op", frozen=True, forbid_unknown_fields=True):
    token: str


class Subscribe(msgspec.Struct, tag="subscribe", tag_field="op", frozen=True, forbid_unknown_fields=True):
    id: str
    subject: str
    since: str = "now"
    where: Any = None
    select: list[str] | None = None
    presence: bool = False


class Unsubscribe(msgspec.Struct, tag="unsubscribe", tag_field="op", frozen=True, forbid_unknown_fields=True):
    id: str


class Publish(msgspec.Struct, tag="publish", tag_field="op", frozen=True, forbid_unknown_fields=True):
    """`id`, where there is one, is answered by `published`."""

    subject: str
    data: msgspec.Raw
    id: str | None = None


class Ping(msgspec.Struct, tag="ping", tag_field="op", frozen=True, forbid_unknown_fields=True):
    pass


ClientMessage = Auth | Subscribe | Unsubscribe | Publish | Ping
Since = Literal["now", "start", "snapshot"] | timedelta | Position

_decoder: Final = msgspec.json.Decoder(ClientMessage, float_hook=Decimal)
_loose: Final = msgspec.json.Decoder(dict[str, Any])


def decode(text: str | bytes) -> ClientMessage:
    """One client message. Raises ProtocolError bad-message, with what is wrong and what is allowed."""
    try:
        message: ClientMessage = _decoder.decode(text)
    except msgspec.ValidationError as error:
        raise ProtocolError("bad-message", f"{error}; op is one of auth, subscribe, unsubscribe, publish, ping", _id_of(text)) from None
    except ArithmeticError:
        raise ProtocolError("bad-message", "a number in it has an exponent that no column's value has") from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError("bad-message", f"this is not a JSON object: {error}") from None
    return message


def _id_of(text: str | bytes) -> str | None:
    try:
        found = _loose.decode(text).get("id")
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return found if isinstance(found, str) and len(found) <= MAX_ID else None


def checked_pattern(request: Subscribe) -> Pattern:
    """Raises ProtocolError bad-subject, or bad-message for an id that is not one."""
    if not 0 < len(request.id) <= MAX_ID:
        raise ProtocolError("bad-message", f"id has {len(request.id)} characters; 1 to {MAX_ID} are allowed")
    try:
        return Pattern(request.subject)
    except SubjectError as error:
        raise ProtocolError("bad-subject", str(error), request.id) from None


def checked_where(request: Subscribe) -> Where | None:
    """Raises ProtocolError bad-where."""
    try:
        return None if request.where is None else parse_where(request.where)
    except ConditionError as error:
        raise ProtocolError("bad-where", str(error), request.id) from None


def checked_select(request: Subscribe) -> frozenset[str] | None:
    """Raises ProtocolError bad-message."""
    if request.select is not None and not 0 < len(request.select) <= MAX_SELECT:
        raise ProtocolError("bad-message", f"select names {len(request.select)} columns; 1 to {MAX_SELECT} are allowed, and without it all come", request.id)
    return None if request.select is None else frozenset(request.select)


def from_query(  # the address's fields
    id: str,  # noqa: A002  # the field's name
    subject: str,
    since: str,
    where: str | None,
    select: Sequence[str],
    presence: str | None = None,
) -> Subscribe:
    """A subscription that stands in an address: `where` as JSON, `select` with commas between the columns, or as JSON. Raises ProtocolError."""
    if presence not in (None, "true", "false"):
        raise ProtocolError("bad-message", f"presence is {presence[:20]!r}; true or false is allowed", id)
    columns: list[str] = []
    for text in select:
        columns += _from_json("select", text, list[str], id) if text.startswith("[") else text.split(",")
    conditions = None if where is None else _from_json("where", where, Any, id)
    return Subscribe(id, subject, since, conditions, columns if select else None, presence == "true")


def _from_json(name: Literal["where", "select"], text: str, kind: Any, id: str) -> Any:  # noqa: A002  # the field's name
    try:
        return msgspec.json.Decoder(kind, float_hook=Decimal).decode(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError, ArithmeticError) as error:
        example = {"where": '{"customer_id": {"eq": 42}}', "select": '["id", "status"]'}[name]
        code: Code = "bad-where" if name == "where" else "bad-message"
        raise ProtocolError(code, f"{name} is not JSON such as {example}: {error}", id) from None


def checked_since(request: Subscribe) -> Since:
    """Raises ProtocolError bad-since."""
    since = request.since
    if since == "now":
        return "now"
    if since == "start":
        return "start"
    if since == "snapshot":
        return "snapshot"
    try:
        return parse_duration(since) if since[-1:].isalpha() and "-" not in since else Position.parse(since)
    except PositionError as error:
        raise ProtocolError("bad-since", f"{error}; now, start, snapshot, an age such as 5m, or a position is allowed", request.id) from None
    except (ValueError, OverflowError) as error:
        raise ProtocolError("bad-since", f"{error}; now, start, snapshot, an age, or a position is allowed", request.id) from None


def welcome(limits: msgspec.Struct, *, auth: bool) -> bytes:
    return msgspec.json.encode({"op": "welcome", "version": VERSION, "auth": auth, "limits": msgspec.to_builtins(limits)})


def subscribed(id: str, subject: str, position: Position, reason: Reason | None = None, hint: str | None = None) -> bytes:  # noqa: A002  # the field's name
    """`reason` None means that everything since the asked position will be delivered; `hint` is for people."""
    message: dict[str, Any] = {"op": "subscribed", "id": id, "subject": subject, "position": str(position), "recovered": reason is None}
    if reason is not None:
        message["reason"] = reason
    if hint is not None:
        message["hint"] = hint
    return msgspec.json.encode(message)


def unsubscribed(id: str) -> bytes:  # noqa: A002  # the field's name
    return msgspec.json.encode({"op": "unsubscribed", "id": id})


def position(id: str, at: Position) -> bytes:  # noqa: A002  # the field's name
    return msgspec.json.encode({"op": "position", "id": id, "position": str(at)})


def row(json_id: bytes, key: bytes, values: bytes) -> bytes:
    """A row of a snapshot; the arguments are JSON."""
    return b'{"op":"row","id":%b,"key":%b,"row":%b}' % (json_id, key, values)


def large_row(json_id: bytes, key: bytes) -> bytes:
    """A row that is larger than an event may be: its key alone, as JSON."""
    return b'{"op":"row","id":%b,"key":%b,"row":null,"truncated":true}' % (json_id, key)


def snapshot_end(id: str, at: Position) -> bytes:  # noqa: A002  # the field's name
    return msgspec.json.encode({"op": "snapshot-end", "id": id, "position": str(at)})


def authenticated(expires: str | None) -> bytes:
    return msgspec.json.encode({"op": "authenticated", "expires": expires})


def error(problem: ProtocolError) -> bytes:
    message: dict[str, Any] = {"op": "error", "code": problem.code, "message": str(problem)}
    if problem.id is not None:
        message["id"] = problem.id
    return msgspec.json.encode(message)


PONG: Final = b'{"op":"pong"}'
