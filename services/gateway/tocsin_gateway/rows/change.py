"""An event's content, parsed once: its rows with exact values, and the same event with less in it. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

import msgspec

from tocsin_gateway.rows.condition import MISSING

Fields = dict[str, msgspec.Raw]

_fields: Final = msgspec.json.Decoder(Fields)
_text: Final = msgspec.json.Decoder(str)
_exact: Final = msgspec.json.Decoder(float_hook=Decimal)
_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeError, RecursionError, ArithmeticError, ValueError)


class Values:
    """A row's values by column, decoded when they are first asked for: None, bool, int, Decimal, str, or something nested."""

    __slots__ = ("_decoded", "_fields")

    def __init__(self, fields: Fields) -> None:
        self._fields = fields
        self._decoded: dict[str, Any] = {}

    def __call__(self, column: str) -> Any:
        if column not in self._decoded:
            raw = self._fields.get(column)
            self._decoded[column] = MISSING if raw is None else exact(raw)
        return self._decoded[column]

    def have(self, columns: frozenset[str]) -> bool:
        return columns <= self._fields.keys()


def exact(raw: msgspec.Raw | bytes) -> Any:
    """A JSON value, its numbers as int or Decimal."""
    try:
        return _exact.decode(raw)
    except _UNREADABLE:
        text = bytes(raw)
        try:
            # An integer longer than Python makes an int of.
            return Decimal(text.decode()) if text[:1].isdigit() or text[:1] == b"-" else raw
        except _UNREADABLE:
            return raw


class Change:
    """A CloudEvent's content. `new` is the row as sent, `old` the whole old row, `sent_old` the part of it that was sent."""

    __slots__ = ("_data", "_envelope", "_values", "key", "new", "old", "op", "sent_old")

    def __init__(self, body: bytes) -> None:
        """Raises ValueError where this is no event, or is nested too deeply."""
        try:
            self._envelope: Fields = _fields.decode(body)
            self._data = _row(self._envelope, "data") or {}
            self.op: str | None = _text.decode(self._data["op"]) if _begins(self._data, "op", b'"') else None
            self.key, self.new, self.sent_old = _row(self._data, "key"), _row(self._data, "new"), _row(self._data, "old")
        except _UNREADABLE as error:
            raise ValueError(f"this can't be read as an event: {error}") from None
        # An update tells the changed columns' old values: the others are what they were.
        self.old = self.sent_old if self.new is None or self.sent_old is None else {**self.new, **self.sent_old}
        self._values: dict[int, Values] = {}

    @property
    def payload(self) -> Fields:
        """The event's data, as far as it is an object."""
        return self._data

    @property
    def truncated(self) -> bool:
        return "truncated" in self._data

    def values(self, fields: Fields) -> Values:
        """The values of one of our own rows, the key, or the payload."""
        found = self._values.get(id(fields))
        if found is None:
            found = self._values[id(fields)] = Values(fields)
        return found

    def in_rows(self, column: str) -> list[Any] | None:
        """The column's value in each row that the operation has: the new one, the old one; None where one of them is not known."""
        wanted = _ROWS.get(self.op or "", ())
        rows = [self.new if which == "new" else self.old for which in wanted]
        if not rows or any(row is None or column not in row for row in rows):
            return None
        return [self.values(row)(column) for row in rows if row is not None]

    def body(self, key: Fields | None, new: Fields | None, old: Fields | None, *, subject: bool) -> bytes:
        """The event with these in place of its own key and rows; without its `subject`, which is the key's text, unless wanted."""
        rows = {"key": key, "new": new, "old": old}
        data = {name: raw for name, raw in self._data.items() if name == "key" or rows.get(name, raw) is not None}
        data |= {name: as_json(fields) for name, fields in rows.items() if fields is not None and name in self._data}
        envelope = {name: raw for name, raw in self._envelope.items() if subject or name != "subject"}
        return msgspec.json.encode({**envelope, "data": as_json(data)})


_ROWS: Final = {"insert": ("new",), "read": ("new",), "update": ("new", "old"), "delete": ("old",)}


def fields_of(text: bytes) -> Fields:
    """A JSON object's members. Raises msgspec.MsgspecError, RecursionError."""
    return _fields.decode(text)


def as_json(fields: Mapping[str, msgspec.Raw]) -> msgspec.Raw:
    return msgspec.Raw(msgspec.json.encode(fields))


def _row(fields: Fields, name: str) -> Fields | None:
    return _fields.decode(fields[name]) if _begins(fields, name, b"{") else None


def _begins(fields: Fields, name: str, first: bytes) -> bool:
    return name in fields and memoryview(fields[name])[:1] == first
