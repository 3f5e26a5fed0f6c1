"""What counting rows can't see: is each table really on its way from the source to the replica? Each with a fix. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from tocsin_check.catalog.coverage import MARKER, Facts, Subscription, TableFacts
from tocsin_check.rows.names import TableName, quoted

RETAINED_WARNING: Final = 1 << 30
DATA_LOSS_FIXED: Final = {14: 18, 15: 13, 16: 9, 17: 5}
"""From these minor versions on, changing a publication while transactions run does not lose their rows any more."""
INVALIDATIONS_FIXED: Final = {14: 19, 15: 14, 16: 10, 17: 6}
"""The mend before had made decoding of many transactions run out of memory; from these on it does not."""

Severity = Literal["error", "warning", "info"]
Rising = Mapping[tuple[str, str], tuple[int, float]]
"""By subscription and counter: how much it rose of late, and over how many seconds."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A sentence and what to do about it. error: changes are lost or stuck; warning: they may be; info: worth knowing."""

    severity: Severity
    code: str
    message: str
    fix: str
    table: str | None = None


class CounterWatch:
    """Remembers the subscriptions' counters from look to look, so that an error of last year is not one of now."""

    # A server that was restarted costs one error; one that still fails adds another every few seconds.
    RECENT: Final = 15.0

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str], list[tuple[float, int]]] = {}

    def look(self, facts: Facts, now: float) -> Rising:
        """`now` in seconds of a clock that never goes back; what rose within the last RECENT seconds, or since the last look."""
        rising: dict[tuple[str, str], tuple[int, float]] = {}
        for s in facts.subscriptions:
            for counter, value in s.counters.items():
                before = self._seen.get((s.name, counter), [])
                if before and value < before[-1][1]:
                    before = []  # the statistics were reset
                seen = ([look for look in before if look[0] >= now - self.RECENT] or before[-1:]) + [(now, value)]
                self._seen[s.name, counter] = seen
                if value > seen[0][1]:
                    rising[s.name, counter] = (value - seen[0][1], now - seen[0][0])
        return rising


def findings(facts: Facts, rising: Rising | None = None) -> list[Finding]:
    """Errors first."""
    found = [*_subscription_findings(facts, rising or {}), *_publication_findings(facts), *_version_findings(facts), *_writer_findings(facts)]
    for table in facts.source:
        if table != MARKER:
            found += _table_findings(table, facts)
    return sorted(found, key=lambda f: ("error", "warning", "info").index(f.severity))


def _subscription_findings(facts: Facts, rising: Rising) -> Iterator[Finding]:
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
        yield from _counter_findings(s, rising)
        if s.skip_lsn != "0/0":
            yield Finding(
                "warning",
                "skip",
                f"the subscription {s.name} is to skip the transaction at {s.skip_lsn}; its changes will be missing",
                f"tocsin drift shows them afterwards; to take it back: ALTER SUBSCRIPTION {name} SKIP (lsn = NONE);",
            )


def _slot_findings(s: Subscription, facts: Facts) -> Iterator[Finding]:
    slot = facts.slots.get(s.slot or "")
    anew = "tocsin replicate --drop --with-data, then tocsin replicate: it copies everything anew"
    if slot is None:
        yield Finding("error", "no-slot", f"the source has no replication slot {s.slot}, which the subscription {s.name} reads from: changes are lost", anew)
        return
    if slot.wal_status == "lost" or slot.invalidation_reason:
        reason = slot.invalidation_reason or slot.wal_status
        yield Finding(
            "error", "slot-lost", f"the slot {slot.name} is lost ({reason}): the WAL that the replica needs is gone", f"raise max_slot_wal_keep_size; {anew}"
        )
    elif slot.wal_status == "unreserved":
        yield Finding(
            "error",
            "slot-endangered",
            f"the slot {slot.name} needs WAL beyond max_slot_wal_keep_size, which the next checkpoint may remove",
            "raise it on the source: ALTER SYSTEM SET max_slot_wal_keep_size = …; SELECT pg_reload_conf(); and let the replica catch up",
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


def _counter_findings(s: Subscription, rising: Rising) -> Iterator[Finding]:
    """An error that still happens is an error; one of the past may have left rows behind, which the audit shows."""
    for counter, value in s.counters.items():
        if not value:
            continue
        recent = rising.get((s.name, counter))
        lately = f", {recent[0]} of them in the last {recent[1]:.0f} s" if recent else ""
        times = f"{value} time{'s' * (value != 1)}{lately}"
        if counter.endswith("_error_count"):
            what = "applying changes" if counter.startswith("apply") else "the initial copy"
            fix = "the replica's server log says why"
            reset = f"; to forget what is mended: SELECT pg_stat_reset_subscription_stats({s.oid}); on the replica"
            yield Finding("error" if recent else "info", counter.replace("_", "-"), f"{what} has failed {times} in {s.name}", fix + ("" if recent else reset))
        else:
            what = counter.removeprefix("confl_").replace("_", " ")
            yield Finding(
                "warning" if recent else "info",
                counter.replace("confl_", "conflict-").replace("_", "-"),
                f"the subscription {s.name} has met the conflict '{what}' {times}: somebody else writes on the replica",
                "tocsin drift shows the rows; REVOKE INSERT, UPDATE, DELETE, TRUNCATE from whoever writes there",
            )


def _publication_findings(facts: Facts) -> Iterator[Finding]:
    for name in facts.uncovered:
        yield Finding("error", "uncovered", f"{name} is published but not subscribed, so none of its changes arrive", f"tocsin replicate {name}", name)
    published = {p.table for p in facts.published}
    for s in facts.subscribed:
        if s.table not in published:
            yield Finding(
                "error", "unpublished", f"{s.table} is subscribed but not published any more, so no change arrives", f"tocsin replicate {s.table}", str(s.table)
            )
        elif s.state != "r":
            states = {"i": "has not begun", "d": "is under way", "f": "is complete, and what changed meanwhile follows", "s": "is nearly complete"}
            yield Finding(
                "info",
                "copying",
                f"the initial copy of {s.table} {states.get(s.state, s.state)} (srsubstate {s.state})",
                "wait for it; where it does not go on, the replica's server log says why",
                str(s.table),
            )
    for publication in facts.partial_publications:
        yield Finding(
            "warning",
            "partial-publication",
            f"the publication {publication} leaves out some of insert, update, delete and truncate",
            f"ALTER PUBLICATION {quoted(publication)} SET (publish = 'insert, update, delete, truncate');",
        )


def _version_findings(facts: Facts) -> Iterator[Finding]:
    for where, number in zip(("source", "replica"), facts.versions, strict=True):
        major, minor = divmod(number, 10_000)
        if where == "source" and minor < DATA_LOSS_FIXED.get(major, 0):
            yield Finding(
                "warning",
                "version-loses-rows",
                f"the source is PostgreSQL {major}.{minor}, which can lose rows when a publication is changed while transactions run",
                f"update it to {major}.{INVALIDATIONS_FIXED[major]} or later; until then add tables while nobody writes, and audit afterwards",
            )
        elif where == "source" and minor < INVALIDATIONS_FIXED.get(major, 0):
            yield Finding(
                "warning",
                "version-memory",
                f"the source is PostgreSQL {major}.{minor}, whose decoding can run out of memory when the schema changes while many transactions run",
                f"update it to {major}.{INVALIDATIONS_FIXED[major]} or later",
            )
        elif 0 < major < 14:
            yield Finding("error", "version-old", f"the {where} is PostgreSQL {major}, which Tocsin does not know", "update it to 14 or later")


def _writer_findings(facts: Facts) -> Iterator[Finding]:
    for role, tables in facts.writers.items():
        shown = ", ".join(map(str, tables[:5])) + (f" and {len(tables) - 5} more" if len(tables) > 5 else "")
        named = role if role == "PUBLIC" else quoted(role)
        yield Finding(
            "warning",
            "writer",
            f"{role} may write on the replica: {shown}. A row changed there drifts, and a row added there can stop the subscription",
            f"run on the replica: REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON {', '.join(t.sql for t in tables[:5])} FROM {named};",
            str(tables[0]) if len(tables) == 1 else None,
        )


def _table_findings(table: TableName, facts: Facts) -> Iterator[Finding]:
    source, replica = facts.source[table], facts.replica.get(table)
    if source.identity == "n" or (source.identity == "d" and not source.has_primary_key and source.kind != "p"):
        yield Finding(
            "error",
            "no-identity",
            f"{table} has no replica identity: the source refuses its UPDATEs and DELETEs",
            f"ALTER TABLE {table.sql} ADD PRIMARY KEY (…); or ALTER TABLE {table.sql} REPLICA IDENTITY FULL;",
            str(table),
        )
    if replica is None:
        yield Finding(
            "error", "no-table", f"the replica has no table {table}: the subscription stops at its first change", f"tocsin replicate {table}", str(table)
        )
        return
    yield from _shape_findings(table, source, replica, facts)
    if replica.firing:
        yield Finding(
            "warning",
            "trigger",
            f"replicated changes of {table} set off on the replica: {', '.join(replica.firing)}; what that writes is not on the source",
            f"run on the replica, for each: ALTER TABLE {table.sql} ENABLE TRIGGER {quoted(replica.firing[0])}; (without ALWAYS or REPLICA)",
            str(table),
        )
    if not source.key:
        yield Finding(
            "info", "no-key", f"{table} has no key, so rows are counted by value, not named", f"ALTER TABLE {table.sql} ADD PRIMARY KEY (…);", str(table)
        )
    yield from _sequence_findings(table, source, replica)


def _shape_findings(table: TableName, source: TableFacts, replica: TableFacts, facts: Facts) -> Iterator[Finding]:
    if absent := set(source.partitions) - set(replica.partitions) if replica.kind == "p" else set():
        lacking = ", ".join(sorted(absent))
        yield Finding(
            "error",
            "no-partition",
            f"the replica lacks the partition {lacking} of {table}; rows for it stop the subscription",
            f"tocsin replicate {table}",
            str(table),
        )
    listed = facts.column_list(table)
    sent = {name for name, column in source.columns.items() if (not column.generated if listed is None else name in listed)}
    if absent := sent - replica.columns.keys():
        lacking = ", ".join(sorted(absent))
        first = source.columns[min(absent)]
        fix = f"run on the replica: ALTER TABLE {table.sql} ADD COLUMN {quoted(first.name)} {first.full_type};"
        yield Finding("error", "no-column", f"{table} lacks {lacking} on the replica: the subscription stops at its next change", fix, str(table))
    for name in sorted(sent & replica.columns.keys()):
        ours, theirs = source.columns[name], replica.columns[name]
        change = f"run on the replica: ALTER TABLE {table.sql} ALTER COLUMN {quoted(name)}"
        if ours.full_type != theirs.full_type:
            message = f"{table}.{name} is {ours.full_type} on the source and {theirs.full_type} on the replica; it is compared as text"
            yield Finding("warning", "type-differs", message, f"{change} TYPE {ours.full_type};", str(table))
        if theirs.not_null and not ours.not_null:
            message = f"{table}.{name} may be null on the source but not on the replica: a null stops the subscription"
            yield Finding("warning", "null-differs", message, f"{change} DROP NOT NULL;", str(table))
    if demanded := sorted(set(replica.required) - sent):
        message = f"{table} on the replica demands a value for {', '.join(demanded)}, which is not replicated: an insert stops the subscription"
        fix = f"run on the replica: ALTER TABLE {table.sql} ALTER COLUMN {quoted(demanded[0])} DROP NOT NULL;"
        yield Finding("error", "column-required", message, fix, str(table))
    if extra := sorted(replica.columns.keys() - source.columns.keys()):
        yield Finding("info", "extra-columns", f"{table} has on the replica alone: {', '.join(extra)}; not compared", "nothing to do", str(table))
    if source.key and set(source.key) != set(replica.key):
        theirs_shown = f"({', '.join(replica.key)})" if replica.key else "no key, so that each change reads the whole table"
        keyed = ", ".join(map(quoted, source.key))
        message = f"{table} has the key ({', '.join(source.key)}) on the source and {theirs_shown} on the replica"
        yield Finding("warning", "key-differs", message, f"run on the replica: ALTER TABLE {table.sql} ADD PRIMARY KEY ({keyed});", str(table))


def _sequence_findings(table: TableName, source: TableFacts, replica: TableFacts) -> Iterator[Finding]:
    behind = [name for name, value in source.sequences.items() if name in replica.sequences and (replica.sequences[name] or 0) < (value or 0)]
    if behind:
        sets = " ".join(f"SELECT setval('{name}', {source.sequences[name]});" for name in sorted(behind))
        yield Finding(
            "info",
            "sequence-behind",
            f"the sequence {', '.join(sorted(behind))} is behind on the replica: PostgreSQL does not replicate sequences",
            f"before the replica takes over: {sets}",
            str(table),
        )
