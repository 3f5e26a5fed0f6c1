"""What the listener counts and measures, for /metrics, /readyz and the service protocol."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tocsin_listener.doorbell import Counts
from tocsin_listener.message import CANARY, Message

BUCKETS: Final = (0.001, 0.002, 0.003, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 10, 60, 600)

Role = Literal["starting", "standby", "leader"]


@dataclass(slots=True)
class Meters:
    """One process's. `acknowledged_at` is the monotonic time of the last acknowledgement, of an event or of the canary."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)
    counts: Counts = field(default_factory=Counts)
    role: Role = "starting"
    trouble: str = ""
    acknowledged_at: float | None = None
    standby_seen_at: float | None = None
    epoch: str = ""
    events: Counter = field(init=False)
    bytes: Counter = field(init=False)
    batches: Counter = field(init=False)
    quarantined: Counter = field(init=False)
    latency: Histogram = field(init=False)
    behind_seconds: Gauge = field(init=False)
    behind_rows: Gauge = field(init=False)
    journal_bytes: Gauge = field(init=False)
    oldest_writer: Gauge = field(init=False)
    notify_queue: Gauge = field(init=False)
    set_aside: Gauge = field(init=False)
    carried: Counter = field(init=False)
    carried_dropped: Counter = field(init=False)
    carried_waiting: Gauge = field(init=False)

    def __post_init__(self) -> None:
        self.events = Counter("tocsin_events", "Messages acknowledged by JetStream", registry=self.registry)
        self.bytes = Counter("tocsin_event_bytes", "Bytes of their bodies", registry=self.registry)
        self.batches = Counter("tocsin_batches", "Batches completed: one for each difference between two snapshots", registry=self.registry)
        self.quarantined = Counter("tocsin_quarantined", "Messages set aside since NATS refuses them", registry=self.registry)
        self.latency = Histogram(
            "tocsin_statement_to_ack_seconds", "From a statement's begin to its events' acknowledgement", buckets=BUCKETS, registry=self.registry
        )
        self.behind_seconds = Gauge("tocsin_journal_behind_seconds", "Age of the oldest event not yet in the stream", registry=self.registry)
        self.behind_rows = Gauge("tocsin_journal_behind_rows", "Events not yet in the stream, at most a million counted", registry=self.registry)
        self.journal_bytes = Gauge("tocsin_journal_bytes", "Size of the journal in the source, indexes and what is kept included", registry=self.registry)
        self.oldest_writer = Gauge(
            "tocsin_oldest_writer_seconds", "Age of the oldest open transaction that has written; its events wait for its end", ["pid"], registry=self.registry
        )
        self.notify_queue = Gauge("tocsin_notify_queue_usage", "Share of PostgreSQL's NOTIFY queue in use, 0 to 1", registry=self.registry)
        self.set_aside = Gauge("tocsin_quarantine_waiting", "Messages in tocsin.quarantine that were not sent again", registry=self.registry)
        self.carried = Counter("tocsin_carried", "NOTIFYs of carried channels written to the journal", registry=self.registry)
        self.carried_dropped = Counter(
            "tocsin_carried_dropped", "NOTIFYs dropped since they came faster than the journal takes them; should stay 0", registry=self.registry
        )
        self.carried_waiting = Gauge("tocsin_carried_waiting", "NOTIFYs received and not yet in the journal", registry=self.registry)
        leader = Gauge("tocsin_leader", "1 in the process that writes the stream", registry=self.registry)
        leader.set_function(lambda: float(self.role == "leader"))
        standby = Gauge("tocsin_standby", "1 in a process that waits for the lead", registry=self.registry)
        standby.set_function(lambda: float(self.role == "standby"))
        for name, what in (
            ("naps", "times the listener went to sleep"),
            ("bells", "times a NOTIFY woke it"),
            ("bells_spared", "reads that found events while it was awake, so that no writer had to ring"),
            ("fallback_finds", "times only the fallback read found events; must stay 0"),
        ):
            gauge = Gauge(f"tocsin_{name}", what[0].upper() + what[1:], registry=self.registry)
            gauge.set_function(lambda name=name: float(getattr(self.counts, name.removeprefix("bells_"))))  # type: ignore[misc]

    def measured(self, row: Mapping[str, Any]) -> None:
        """What the query `measure` found in the source."""
        self.journal_bytes.set(row["journal_bytes"])
        self.notify_queue.set(row["notify_queue"])
        self.set_aside.set(row["set_aside"])
        self.oldest_writer.clear()
        # An empty label is none to Prometheus: where nobody writes, the series says 0.
        self.oldest_writer.labels(str(row["oldest_pid"] or "")).set(row["oldest_age"] or 0)

    def sent(self, messages: Sequence[Message]) -> None:
        """A chunk was acknowledged."""
        now = time.monotonic()
        self.acknowledged_at = now
        self.events.inc(len(messages))
        self.bytes.inc(sum(len(message.body) for message in messages))
        # One observation a chunk, of its first and so slowest message: a histogram must not cost more than the sending.
        first = messages[0]
        if not first.subject.endswith(CANARY):
            self.latency.observe(max(0.0, first.age + now - first.read_at))
