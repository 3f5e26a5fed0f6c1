"""What one subscription wants of the events of its pattern: `where`, `select`, and what its token lets it see. Pure.

A change is judged on both rows. The rows that hold are a set, and an event says what happens to it:

| the old row holds | the new row holds | the client is told |
|---|---|---|
| no, or there is none | yes | `enter` |
| yes | no, or there is none | `leave` |
| yes | yes | `stay` |
| no | no | nothing |

Where `where` can't be judged, the event is told with null: the client must look for itself. Where a token's rule can't be
judged, nothing is told but that something is missing.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Final

from tocsin.subject import Pattern
from tocsin_gateway.admission.concealment import ROUTE_AT, route_token, shown_subject
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.rows.change import Change, Fields, Values
from tocsin_gateway.rows.condition import Where
from tocsin_gateway.rows.visibility import Visibility

_EVERYTHING: Final = Visibility()
NO_MARK: Final = b"null"


@dataclass(frozen=True, slots=True)
class Shown:
    """An event as it is shown: `payload` is the message, `mark` what `for` says of it as JSON."""

    payload: bytes
    mark: bytes = NO_MARK


@dataclass(frozen=True, slots=True)
class Unseen:
    """A token's rule can't be judged. `forbidden` says why it never can be; None means that this one event is withheld."""

    forbidden: str | None = None


Judgement = Shown | Unseen | None
"""None: the event is not for the subscription."""


class Selection:
    """Equal selections judge alike, and an event is judged once for all of them."""

    __slots__ = ("_columns", "_hash", "_visibility", "_where", "routes")

    def __init__(self, where: Where | None, columns: frozenset[str] | None, visibility: Visibility, routes: frozenset[int] = frozenset()) -> None:
        """`routes` are the places of the tokens of the route that the pattern names, where a rule may hide who has which."""
        self._where = where
        self._columns = columns
        self._visibility = visibility
        self.routes = routes
        self._hash = hash((where, columns, visibility, routes))

    @classmethod
    def of(cls, pattern: Pattern, where: Where | None, columns: frozenset[str] | None, visibility: Visibility) -> Selection | None:
        """None where every event of the pattern is wanted and shown as it is."""
        if not visibility.touches(pattern):
            visibility = _EVERYTHING
        plain = where is None and columns is None and visibility is _EVERYTHING
        named = () if visibility is _EVERYTHING else (at for at, token in enumerate(pattern.tokens) if at >= ROUTE_AT and token not in ("*", ">"))
        return None if plain else cls(where, columns, visibility, frozenset(named))

    def __eq__(self, other: object) -> bool:
        mine = (self._where, self._columns, self._visibility, self.routes)
        return isinstance(other, Selection) and mine == (other._where, other._columns, other._visibility, other.routes)

    def __hash__(self) -> int:
        return self._hash

    def asks(self, pattern: Pattern) -> tuple[str, frozenset[Hashable]] | None:
        """(column, keys of values): no row that this lets through has another value there; None where that can't be said of the pattern's events."""
        tokens = pattern.tokens
        if tokens[2:3] != ("change",):
            return None
        table = (tokens[3], tokens[4]) if len(tokens) > 4 and not {"*", ">"} & set(tokens[3:5]) else None
        rule = None if table is None else self._visibility.rule(table)
        if rule is not None:
            # An event without another of its columns is withheld, which must be told.
            return rule.asks if len(rule.columns) == 1 else None
        return self._where.asks if self._where is not None and (table is not None or self._visibility == _EVERYTHING) else None

    def conditions(self, table: tuple[str, str]) -> tuple[Where, ...]:
        """What must hold for a row of the table to be shown."""
        where = None if self._asks_hidden(self._visibility.hidden(table)) else self._where
        return tuple(each for each in (self._visibility.rule(table), where) if each is not None)

    def judge(self, event: StreamEvent) -> Judgement:
        found = event.judged.get(self, _UNKNOWN) if event.judged is not None else _UNKNOWN
        if isinstance(found, _Unknown):
            found = self._judge(event)
            if event.judged is None:
                event.judged = {}
            event.judged[self] = found
        return found

    @property
    def shows_all(self) -> bool:
        """Whether every column is wanted."""
        return self._columns is None

    def row(self, table: tuple[str, str], key: Fields | None, row: Fields | None) -> tuple[Fields | None, Fields | None] | Unseen | None:
        """A snapshot's row, None where it is too large, as its key and columns are shown; None where it is not in the set."""
        rule, hidden = self._visibility.rule(table), self._visibility.hidden(table)
        values = Values(row if row is not None else key or {})
        seen = _holds(rule, values)
        if seen is None:
            return Unseen(_forbidden(rule, table))
        if (
            not seen
            or self._asks_hidden(hidden)
            or (self._where is not None and not self._where.holds(values) and (row is not None or values.have(self._where.columns)))
        ):
            return None
        return _without(key, hidden), None if row is None else self.project(row, hidden)

    def _judge(self, event: StreamEvent) -> Judgement:
        kind, table = _place(event.subject)
        rule, hidden = self._visibility.rule(table), self._visibility.hidden(table)
        if kind == "drift" and (rule is not None or hidden):
            # The findings hold keys of rows that the rule may not show.
            return None
        change = event.change
        if change is None:
            return Unseen() if rule is not None or hidden else Shown(event.payload)
        if kind != "change":
            shown = self._where is None or self._where.holds(change.values(change.payload))
            return Shown(event.payload) if shown else None
        if change.op == "truncate":
            return Shown(event.payload)
        if self._asks_hidden(hidden):
            return None
        return _Judging(event, change, self, self._where, rule, hidden).judgement()

    def _asks_hidden(self, hidden: frozenset[str]) -> bool:
        """A hidden column is one that the rows do not have, and holds nothing: which rows match would tell its values."""
        return self._where is not None and not self._where.columns.isdisjoint(hidden)

    def project(self, row: Fields, hidden: frozenset[str]) -> Fields:
        return {name: raw for name, raw in row.items() if (self._columns is None or name in self._columns) and name not in hidden}


class _Judging:
    """One change and one selection. A row holds (True), does not or is not there (False), or can't be judged (None)."""

    __slots__ = ("_change", "_event", "_hidden", "_rule", "_selection", "_where")

    def __init__(self, event: StreamEvent, change: Change, selection: Selection, where: Where | None, rule: Where | None, hidden: frozenset[str]) -> None:
        self._event = event
        self._change = change
        self._selection = selection
        self._where = where
        self._rule = rule
        self._hidden = hidden

    def judgement(self) -> Judgement:
        seen_new, seen_old = self._by_rule(_HAS_NEW, self._change.new), self._by_rule(_HAS_OLD, self._change.old)
        if seen_new is None or (seen_old is None and not seen_new):
            return Unseen(None if self._change.truncated else _forbidden(self._rule, _place(self._event.subject)[1]))
        if self._rule is not None and self._change.op == "update" and self._by_the_unseen_route(new=seen_new, old=seen_old):
            return None
        new, old = _both(seen_new, self._by_where(_HAS_NEW, self._change.new)), _both(seen_old, self._by_where(_HAS_OLD, self._change.old))
        if new is False and old is False:
            return None
        return Shown(self._payload(seen_new, seen_old is True), self._mark(new, old))

    def _by_the_unseen_route(self, *, new: bool, old: bool | None) -> bool:
        """Whether the subject is a route under which the row was never seen: by it one could find out where rows go to, and come from.

        A copy has the old row's route; whoever saw the row there has the original, or is told by the copy that it left.
        """
        if self._event.copy:
            return old is False
        if new or not self._selection.routes:
            return False
        tokens, row, former = self._event.subject.split("."), self._change.new or {}, self._change.old or {}
        changed: set[str] = set()
        kept: set[str] = set()
        for name, raw in row.items():
            (kept if name in former and bytes(former[name]) == bytes(raw) else changed).add(route_token(raw))
        return any(tokens[at] in changed and tokens[at] not in kept for at in self._selection.routes if at < len(tokens))

    def _by_rule(self, ops: frozenset[str], row: Fields | None) -> bool | None:
        if self._change.op not in ops:
            return False
        row = self._known(ops, row, self._rule)
        return True if self._rule is None else None if row is None else _holds(self._rule, self._change.values(row))

    def _by_where(self, ops: frozenset[str], row: Fields | None) -> bool | None:
        if self._change.op not in ops:
            return False
        row = self._known(ops, row, self._where)
        return True if self._where is None else None if row is None else self._where.holds(self._change.values(row))

    def _known(self, ops: frozenset[str], row: Fields | None, conditions: Where | None) -> Fields | None:
        """The row, or the key in its place where it says enough; an update's is the new row's."""
        key = self._change.key
        if row is not None or conditions is None or key is None or (ops is _HAS_OLD and self._change.op == "update"):
            return row
        return key if conditions.columns <= key.keys() else None

    def _mark(self, new: bool | None, old: bool | None) -> bytes:
        if (self._rule is None and self._where is None) or new is None or old is None:
            return NO_MARK
        return b'"stay"' if new and old else b'"enter"' if new else b'"leave"'

    def _payload(self, seen_new: bool, seen_old: bool) -> bytes:
        event, change = self._event, self._change
        if self._rule is None and self._selection.shows_all and not self._hidden:
            return event.payload
        if change.op == "update" and not seen_new:
            return self._gone()
        project = self._selection.project
        new = None if change.new is None else project(change.new, self._hidden)
        old = None if change.sent_old is None or not seen_old else project(change.sent_old, self._hidden)
        key = _without(change.key, self._hidden)
        subject = shown_subject(event.subject, change, self._hidden)
        if _same(new, change.new) and _same(old, change.sent_old) and _same(key, change.key) and subject == event.subject:
            return event.payload
        return event.message(subject, change.body(key, new, old, subject=_same(key, change.key)))

    def _gone(self) -> bytes:
        """The row has left what the rule shows: its old key alone, and not even the new route."""
        event, change = self._event, self._change
        old, key = change.old or {}, change.key
        former = None if key is None else {name: old[name] for name in key if name in old and name not in self._hidden}
        same = key is not None and former is not None and {n: bytes(v) for n, v in key.items()} == {n: bytes(v) for n, v in former.items()}
        return event.message(".".join(event.subject.split(".")[:ROUTE_AT]), change.body(former, None, None, subject=same))


_HAS_NEW: Final = frozenset(("insert", "read", "update"))
_HAS_OLD: Final = frozenset(("update", "delete"))


def _place(subject: str) -> tuple[str, tuple[str, str]]:
    """(the subject's kind, schema and table where it names them)"""
    tokens = subject.split(".", 5)
    return (tokens[2] if len(tokens) > 2 else ""), ((tokens[3], tokens[4]) if len(tokens) > 4 else ("", ""))


def _holds(rule: Where | None, values: Values) -> bool | None:
    """None where the row does not have the rule's columns."""
    if rule is None:
        return True
    return rule.holds(values) if values.have(rule.columns) else None


def _forbidden(rule: Where | None, table: tuple[str, str]) -> str:
    names = "" if rule is None else ", ".join(sorted(rule.columns))
    return (
        f"your token's rule for {'.'.join(table)} needs the columns {names} of the old row and the new, and its events do not tell them: "
        "its owner must watch it with them in --columns, and with --old changed"
    )


def _both(a: bool | None, b: bool | None) -> bool | None:
    return False if a is False or b is False else None if a is None or b is None else True


def _without(fields: Fields | None, hidden: frozenset[str]) -> Fields | None:
    return fields if fields is None or hidden.isdisjoint(fields) else {name: raw for name, raw in fields.items() if name not in hidden}


def _same(shown: Fields | None, sent: Fields | None) -> bool:
    return shown is sent or (shown is not None and sent is not None and len(shown) == len(sent))


class _Unknown:
    pass


_UNKNOWN: Final = _Unknown()
