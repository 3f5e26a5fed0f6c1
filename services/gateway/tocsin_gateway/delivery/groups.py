"""Clients that get the same bytes: of one pattern, with equal selections and ids. An event is judged, addressed and framed once for all of a group.

Of groups that ask for one value of a column (or some), only those are judged whose value an event has: five thousand that each follow a customer of
their own cost an event no more than one does.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any, Final, Generic, TypeVar

from tocsin.subject import Pattern
from tocsin_gateway.delivery.frames import StreamEvent, addressed, frame
from tocsin_gateway.delivery.outbox import SocketOutbox
from tocsin_gateway.delivery.selection import Selection, Unseen
from tocsin_gateway.rows.condition import value_keys

FLUSH_BYTES: Final = 64 << 10


Member = TypeVar("Member")
"""The session whose only subscription shares."""


class Group(Generic[Member]):
    """`selection` is None for those who want every event as it is; else the frames say in `for` that they are for `json_id`."""

    __slots__ = ("json_id", "outboxes", "pending", "pending_bytes", "selection")

    def __init__(self, selection: Selection | None, json_id: bytes) -> None:
        self.selection = selection
        self.json_id = json_id
        self.outboxes: dict[SocketOutbox, Member] = {}
        self.pending: list[bytes] = []
        self.pending_bytes = 0

    def frame(self, event: StreamEvent) -> bytes | Unseen | None:
        """The event as the group gets it; None where it is not for it."""
        if self.selection is None:
            return event.framed
        shown = self.selection.judge(event)
        return shown if shown is None or isinstance(shown, Unseen) else frame(addressed(shown.payload, ((self.json_id, shown.mark),)))

    def add(self, framed: bytes) -> bool:
        """False where so much waits that it was written at once."""
        self.pending.append(framed)
        self.pending_bytes += len(framed)
        if self.pending_bytes <= FLUSH_BYTES:
            return True
        self.flush()
        return False

    def flush(self) -> None:
        if self.pending:
            data = self.pending[0] if len(self.pending) == 1 else b"".join(self.pending)
            self.pending.clear()
            self.pending_bytes = 0
            for outbox in tuple(self.outboxes):
                outbox.write(data)


class Groups(Generic[Member]):
    """Those of one pattern."""

    __slots__ = ("_all", "_asking", "_asking_nothing", "_pattern")

    def __init__(self, pattern: Pattern) -> None:
        self._pattern = pattern
        self._all: dict[tuple[Selection | None, bytes], Group[Member]] = {}
        self._asking: dict[str, dict[Hashable, dict[Group[Member], None]]] = {}
        self._asking_nothing: dict[Group[Member], None] = {}

    def all(self) -> tuple[Group[Member], ...]:
        return tuple(self._all.values())

    def __bool__(self) -> bool:
        return bool(self._all)

    def join(self, selection: Selection | None, json_id: bytes) -> Group[Member]:
        """The group of these, made where nobody was in it."""
        found = self._all.get((selection, json_id))
        if found is None:
            found = self._all[selection, json_id] = Group[Member](selection, json_id)
            asked = self._asked(found)
            if asked is None:
                self._asking_nothing[found] = None
            else:
                values = self._asking.setdefault(asked[0], {})
                for key in asked[1]:
                    values.setdefault(key, {})[found] = None
        return found

    def leave(self, group: Group[Member]) -> None:
        """Nobody is in it any more."""
        del self._all[group.selection, group.json_id]
        asked = self._asked(group)
        if asked is None:
            del self._asking_nothing[group]
            return
        column, keys = asked
        values = self._asking[column]
        for key in keys:
            del values[key][group]
            if not values[key]:
                del values[key]
        if not values:
            del self._asking[column]

    def wanting(self, event: StreamEvent) -> Iterable[Group[Member]]:
        """Each group that the event may be for, and perhaps others."""
        if not self._asking:
            return tuple(self._asking_nothing)
        found = dict(self._asking_nothing)
        for column, values in self._asking.items():
            rows = None if event.change is None else event.change.in_rows(column)
            if rows is None:
                return tuple(self._all.values())
            for value in rows:
                for key in value_keys(value):
                    found |= values.get(key, _NOBODY)
        return tuple(found)

    def _asked(self, group: Group[Member]) -> tuple[str, frozenset[Hashable]] | None:
        return None if group.selection is None else group.selection.asks(self._pattern)


_NOBODY: Final[dict[Any, None]] = {}
