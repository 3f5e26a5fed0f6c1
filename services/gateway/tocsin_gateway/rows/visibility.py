"""Which rows and columns a token lets its client see. Pure; enforced wherever a row leaves the gateway.

`rows` has a table's conditions, as in `where`: what does not hold is not there for this client. `hidden` has columns that are
never sent, key columns included. Tables are written `schema.table`, names as they are in PostgreSQL, without quotes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final, Self

from tocsin.subject import Pattern, encode_token
from tocsin_gateway.rows.condition import ConditionError, Where, parse_where

MAX_TABLES: Final = 256
MAX_HIDDEN: Final = 1024

Table = tuple[str, str]
"""Schema and table as the tokens of a subject."""


class VisibilityError(ValueError):
    """Rules that are not well formed; the message names the claim, the table and what is allowed."""


class Visibility:
    """Immutable, and equal where the rules are. Without rules, everything is visible."""

    __slots__ = ("_hash", "_hidden", "_rules", "_touching")

    def __init__(self, rules: Mapping[Table, Where] | None = None, hidden: Mapping[Table, frozenset[str]] | None = None) -> None:
        self._rules: Final = dict(rules or {})
        self._hidden: Final = dict(hidden or {})
        self._touching: Final = tuple(
            Pattern(f"*.*.{kind}.{schema}.{table}{end}") for schema, table in {**self._rules, **self._hidden} for kind, end in (("change", ".>"), ("drift", ""))
        )
        self._hash = hash((frozenset(self._rules.items()), frozenset(self._hidden.items())))

    @classmethod
    def all(cls) -> Self:
        return cls()

    @classmethod
    def from_claims(cls, rows: object, hidden: object) -> Self:
        """From the claims `rows`, {"public.orders": {"customer_id": {"eq": 42}}}, and `hidden`, {"public.orders": ["note"]}.

        Numbers may be int, Decimal or float. Raises VisibilityError.
        """
        rules: dict[Table, Where] = {}
        for name, conditions in _tables("rows", rows):
            try:
                where = parse_where(_exact(conditions))
            except ConditionError as error:
                raise VisibilityError(f"the token's claim `rows`, table {name!r}: {error}") from None
            if where is None:
                raise VisibilityError(f"the token's claim `rows`, table {name!r}: there is no condition; leave the table out, or write one")
            rules.update(dict.fromkeys(_tokens(name), where))
        columns: dict[Table, frozenset[str]] = {}
        for name, names in _tables("hidden", hidden):
            if not isinstance(names, list) or not all(isinstance(column, str) for column in names) or len(names) > MAX_HIDDEN:
                raise VisibilityError(f"the token's claim `hidden`, table {name!r}: a list of at most {MAX_HIDDEN} column names is allowed")
            columns.update(dict.fromkeys(_tokens(name), frozenset(names)))
        return cls(rules, {table: names for table, names in columns.items() if names})

    def touches(self, pattern: Pattern) -> bool:
        """Whether a rule may concern events of this pattern."""
        return any(mine.overlaps(pattern) for mine in self._touching)

    def rule(self, table: Table) -> Where | None:
        return self._rules.get(table)

    def hidden(self, table: Table) -> frozenset[str]:
        return self._hidden.get(table, _NOTHING)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Visibility) and self._rules == other._rules and self._hidden == other._hidden

    def __hash__(self) -> int:
        return self._hash


_NOTHING: Final[frozenset[str]] = frozenset()


def _tables(claim: str, given: object) -> Iterator[tuple[str, object]]:
    if not isinstance(given, Mapping):
        raise VisibilityError(f"the token's claim `{claim}` must be an object: schema.table → …")
    if len(given) > MAX_TABLES:
        raise VisibilityError(f"the token's claim `{claim}` names {len(given)} tables; at most {MAX_TABLES} are allowed")
    for name, value in given.items():
        if not isinstance(name, str) or not all(name.partition(".")):
            raise VisibilityError(f"the token's claim `{claim}` names {name!r}; a table is written schema.table, such as public.orders")
        yield name, value


def _tokens(name: str) -> Iterator[Table]:
    """Every schema and table that the name may mean: a dot may belong to either, and a rule must not miss its table."""
    parts = name.split(".")
    for at in range(1, len(parts)):
        schema, table = ".".join(parts[:at]), ".".join(parts[at:])
        if schema and table:
            yield encode_token(schema), encode_token(table)


def _exact(value: object) -> object:
    """Floats as the decimals that they were written as: a token's claims come from a parser of doubles."""
    if isinstance(value, float):
        return Decimal(repr(value))
    if isinstance(value, Mapping):
        return {key: _exact(part) for key, part in value.items()}
    return [_exact(part) for part in value] if isinstance(value, list) else value
