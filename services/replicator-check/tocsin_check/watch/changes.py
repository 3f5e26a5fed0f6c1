"""Which keys changed since a table was last read wholly, as the event stream tells it; and when the stream can't tell. Pure.

What is noted here only says what to read again. It proves nothing: each key goes through the same fences as in a full audit. And where
anything could be missing, the table counts as wholly changed, until a full audit that began afterwards has read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Protocol

import msgspec

from tocsin_check.rows.reading import KeyPart
from tocsin_check.rows.verdict import Key

MOST_KEYS: Final = 100_000
"""Beyond it reading the whole table costs less."""
_MARKS_KEPT: Final = 64

EventKey = tuple[tuple[str, str], ...]
"""A key as an event has it: names and values, these as text that PostgreSQL reads back."""

NOT_CONNECTED: Final = "the event stream can't be read"
NOT_WATCHED: Final = "the listener does not watch it with every operation, every row and old values (tocsin watch)"


class _Data(msgspec.Struct):
    op: str
    schema: str
    table: str
    key: dict[str, msgspec.Raw] | None = None
    old: dict[str, msgspec.Raw] | None = None
    truncated: bool = False


class _Change(msgspec.Struct):
    data: _Data


_decoder: Final = msgspec.json.Decoder(_Change)


class Stream(Protocol):
    """What reads the events into `Changes`."""

    async def arrived(self) -> bool:
        """Whether everything that the stream holds at the call has been noted; False where that can't be said soon."""
        ...


@dataclass(frozen=True, slots=True)
class Moment:
    """A snapshot of the source as text, the WAL's end and the time: everything visible in the snapshot lies before `position`."""

    snapshot: str
    position: str
    at: datetime


@dataclass(slots=True)
class _Noted:
    whole: str | None
    watch: str | None = None
    keys: dict[EventKey, None] = field(default_factory=dict)


class Changes:
    """By table, `schema.table`. `begin` starts a session of reading the stream, `lost` ends what it could tell."""

    def __init__(self) -> None:
        self._tables: dict[str, _Noted] = {}
        self._reading = False
        self._reason = NOT_CONNECTED
        self._moments: list[Moment] = []

    def begin(self, reason: str) -> None:
        """From now on every event is noted; for what was before, each table counts as wholly changed, for the `reason`."""
        self._reading, self._reason = True, reason
        self._spoil(reason)

    def lost(self, reason: str) -> None:
        """Events may be missing, and no more come."""
        self._reading, self._reason = False, reason
        self._spoil(reason)

    def _spoil(self, reason: str) -> None:
        for noted in self._tables.values():
            noted.whole = reason
            noted.keys.clear()

    def note(self, body: bytes) -> None:
        """A change event. What can't be read, or does not say which rows, spoils its table, or all."""
        try:
            data = _decoder.decode(body).data
        except msgspec.MsgspecError:
            self._spoil("an event could not be read")
            return
        noted = self._tables.get(f"{data.schema}.{data.table}")
        if noted is None or noted.whole is not None or data.op == "read":
            return
        reason = _unclear(data)
        if reason is None:
            noted.keys.update(dict.fromkeys(_keys(data)))
            if len(noted.keys) > MOST_KEYS:
                reason = f"more than {MOST_KEYS:,} of its rows changed"
        if reason is not None:
            noted.whole = reason
            noted.keys.clear()

    def watched(self, watches: Mapping[str, str]) -> None:
        """Which tables' events tell of every change, and what identifies the watch; another watch than before spoils the table."""
        for name in self._tables.keys() - watches.keys():
            del self._tables[name]
        for name, watch in watches.items():
            noted = self._tables.get(name)
            if noted is None:
                self._tables[name] = _Noted(self._reason if not self._reading else "it was not read wholly yet", watch)
            elif noted.watch != watch:
                self._tables[name] = _Noted("the listener watches it otherwise than before", watch)

    def awaits_whole(self, name: str) -> bool:
        """Whether the stream tells the table's changes by now, and only a full audit is missing to go by them."""
        noted = self._tables.get(name)
        return self._reading and noted is not None and noted.whole is not None

    def obstacle(self, name: str) -> str | None:
        """Why the noted keys are not all that changed; None where they are."""
        noted = self._tables.get(name)
        if noted is None:
            return NOT_WATCHED
        return noted.whole

    def dirty(self, name: str) -> int | None:
        """How many changed keys wait to be read; None where the table is not followed."""
        noted = self._tables.get(name)
        return len(noted.keys) if noted is not None and noted.whole is None else None

    def keys(self, name: str) -> list[EventKey]:
        noted = self._tables.get(name)
        return list(noted.keys) if noted is not None else []

    def whole_begins(self, name: str) -> None:
        """A full audit is about to make its first read: what is noted from here on is what it may miss."""
        noted = self._tables.get(name)
        if noted is not None and self._reading:
            noted.whole = None
            noted.keys.clear()

    def spoil(self, name: str, reason: str) -> None:
        """The table has to be read wholly."""
        noted = self._tables.get(name)
        if noted is not None:
            noted.whole = noted.whole or reason
            noted.keys.clear()

    def take(self, name: str) -> list[EventKey]:
        """The noted keys, which are forgotten; `put_back` what was not judged."""
        noted = self._tables.get(name)
        if noted is None:
            return []
        taken = list(noted.keys)
        noted.keys.clear()
        return taken

    def put_back(self, name: str, keys: Iterable[EventKey]) -> None:
        noted = self._tables.get(name)
        if noted is not None and noted.whole is None:
            noted.keys.update(dict.fromkeys(keys))

    def mark(self, moment: Moment) -> None:
        """Remember a moment, to say later that the stream has told everything up to it."""
        self._moments = [*self._moments[-_MARKS_KEPT + 1 :], moment]

    def told(self, reached: str) -> Moment | None:
        """The newest marked moment that the listener's cursor covers."""
        covered = [moment for moment in self._moments if covers(reached, moment.snapshot)]
        if not covered:
            return None
        self._moments = self._moments[self._moments.index(covered[-1]) :]
        return covered[-1]


def covers(reached: str, snapshot: str) -> bool:
    """Whether everything visible in `snapshot` is visible in `reached`; both as PostgreSQL writes them, xmin:xmax:xip,…"""
    (_, reached_max, reached_open), (_, snapshot_max, snapshot_open) = _parsed(reached), _parsed(snapshot)
    return reached_max >= snapshot_max and all(xid in snapshot_open or xid >= snapshot_max for xid in reached_open)


def _parsed(text: str) -> tuple[int, int, frozenset[int]]:
    low, high, running = text.split(":")
    return int(low), int(high), frozenset(map(int, running.split(","))) if running else frozenset()


def key_of(parts: Sequence[KeyPart], key: EventKey) -> Key | None:
    """In the order of the compared key; None where the event's key has other columns."""
    values = dict(key)
    if len(values) != len(parts) or any(part.name not in values for part in parts):
        return None
    return tuple(values[part.name] for part in parts)


def _unclear(data: _Data) -> str | None:
    if data.op == "truncate":
        return "it was truncated"
    if not data.key:
        return "an event of it has no key"
    if data.op == "update" and (data.truncated or data.old is None):
        return "an update of it does not say what it held before, so the key may have changed"
    return None


def _keys(data: _Data) -> list[EventKey]:
    """The row's key, and the one that it had before."""
    assert data.key is not None
    new = {name: _text(raw) for name, raw in data.key.items()}
    old = new | {name: _text(raw) for name, raw in (data.old or {}).items() if name in new}
    return [tuple(key.items()) for key in ((new,) if old == new else (new, old))]


def _text(raw: msgspec.Raw) -> str:
    text = bytes(raw).decode()
    return str(msgspec.json.decode(raw)) if text.startswith('"') else text
