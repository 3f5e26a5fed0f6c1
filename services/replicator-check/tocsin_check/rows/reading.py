"""How one side's rows are read and hashed: SQL built from catalog columns. Pure.

A row's digest is two 64-bit hashes with different seeds. `hash_record_extended` tells NULL from the empty string and where one value
ends, and calls equal what SQL calls equal (1.0 and 1.00). What it can't hash, or hashes too coarsely (tocsin_check.catalog.table), is hashed as text
under pinned settings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tocsin_check.rows.hashing import SEEDS, Column, row_hash
from tocsin_check.rows.names import quoted
from tocsin_check.rows.verdict import Key


@dataclass(frozen=True, slots=True)
class KeyPart:
    """A part of the key: its name, the expression over `t` that is ordered and compared, and the type that text is cast to for it.

    `kind` says how its text becomes JSON: int, bool or text. `own`: what an event writes of it, PostgreSQL reads back as the same value.
    """

    name: str
    expression: str
    type: str
    collation: str = ""
    kind: str = "text"
    own: bool = False

    def value(self, parameter: str) -> str:
        """SQL of a value given as a text expression."""
        return f"{parameter}::{self.type}{self.collation}"


@dataclass(frozen=True, slots=True)
class Part:
    """A half-open range of keys, in their order, None being open; with `buckets` only those of them, 2^shift keys each."""

    low: Key | None
    high: Key | None
    shift: int = 0
    buckets: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """One side of one table. `condition` is the publication's row filter on the source, and empty on the replica.

    `native` hashes by PostgreSQL's functions for each type, else by md5 of canonical text. `unique` says that no two rows share a key.
    """

    relation: str
    key: tuple[KeyPart, ...]
    columns: tuple[Column, ...]
    condition: str = ""
    native: bool = True
    unique: bool = True

    def row_hashes(self) -> tuple[str, str]:
        return row_hash(self.columns, SEEDS[0], native=self.native), row_hash(self.columns, SEEDS[1], native=self.native)

    def digest_sql(self, low: Key | None, high: Key | None, seed: int) -> tuple[str, list[Any]]:
        """count, h of all rows in the half-open range. Where keys repeat the hashes are summed: equal rows would cancel in XOR."""
        where, arguments = self._where(low, high)
        fold = "bit_xor({})" if self.unique else "sum(({})::numeric)"
        hashed = fold.format(row_hash(self.columns, seed, native=self.native))
        return f"SELECT count(*) AS rows, coalesce({hashed}, 0) AS h FROM {self.relation} AS t{where}", arguments

    @property
    def divisible(self) -> bool:
        """Whether the key is one integer, so that a range can be cut into buckets of 2^shift keys by arithmetic."""
        return self.unique and len(self.key) == 1 and self.key[0].kind == "int" and not self.key[0].collation

    def extent_sql(self, low: Key | None, high: Key | None) -> tuple[str, list[Any]]:
        """low, high: the least and the greatest key in the half-open range."""
        where, arguments = self._where(low, high)
        key = self.key[0].expression
        return f"SELECT min({key})::bigint AS low, max({key})::bigint AS high FROM {self.relation} AS t{where}", arguments

    def buckets_sql(self, low: Key | None, high: Key | None, seed: int, shift: int) -> tuple[str, list[Any]]:
        """bucket, rows, h, as digest_sql, for each 2^shift keys of the half-open range."""
        where, arguments = self._where(low, high)
        hashed = row_hash(self.columns, seed, native=self.native)
        bucket = f"{self.key[0].expression}::bigint >> {int(shift)}"
        # OFFSET 0 has each row hashed before it is grouped; whole rows would be sorted otherwise.
        rows = f"SELECT {bucket} AS bucket, {hashed} AS h FROM {self.relation} AS t{where} OFFSET 0"
        return f"SELECT bucket, count(*) AS rows, bit_xor(h) AS h FROM ({rows}) AS hashed GROUP BY 1", arguments

    def piece_sql(self, low: Key | None, limit: int, seed: int, shift: int | None = None) -> tuple[str, list[Any]]:
        """bucket, rows, h as buckets_sql, and the last key, of the first `limit` rows from `low` on: a divisible block bounded and read in one pass.

        Without `shift` there is the one bucket 0.
        """
        where, arguments = self._where(low, None)
        hashed = row_hash(self.columns, seed, native=self.native)
        key = self.key[0].expression
        rows = f"SELECT {hashed} AS h, {key} AS k FROM {self.relation} AS t{where} ORDER BY {key} LIMIT ${len(arguments) + 1}::bigint"
        bucket, group = ("0", "") if shift is None else (f"k::bigint >> {int(shift)}", " GROUP BY 1")
        sql = f"SELECT {bucket} AS bucket, count(*) AS rows, coalesce(bit_xor(h), 0) AS h, max(k)::bigint AS last FROM ({rows}) AS piece{group}"
        return sql, [*arguments, limit]

    def hashes_sql(self, part: Part, seed: int) -> tuple[str, list[Any]]:
        """The hashes of all rows in the part in one bytea, eight bytes each in network order; in no order."""
        source, arguments = self._rows(part)
        return f"SELECT string_agg(int8send({row_hash(self.columns, seed, native=self.native)}), '') FROM {source}", arguments

    def listed_sql(self, part: Part, seed: int, hashes: Sequence[int]) -> tuple[str, list[Any]]:
        """The row versions of the part with one of these hashes: k (text[]), place, xmin, untouched, h1, h2."""
        source, arguments = self._rows(part)
        chosen = f"{row_hash(self.columns, seed, native=self.native)} = ANY(${len(arguments) + 1}::bigint[])"
        return f"SELECT {self._key_text()} AS k, {self._version()} FROM {source} AND {chosen}", [*arguments, list(hashes)]

    def lookup_sql(self, keys: Sequence[Key], *, columns: bool = False, texts: bool = False) -> tuple[str, list[Any]]:
        """The row versions of the keys: ord (from 1), as in listed_sql, with `columns` one hash for each column, with `texts` its value as text."""
        wanted, join = self._wanted()
        hashes = f", ARRAY[{', '.join(row_hash((c,), SEEDS[0], native=self.native) for c in self.columns)}] AS columns" if columns else ""
        if texts:
            hashes += f", ARRAY[{', '.join(f'(t.{quoted(c.name)})::text' for c in self.columns)}]::text[] AS texts"
        sql = f'SELECT w."tocsin ord" AS ord, {self._version()}{hashes} FROM {wanted} JOIN {self.relation} AS t ON {join}'
        return sql, _by_part(keys)

    def keyed_sql(self, keys: Sequence[Key], seed: int, *, named: bool = True) -> tuple[str, list[Any]]:
        """ord (from 1) and the hash h of each row with one of the keys, NULL where there is none.

        `named`: the key as this table's own text, k (text[]), too: what an event wrote as JSON may be written otherwise.
        """
        wanted, join = self._wanted()
        name = f", ARRAY[{', '.join(f'({value})::text' for value in self._values())}] AS k" if named else ""
        hashed = f"CASE WHEN t.ctid IS NOT NULL THEN {row_hash(self.columns, seed, native=self.native)} END AS h"
        return f'SELECT w."tocsin ord" AS ord, {hashed}{name} FROM {wanted} LEFT JOIN {self.relation} AS t ON {join}', _by_part(keys)

    def _values(self) -> list[str]:
        return [part.value(f'w."tocsin k{i}"') for i, part in enumerate(self.key, 1)]

    def _wanted(self) -> tuple[str, str]:
        """Keys given as one array a part, and how their rows are joined to them."""
        arrays = ", ".join(f"${i}::text[]" for i in range(1, len(self.key) + 1))
        names = ", ".join(f'"tocsin k{i}"' for i in range(1, len(self.key) + 1))
        join = " AND ".join(f"{part.expression} = {value}" for part, value in zip(self.key, self._values(), strict=True))
        return f'unnest({arrays}) WITH ORDINALITY AS w({names}, "tocsin ord")', f"{join} AND ({self.condition})" if self.condition else join

    def boundary_sql(self, low: Key | None, skip: int) -> tuple[str, list[Any]]:
        """The key that stands `skip` rows after `low`; none where fewer rows are left."""
        where, arguments = self._where(low, None)
        return f"SELECT {self._key_text()} FROM {self.relation} AS t{where} ORDER BY {self._order()} OFFSET {int(skip)} LIMIT 1", arguments

    def _version(self) -> str:
        first, second = self.row_hashes()
        return f"t.tableoid::text || t.ctid::text AS place, t.xmin::text AS xmin, t.xmax::text = '0' AS untouched, {first} AS h1, {second} AS h2"

    def _key_text(self) -> str:
        return f"ARRAY[{', '.join(f'({part.expression})::text' for part in self.key)}]"

    def _order(self) -> str:
        return ", ".join(part.expression for part in self.key)

    def _compare(self, operator: str, first: int) -> str:
        left = ", ".join(part.expression for part in self.key)
        right = ", ".join(part.value(f"${i}::text") for i, part in enumerate(self.key, first))
        return f"({left}) {operator} ({right})"

    def _rows(self, part: Part) -> tuple[str, list[Any]]:
        """FROM and WHERE of a part."""
        where, arguments = self._where(part.low, part.high)
        where = where or " WHERE true"
        if part.buckets is None:
            return f"{self.relation} AS t{where}", arguments
        number = len(arguments) + 1
        first = f'(w."tocsin b" << {int(part.shift)})'
        between = f"{self.key[0].expression} BETWEEN {first} AND ({first} | {(1 << part.shift) - 1})"
        # OFFSET 0 keeps the planner from hashing the rows of all buckets first.
        rows = f"SELECT t.tableoid, t.ctid, t.xmin, t.xmax, t.* FROM {self.relation} AS t{where} AND {between} OFFSET 0"
        return f'unnest(${number}::bigint[]) AS w("tocsin b") CROSS JOIN LATERAL ({rows}) AS t WHERE true', [*arguments, list(part.buckets)]

    def _where(self, low: Key | None, high: Key | None) -> tuple[str, list[Any]]:
        conditions: list[str] = []
        arguments: list[Any] = []
        if low is not None:
            conditions.append(self._compare(">=", 1))
            arguments += low
        if high is not None:
            conditions.append(self._compare("<", len(arguments) + 1))
            arguments += high
        if self.condition:
            conditions.append(f"({self.condition})")
        return (f" WHERE {' AND '.join(conditions)}" if conditions else ""), arguments


def _by_part(keys: Sequence[Key]) -> list[Any]:
    """One array of texts for each part of the key."""
    return [list(values) for values in zip(*keys, strict=True)]
