"""What counting rows can't see: is each table really on its way from the source to the replica? Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal

from tocsin_check.names import TableName, quoted
from tocsin_check.table import ColumnFacts

MARKER: Final = TableName("tocsin_check", "marker")
RETAINED_WARNING: Final = 1 << 30

Severity = Literal["error", "warning", "info"]


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence and what to do about it. error: changes are lost or stuck; warning: they may be; info: worth knowing."""

    severity: Severity
    code: str
    message: str
    fix: str
    table: str | None = None


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
class TableFacts:
    """One side of a table. `key` is empty where it has none; `sequences` have what they gave last, None before the first."""

    kind: str
    identity: str
    has_primary_key: bool
    readable: bool
    partitions: tuple[str, ...]
    columns: Mapping[str, ColumnFacts]
    key: tuple[str, ...]
    sequences: Mapping[str, int | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Facts:
    """All that is known of replication at one moment. `subscriptions` are the replica's that read from this source."""

    subscriptions: tuple[Subscription, ...]
    slots: Mapping[str, Slot]
    published: tuple[Published, ...]
    subscribed: tuple[Subscribed, ...]
    source: Mapping[TableName, TableFacts]
    replica: Mapping[TableName, TableFacts]
    partial_publications: tuple[str, ...] = ()

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


def findings(facts: Facts) -> list[Finding]:
    """Errors first."""
    found = [*_subscription_findings(facts), *_publication_findings(facts)]
    for table in facts.source:
        if table in facts.replica and table != MARKER:
            found += _table_findings(table, facts)
    return sorted(found, key=lambda f: ("error", "warning", "info").index(f.severity))


def _subscription_findings(facts: Facts) -> Iterator[Finding]:
    if not facts.subscriptions:
        yield Finding("error", "no-subscription", "the replica has no subscription", "tocsin replicate")
    for s in facts.subscriptions:
        name = quoted(s.name)
        if not s.enabled:
            yield Finding("error", "disabled", f"the subscription {s.name} is disabled", f"run on the replica: ALTER SUBSCRIPTION {name} ENABLE;")
        elif not s.worker:
            yield Finding(
                "error",
                "no-worker",
                f"no worker applies the subscription {s.name}: it can't start, or it fails again and again",
                "the replica's server log says why",
            )
        yield from _slot_findings(s, facts)
        yield from _counter_findings(s)
        if s.skip_lsn != "0/0":
            yield Finding(
                "warning", "skip", f"the subscription {s.name} is to skip the transaction at {s.skip_lsn}; its changes will be missing", "tocsin drift"
            )


def _slot_findings(s: Subscription, facts: Facts) -> Iterator[Finding]:
    slot = facts.slots.get(s.slot or "")
    if slot is None:
        yield Finding(
            "error",
            "no-slot",
            f"the source has no replication slot {s.slot}, which the subscription {s.name} reads from",
            f"changes are lost; drop the subscription ({quoted(s.name)}: DISABLE, SET (slot_name = NONE), DROP), empty its tables, run tocsin replicate",
        )
        return
    if slot.wal_status == "lost" or slot.invalidation_reason:
        yield Finding(
            "error",
            "slot-lost",
            f"the slot {slot.name} is lost ({slot.invalidation_reason or slot.wal_status}): the WAL that the replica needs is gone",
            f"drop the subscription {quoted(s.name)} and the slot, empty its tables, run tocsin replicate; raise max_slot_wal_keep_size",
        )
    elif not slot.active and s.enabled:
        yield Finding("warning", "slot-idle", f"nobody reads the slot {slot.name}", "the replica is down, or can't reach the source; its server log says why")
    if (slot.retained_bytes or 0) > RETAINED_WARNING:
        yield Finding(
            "warning",
            "slot-retains",
            f"the slot {slot.name} holds back {(slot.retained_bytes or 0) / (1 << 30):.1f} GiB of WAL on the source",
            "let the replica catch up, or it fills the source's disk; max_slot_wal_keep_size bounds it",
        )


def _counter_findings(s: Subscription) -> Iterator[Finding]:
    for counter, value in s.counters.items():
        if value and counter.endswith("_error_count"):
            what = "applying changes" if counter.startswith("apply") else "the initial copy"
            yield Finding("warning", counter, f"{what} has failed {value} times in the subscription {s.name}", "the replica's server log says why")
        elif value:
            what = counter.removeprefix("confl_").replace("_", " ")
            yield Finding(
                "warning",
                counter,
                f"the subscription {s.name} has met {value} conflicts of the kind '{what}': somebody else writes on the replica",
                "tocsin drift shows the rows; REVOKE INSERT, UPDATE, DELETE from whoever writes there",
            )


def _publication_findings(facts: Facts) -> Iterator[Finding]:
    for name in facts.uncovered:
        yield Finding("error", "uncovered", f"{name} is published but not subscribed, so none of its changes arrive", f"tocsin replicate {name}", name)
    for publication in facts.partial_publications:
        yield Finding(
            "warning",
            "partial-publication",
            f"the publication {publication} leaves out some of insert, update, delete and truncate",
            f"ALTER PUBLICATION {quoted(publication)} SET (publish = 'insert, update, delete, truncate');",
        )
    for s in facts.subscribed:
        if s.state != "r":
            yield Finding("info", "copying", f"the initial copy of {s.table} is under way", "wait for it, or see the replica's server log", str(s.table))


def _table_findings(table: TableName, facts: Facts) -> Iterator[Finding]:
    source, replica = facts.source[table], facts.replica[table]
    if source.identity == "n" or (source.identity == "d" and not source.has_primary_key and source.kind != "p"):
        yield Finding(
            "error",
            "no-identity",
            f"{table} has no replica identity: the source refuses its UPDATEs and DELETEs",
            f"ALTER TABLE {table.sql} ADD PRIMARY KEY (…); or REPLICA IDENTITY FULL",
            str(table),
        )
    if absent := set(source.partitions) - set(replica.partitions) if replica.kind == "p" else set():
        yield Finding(
            "error",
            "no-partition",
            f"the replica lacks the partition {', '.join(sorted(absent))} of {table}; rows for it stop the subscription",
            f"tocsin replicate {table}",
            str(table),
        )
    for name in source.columns.keys() & replica.columns.keys():
        ours, theirs = source.columns[name], replica.columns[name]
        if ours.full_type != theirs.full_type:
            yield Finding(
                "warning",
                "type-differs",
                f"{table}.{name} is {ours.full_type} on the source and {theirs.full_type} on the replica; it is compared as text",
                f"ALTER TABLE {table.sql} ALTER COLUMN {quoted(name)} TYPE {ours.full_type}; on the replica",
                str(table),
            )
    if extra := sorted(replica.columns.keys() - source.columns.keys()):
        yield Finding("info", "extra-columns", f"{table} has on the replica alone: {', '.join(extra)}; not compared", "nothing to do", str(table))
    if not source.key:
        yield Finding(
            "info", "no-key", f"{table} has no key, so rows are counted by value, not named", f"ALTER TABLE {table.sql} ADD PRIMARY KEY (…);", str(table)
        )
    behind = [name for name, value in source.sequences.items() if name in replica.sequences and (replica.sequences[name] or 0) < (value or 0)]
    if behind:
        yield Finding(
            "info",
            "sequence-behind",
            f"the sequence {', '.join(sorted(behind))} is behind on the replica: PostgreSQL does not replicate sequences",
            "before the replica takes over, set it: SELECT setval(…);",
            str(table),
        )
