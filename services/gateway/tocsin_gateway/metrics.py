"""What the gateway counts."""

from __future__ import annotations

from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

from tocsin_gateway.limits import Limits
from tocsin_gateway.protocol import Reason


class Metrics:
    """One set for a process, in a registry of its own."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.clients = Gauge("tocsin_gateway_clients", "Connected clients", ["kind"], registry=registry)
        self.subscriptions = Gauge("tocsin_gateway_subscriptions", "Subscriptions of connected clients", registry=registry)
        self.events = Counter("tocsin_gateway_events", "Events read from the stream for live clients", registry=registry)
        self.frames = Counter("tocsin_gateway_frames", "Event frames handed to live clients", registry=registry)
        self.replayed = Counter("tocsin_gateway_replayed", "Event frames handed out by replays", registry=registry)
        self.replays = Gauge("tocsin_gateway_replays", "Replays under way", registry=registry)
        self.evictions = Counter("tocsin_gateway_evictions", "Clients closed because they were too slow", registry=registry)
        self.errors = Counter("tocsin_gateway_errors", "Errors told to clients", ["code"], registry=registry)
        self.unrecovered = Counter("tocsin_gateway_unrecovered", "Subscriptions told that they missed events", ["reason"], registry=registry)
        for reason in get_args(Reason):
            # From 0 on, or an alert on its increase would miss the first one.
            self.unrecovered.labels(reason)
        self.refused = Counter("tocsin_gateway_refused", "What clients were over, by the limit's name", ["limit"], registry=registry)
        for limit in Limits.__struct_fields__:
            self.refused.labels(limit)
        self.consumer_resets = Counter("tocsin_gateway_consumer_resets", "Times that the stream had to be read anew", registry=registry)
