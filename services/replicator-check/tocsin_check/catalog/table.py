"""How a table can be compared, or why it can't: decided from catalog facts. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tocsin_check.catalog.coverage import ColumnFacts, Facts, TableFacts
from tocsin_check.rows.hashing import BYTES_SINCE, SEEDS, Column, as_text, hashed, row_hash
from tocsin_check.rows.names import TableName, quoted
from tocsin_check.rows.reading import KeyPart, Reading

_INTEGERS: Final = frozenset({"smallint", "integer", "bigint"})
_IDENTICAL: Final = _INTEGERS | {
    *("text", "character varying", "boolean", "uuid", "bytea", "date", "oid"),
    *("timestamp without time zone", "timestamp with time zone", "time without time zone"),
}
"""Of these, equal values are the same bits; of others only the text tells, such as 1.0 and 1.00, or 0 and -0."""
_SOUND: Final = frozenset(
    {
        *("smallint", "integer", "oid", "boolean", "uuid", "bytea", "date", "real", "double precision"),
        *("text", "character varying", "character", "name", '"char"', "inet", "cidr", "macaddr", "macaddr8"),
    }
)
"""Of these PostgreSQL's hash reads every bit that counts. Others' hashes are made for buckets, and whatever the seed they are equal for values that
are not: numeric leaves out the sign (and so does jsonb, inside), bigint and times fold 64 bits into 32, arrays leave out their dimensions."""
_SENT: Final[Mapping[str, str]] = {
    "timestamp without time zone": "timestamp_send",
    "timestamp with time zone": "timestamptz_send",
    "time without time zone": "time_send",
    "time with time zone": "timetz_send",
}
_TEXTS: Final = frozenset({"text", "character varying"})
_BYTEWISE: Final = ' COLLATE pg_catalog."C"'


@dataclass(frozen=True, slots=True)
class Comparable:
    """A table that can be audited: how to read it on each side. `stamps` of both sides say whether that is still how it is replicated."""

    name: TableName
    source: Reading
    replica: Reading
    stamps: tuple[str, str] = ("", "")


@dataclass(frozen=True, slots=True)
class Unauditable:
    """A table about which nothing can be proven; `pending` where that passes by itself."""

    name: TableName
    reason: str
    pending: bool = False


def compare_table(table: TableName, facts: Facts, hashable: Mapping[str, bool], *, native: bool, exact: bool = False) -> Comparable | Unauditable:
    """Decides by the facts; `hashable` says of each base type whether PostgreSQL can hash it. `exact` tells apart what SQL calls equal."""
    obstacle = _obstacle(table, facts)
    if obstacle is not None:
        return obstacle
    source, replica = facts.source[table], facts.replica[table]
    names = compared_columns(table, facts)
    if absent := [name for name in names if name not in replica.columns]:
        return Unauditable(table, f"the replica's table lacks the column {', '.join(absent)}; ALTER TABLE {table.sql} ADD COLUMN … there")
    pairs = [(source.columns[name], replica.columns[name]) for name in names]
    by_bytes = min(facts.versions) >= BYTES_SINCE
    columns = tuple(_column(*pair, hashable, native=native and not (exact and pair[0].base not in _IDENTICAL), by_bytes=by_bytes) for pair in pairs)
    key = source.key if source.key and set(source.key) <= set(names) else ()
    condition = facts.row_filter(table)
    if key:
        parts = [_key_parts(source.columns[name], replica.columns[name]) for name in key]
        ours_key, theirs_key = tuple(ours for ours, _ in parts), tuple(theirs for _, theirs in parts)
    else:
        ours_key = theirs_key = _hash_as_key(columns, native=native)
    unique = bool(key)
    return Comparable(
        table,
        Reading(_relation(table, source), ours_key, columns, condition, native=native, unique=unique),
        Reading(_relation(table, replica), theirs_key, columns, "", native=native, unique=unique),
        (source.stamp, replica.stamp),
    )


def compared_columns(table: TableName, facts: Facts) -> list[str]:
    """The published columns, in the source's order. A generated column is compared only where it is published by name."""
    source = facts.source[table]
    listed = facts.column_list(table)
    names = [name for name, column in source.columns.items() if not column.generated] if listed is None else [n for n in source.columns if n in listed]
    replica = facts.replica[table].columns
    return [name for name in names if not (source.columns[name].generated and (name not in replica or replica[name].generated))]


def _obstacle(table: TableName, facts: Facts) -> Unauditable | None:
    if table not in facts.source:
        return Unauditable(table, "the source has no such table any more; run on the replica: ALTER SUBSCRIPTION … REFRESH PUBLICATION")
    if table not in facts.replica:
        return Unauditable(table, f"the replica has no such table; run: tocsin replicate {table}")
    for side, where in ((facts.source[table], "source"), (facts.replica[table], "replica")):
        if not side.readable:
            return Unauditable(table, f"the checker's user may not read it on the {where}; GRANT SELECT ON {table.sql} TO …")
    return _cut_off(table, facts)


def _cut_off(table: TableName, facts: Facts) -> Unauditable | None:
    """Whether changes can't reach the replica at all, so that no fence would hold."""
    state = facts.state(table)
    if table not in {p.table for p in facts.published}:
        return Unauditable(table, f"it is subscribed but not published any more, so no change arrives; run: tocsin replicate {table}")
    if state is None:
        return Unauditable(table, f"it is published but not subscribed, so no change arrives; run: tocsin replicate {table}")
    if facts.slot_is_lost(table):
        return Unauditable(table, "the replication slot is lost, so the replica can't catch up any more; it has to be copied anew")
    if state != "r":
        return Unauditable(table, "its initial copy is under way", pending=True)
    if not facts.has_marker(table):
        return Unauditable(
            table, "its subscription does not carry the checker's marker table tocsin_check.marker, so nothing can be proven; run: tocsin replicate"
        )
    return None


def _relation(table: TableName, facts: TableFacts) -> str:
    # A partitioned table holds its partitions' rows; a parent by inheritance is replicated without its children's.
    return table.sql if facts.kind == "p" else f"ONLY {table.sql}"


def _column(source: ColumnFacts, replica: ColumnFacts, hashable: Mapping[str, bool], *, native: bool, by_bytes: bool) -> Column:
    expression = f"t.{quoted(source.name)}"
    plain = native and source.native and replica.native and source.type == replica.type and hashable.get(source.base, False)
    value = f"{expression}{_BYTEWISE}" if source.collatable else expression
    fixed = source.full_type == replica.full_type and source.full_type.startswith("numeric(")
    column = hashed(source.name, value, replica.type, source.base, by_bytes=by_bytes, fixed=fixed)
    return column if plain and column is not None else as_text(source.name, f"{expression}::text{_BYTEWISE}", replica.type)


def _key_parts(source: ColumnFacts, replica: ColumnFacts) -> tuple[KeyPart, KeyPart]:
    """In the index's own order where both sides order alike; else byte by byte, which is right everywhere and slower."""
    kind = "int" if source.base in _INTEGERS else "bool" if source.base == "boolean" else "text"
    expression = f"t.{quoted(source.name)}"
    if not (source.built_in and replica.built_in):
        part = KeyPart(source.name, f"{expression}::text{_BYTEWISE}", "text", _BYTEWISE, kind)
        return part, part
    if source.collatable and (source.collation != replica.collation or not replica.collatable):
        part = KeyPart(source.name, f"{expression}::text{_BYTEWISE}", "text", _BYTEWISE, kind, own=source.base in _TEXTS)
        return part, part
    return KeyPart(source.name, expression, source.full_type, "", kind, own=True), KeyPart(source.name, expression, replica.full_type, "", kind, own=True)


def _hash_as_key(columns: Sequence[Column], *, native: bool) -> tuple[KeyPart, ...]:
    """Without a key a row is known by its own hashes."""
    return tuple(KeyPart(f"row hash {i}", row_hash(columns, seed, native=native), "bigint", "", "text") for i, seed in enumerate(SEEDS, 1))
