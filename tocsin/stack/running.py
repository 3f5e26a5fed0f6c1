"""Where the parts of the `tocsin up` that runs on this machine are. A verb looks there for what no setting names; a service never does."""

from __future__ import annotations

from tocsin.settings import Settings
from tocsin.stack.plan import DATABASE
from tocsin.stack.process import port_is_open


def source_url(settings: Settings) -> str | None:
    """The source's URL: as set, else the embedded one's where its port is open."""
    return settings.database_url or _embedded(settings.embedded_source_port)


def replica_url(settings: Settings) -> str | None:
    """The replica's URL: as set, else the embedded one's where its port is open."""
    return settings.replica_url or _embedded(settings.embedded_replica_port)


def nats_url(settings: Settings) -> str:
    """NATS's URL: as set, else the embedded one's."""
    return settings.nats_url if "nats_url" in settings.model_fields_set else f"nats://127.0.0.1:{settings.embedded_nats_port}"


def here(settings: Settings) -> Settings:
    """The settings with all three."""
    return settings.model_copy(update={"database_url": source_url(settings), "replica_url": replica_url(settings), "nats_url": nats_url(settings)})


def _embedded(port: int) -> str | None:
    return f"postgresql://postgres@127.0.0.1:{port}/{DATABASE}" if port and port_is_open(port) else None
