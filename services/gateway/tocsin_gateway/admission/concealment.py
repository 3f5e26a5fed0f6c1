"""Columns that a token hides and that a subject's route could tell: `orders.update.42` says the customer. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import msgspec

from tocsin.subject import Pattern, encode_token
from tocsin_gateway.admission.grant import Grant
from tocsin_gateway.protocol import ProtocolError
from tocsin_gateway.rows.change import Change, Fields, exact

ROUTE_AT: Final = 6
"""Tokens before the route: prefix, source, change, schema, table, op."""


def shown_subject(subject: str, change: Change, hidden: frozenset[str]) -> str:
    """The subject, without its route unless that is surely made of columns that are shown and of none that is hidden."""
    tokens = subject.split(".")
    route = tokens[ROUTE_AT:]
    if not hidden or not route:
        return subject
    rows = [row for row in (change.new, change.old, change.key) if row is not None]
    shown, concealed = ({text for row in rows for text in _texts(row, hidden, within=within)} for within in (False, True))
    return subject if all(token in shown and token not in concealed for token in route) else ".".join(tokens[:ROUTE_AT])


def _texts(row: Fields, names: frozenset[str], *, within: bool) -> Iterator[str]:
    """What the values of the columns within the names, or of all others, are in a subject."""
    for name, raw in row.items():
        if (name in names) == within:
            yield route_token(raw)


def route_token(raw: msgspec.Raw) -> str:
    """What the value is in a subject."""
    value = exact(raw)
    return encode_token(value if value is None or isinstance(value, str) else bytes(raw).decode())


def check_route(pattern: Pattern, id: str | None, grant: Grant, watched: Iterable[Mapping[str, Any]]) -> None:  # noqa: A002  # the field's name
    """Refuse a pattern that names a value of a hidden column: which events come would tell who has it. Raises ProtocolError forbidden.

    What the token's own patterns name, it may name: who is allowed `orders.*.42` alone knows whose rows they are. `watched` is what Watched.rows gives;
    a table that is not in it is not checked.
    """
    named = {at for at, token in enumerate(pattern.tokens) if at >= ROUTE_AT and token not in ("*", ">")}
    if not named or not grant.visibility.touches(pattern):
        return
    for allowed in grant.allowed:
        if allowed.contains(pattern):
            named -= {at for at, token in enumerate(allowed.tokens) if token not in ("*", ">")}
    for row in watched:
        schema, table = encode_token(row["schema"]), encode_token(row["table"])
        hidden = grant.visibility.hidden((schema, table))
        concealed = {ROUTE_AT + at for at, column in enumerate(row["route"]) if column in hidden}
        if concealed & named and Pattern(f"*.*.change.{schema}.{table}.>").overlaps(pattern):
            raise ProtocolError("forbidden", f"{pattern.text!r} names a value of a column of {row['schema']}.{row['table']} that your token hides", id)
