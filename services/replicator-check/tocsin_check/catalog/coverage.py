"""What is known of replication from both catalogs at one moment, and which table is covered. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tocsin_check.rows.names import TableName

MARKER: Final = TableName("tocsin_check", "marker")


@dataclass(frozen=True, slots=True)
class Subscription:
    """`worker`: its apply worker runs. `counters`: errors and conflicts since the statistics were reset."""

    oid: int
    name: str
    enabled: bool
    worker: bool
    slot: str | None
    publications: tuple[str, ...]
    counters: Mapping[str, int] = field(default_factory=dict)
    skip_lsn: str = "0/0"
    owner: int = 0


@dataclass(frozen=True, slots=True)
class Slot:
    """A logical slot of the source database; `retained_bytes` is the WAL that it holds back."""

    name: str
    active: bool
    plugin: str
    wal_status: str | None
    invalidation_reason: str | None
    retained_bytes: int | None
    confirmed: str | None
    safe_wal_size: int | None


@dataclass(frozen=True, slots=True)
class Published:
    """`columns` is None where the version does not say, `filter` is None where all rows are published."""

    publication: str
    table: TableName
    columns: tuple[str, ...] | None
    filter: str | None


@dataclass(frozen=True, slots=True)
class Subscribed:
    """`state` is srsubstate: i, d, f, s, and r for ready."""

    subscription: int
    table: TableName
    state: str


@dataclass(frozen=True, slots=True)
class ColumnFacts:
    """A column as a catalog has it. `type` has no modifier, `base` is the type behind domains; `collation` names what decides its order.

    `native`: the type is PostgreSQL's own and its hash depends on the value alone (an enum's hash goes by object ids).
    """

    name: str
    not_null: bool
    generated: bool
    type: str
    full_type: str
    base: str
    built_in: bool
    native: bool
    collatable: bool
    collation: str | None


@dataclass(frozen=True, slots=True)
class TableFacts:
    """One side of a table. `key` is empty where it has none; `sequences` have what they gave last, None before the first.

    `required`: columns that an inserted row must bring along. `firing`: triggers and rules that replicated changes set off.
    `stamp` is another one once the table is another one, has other columns, or is published or copied anew.
    """

    kind: str
    identity: str
    has_primary_key: bool
    readable: bool
    partitions: tuple[str, ...]
    columns: Mapping[str, ColumnFacts]
    key: tuple[str, ...]
    sequences: Mapping[str, int | None] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    firing: tuple[str, ...] = ()
    stamp: str = ""


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of replication at one moment. `subscriptions` are the replica's that read from this source.

    `versions`: server_version_num of source and replica. `writers`: who may change the replica's tables, and which.
    """

    subscriptions: tuple[Subscription, ...]
    slots: Mapping[str, Slot]
    published: tuple[Published, ...]
    subscribed: tuple[Subscribed, ...]
    source: Mapping[TableName, TableFacts]
    replica: Mapping[TableName, TableFacts]
    partial_publications: tuple[str, ...] = ()
    versions: tuple[int, int] = (0, 0)
    writers: Mapping[str, tuple[TableName, ...]] = field(default_factory=dict)

    def state(self, table: TableName) -> str | None:
        return next((s.state for s in self.subscribed if s.table == table), None)

    def has_marker(self, table: TableName) -> bool:
        """Whether a marker goes the same way as the table's rows, and has begun to."""
        ways = {s.subscription for s in self.subscribed if s.table == MARKER and s.state == "r"}
        return any(s.subscription in ways for s in self.subscribed if s.table == table)

    def slot_is_lost(self, table: TableName) -> bool:
        """Whether the subscription of the table reads from a slot that is gone or was invalidated."""
        ways = {s.subscription for s in self.subscribed if s.table == table}
        slots = [self.slots.get(s.slot or "") for s in self.subscriptions if s.oid in ways]
        return any(slot is None or slot.wal_status == "lost" or bool(slot.invalidation_reason) for slot in slots)

    def row_filter(self, table: TableName) -> str:
        """Several publications are OR-ed; one without a filter publishes every row."""
        filters = [p.filter for p in self.published if p.table == table]
        return "" if not filters or None in filters else " OR ".join(f"({text})" for text in filters)

    def column_list(self, table: TableName) -> frozenset[str] | None:
        lists = [p.columns for p in self.published if p.table == table]
        return frozenset(name for columns in lists if columns for name in columns) if lists and all(c is not None for c in lists) else None

    @property
    def uncovered(self) -> tuple[str, ...]:
        """Tables that are published but not subscribed: no lag, no error, and no rows."""
        return tuple(sorted({str(p.table) for p in self.published} - {str(s.table) for s in self.subscribed}))
