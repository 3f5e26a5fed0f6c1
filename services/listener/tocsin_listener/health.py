"""The listener's HTTP side: health, readiness, metrics."""

from __future__ import annotations

import time
from typing import Any, Final

import msgspec
from fastapi import FastAPI

from tocsin import __version__
from tocsin.service import Readiness, add_health
from tocsin_listener.meters import Meters

FRESH: Final = 20.0
"""Seconds: twice the canary's, so that one that is late does not make the service unready."""


def readiness(meters: Meters) -> Readiness:
    """A leader is ready while acknowledgements come in, of events or of the canary; a standby while it asks for the lead."""
    now = time.monotonic()
    detail: dict[str, Any] = {"role": meters.role, "epoch": meters.epoch or None}
    if dropped := meters.registry.get_sample_value("tocsin_carried_dropped_total"):
        detail["notifies_dropped"] = int(dropped)
    if meters.role == "standby":
        seen = meters.standby_seen_at
        return Readiness(seen is not None and now - seen < FRESH, detail)
    age = None if meters.acknowledged_at is None else round(now - meters.acknowledged_at, 3)
    detail["seconds_since_acknowledgement"] = age
    if meters.trouble:
        detail["trouble"] = meters.trouble
    return Readiness(meters.role == "leader" and age is not None and age < FRESH, detail)


def status(meters: Meters) -> bytes:
    """The answer to NATS's service protocol: readiness and the bell's counts as JSON."""
    state = readiness(meters)
    return msgspec.json.encode({"ready": state.ready, **state.detail, "naps": meters.counts.naps, "bells": meters.counts.bells})


def summary(meters: Meters) -> dict[str, Any]:
    """What the console shows of this instance: readiness, and how far the stream is behind the journal (seconds, rows)."""
    state = readiness(meters)
    behind = {name: meters.registry.get_sample_value(f"tocsin_journal_behind_{name}") for name in ("seconds", "rows")}
    return {"ready": state.ready, **state.detail, **{f"behind_{name}": value for name, value in behind.items() if value is not None}}


def listener_app(meters: Meters) -> FastAPI:
    app = FastAPI(title="Tocsin listener", version=__version__, description="Carries the journal of a PostgreSQL database into NATS JetStream.")
    add_health(app, meters.registry, lambda: readiness(meters))
    return app
