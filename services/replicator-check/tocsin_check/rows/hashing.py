"""SQL of a 64-bit hash over a row's columns, and by which of PostgreSQL's hash functions each type goes. Pure.

PostgreSQL's own hashes serve joins, which compare again what collides, so some collide under every seed: numeric leaves out the sign, and NaN and
Infinity are alike; bigint, and what is made of it, folds both halves into one; jsonb and arrays leave out how they are nested. A value goes only
through functions that keep all of it, and what has none is hashed as its text (docs/decisions/0140). What SQL calls equal stays equal (1.0 and 1.00),
but inside json, arrays and ranges.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

SEEDS: Final = (0, 6364136223846793005)
BYTES_SINCE: Final = 180_000
"""server_version_num from which SQL can call the hash of bytea."""
LONGEST_CHAIN: Final = 50
"""Deeper nesting would exhaust PostgreSQL's parser."""

# {x} is the value, {s} the hash of the columns before it, {k} a number of this column's own. What stands for NULL is none of the type's values, or
# is drawn with the seed: {n} are 32 hexadecimal digits, {n4} and {n8} integers. A float of zero returns its seed as it is, so that is moved by {k}.
_TEXT: Final = "hashtextextended(coalesce({x}, '{n}'), {s})"
_FLOAT: Final = "hashfloat8extended(coalesce(({x})::float8, {null}), {s} # {k})"
_BYTES: Final = "hashbyteaextended(coalesce({x}, '\\x{n}'), {s})"
_LINKS: Final[Mapping[str, str]] = {
    "smallint": "hashint4extended(coalesce(({x})::int4, 40000), {s})",
    "boolean": "hashint4extended(coalesce(({x})::int4, 2), {s})",
    "integer": "hashint4extended(coalesce({x}, {n4}), {s})",
    "oid": "hashoidextended(coalesce({x}, {n4}), {s})",
    # Its own hash folds the halves into one; what the float rounds off, that one keeps.
    "bigint": "hashint8extended(coalesce({x}, {n8}), hashfloat8extended(coalesce({x}, {n8})::float8, {s}))",
    "real": _FLOAT.replace("{null}", "0.1"),
    "double precision": _FLOAT.replace("{null}", "0.{n8}"),
    "text": _TEXT,
    "character varying": _TEXT,
    "uuid": "uuid_hash_extended(coalesce({x}, '{n}'), {s})",
}
_AS_BYTES: Final[Mapping[str, str]] = {
    "bytea": "{x}",
    "numeric": "numeric_send(trim_scale({x}))",
    "timestamp without time zone": "timestamp_send({x})",
    "timestamp with time zone": "timestamptz_send({x})",
    "time without time zone": "time_send({x})",
    "time with time zone": "timetz_send({x})",
    "pg_lsn": "pg_lsn_send({x})",
    "jsonb": "jsonb_send({x})",
}
_AS_TEXT: Final[Mapping[str, str]] = {"interval": 'justify_interval({x})::text COLLATE pg_catalog."C"'}
_IN_RECORD: Final = frozenset({"date", "character", '"char"', "name", "inet", "cidr", "macaddr", "macaddr8"})
"""Their own hashes keep the whole value, and a record's hash goes by them."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column that is compared: its name, the expression over `t` that goes into the hash, and its type on the replica, without modifier.

    `link` is how the value goes into a chain of hashes (`link_of`); without one it goes into a record's hash.
    """

    name: str
    expression: str
    type: str = "text"
    link: str = ""


def hashed(name: str, expression: str, type_: str, base: str, *, by_bytes: bool, fixed: bool = False) -> Column | None:
    """The column by native hashes of its base type; None where only its text tells all values apart. `by_bytes`: both sides know BYTES_SINCE.

    `fixed`: both sides' numbers have the same scale, so that equal ones have equal bytes.
    """
    if base == "numeric" and fixed:
        return Column(name, f"numeric_send({expression})", type_, _BYTES if by_bytes else "")
    if base in _AS_TEXT:
        return as_text(name, _AS_TEXT[base].format(x=expression), type_)
    if base in _AS_BYTES:
        return Column(name, _AS_BYTES[base].format(x=expression), type_, _BYTES if by_bytes else "")
    if base in _LINKS:
        return Column(name, expression, type_, _LINKS[base])
    return Column(name, expression, type_) if base in _IN_RECORD else None


def as_text(name: str, expression: str, type_: str) -> Column:
    return Column(name, expression, type_, _TEXT)


def row_hash(columns: Sequence[Column], seed: int, *, native: bool) -> str:
    """SQL of a 64-bit hash over the columns; never NULL. Each is hashed with the hash of those before it as its seed."""
    if not native:
        # Inside a record's text NULL is nothing and the empty string is "", and separators are quoted.
        text = f"ROW({', '.join(f'({c.expression})::text' for c in columns)})::text"
        return f"('x' || left(md5('{seed}' || {text}), 16))::bit(64)::bigint"
    linked = [column for column in columns if column.link]
    chains = [_chain(linked[first : first + LONGEST_CHAIN], f"{seed}::bigint", seed) for first in range(LONGEST_CHAIN, len(linked), LONGEST_CHAIN)]
    recorded = [c.expression for c in columns if not c.link] + [f"int8send({chain})" for chain in chains]
    return _chain(linked[:LONGEST_CHAIN], f"hash_record_extended(ROW({', '.join(recorded)}), {seed})" if recorded else f"{seed}::bigint", seed)


def _chain(columns: Sequence[Column], first: str, seed: int) -> str:
    null = hashlib.md5(str(seed).encode(), usedforsecurity=False).hexdigest()
    chain = first
    for number, column in enumerate(columns, 1):
        own = number * 0x1E3779B97F4A7C15 % 2**63
        chain = column.link.format(x=column.expression, s=chain, k=own, n=null, n4=int(null[:7], 16), n8=int(null[:15], 16))
    return chain


_SAMPLES: Final[Mapping[str, Sequence[str]]] = {
    "smallint": ("-7", "32767"),
    "boolean": ("true", "false"),
    "integer": ("0", "'-2147483648'"),
    "oid": ("4294967295",),
    "bigint": ("-3", "9223372036854775807"),
    "real": ("'-0'", "1.1"),
    "double precision": ("0.1", "'NaN'"),
    "text": ("'tocsin ä \U0001f514' COLLATE \"C\"",),
    "uuid": ("'b5b1d0a0-7d1c-4a55-9d4c-0d0e0f101112'",),
    "bytea": ("'\\xdead'",),
    "numeric": ("-1.50", "'NaN'", "12345678901234567890.5"),
    "interval": ("'1 month 2 days 3 s'",),
    "timestamp with time zone": ("'2026-11-22 20:15:31.123456+00'", "'infinity'"),
    "time without time zone": ("'20:15:31.123456'",),
    "date": ("'2026-11-22'",),
    "character": ("'a' COLLATE \"C\"",),
    "inet": ("'10.0.0.1/8'",),
}


def self_test(*, by_bytes: bool) -> str:
    """h1, h2 of the same constants on both sides; where the answers differ, native hashes can't be compared."""
    columns: list[Column] = []
    for base, values in _SAMPLES.items():
        for value in (*values, "NULL"):
            text, _, collation = value.partition(" COLLATE ")
            expression = f"({text}::{base}{' COLLATE ' + collation if collation else ''})"
            column = hashed(f"c{len(columns)}", expression, base, base, by_bytes=by_bytes)
            assert column is not None
            columns.append(column)
    one, other = (row_hash(columns, seed, native=True) for seed in SEEDS)
    return f"SELECT {one} AS h1, {other} AS h2"
