"""What `tocsin up` will start, where each part listens, and how the parts find one another."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tocsin.settings import Settings
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.ports import Listening
from tocsin.stack.postgres_server import PostgresServer
from tocsin.stack.process import free_port
from tocsin.stack.service_process import ServiceProcess

DATABASE: Final = "shop"

SOURCE_CONFIGURATION: Final = {"cluster_name": "tocsin-source"}
REPLICA_CONFIGURATION: Final = {
    "cluster_name": "tocsin-replica",
    # The defaults wait 5 s between two attempts and copy two tables at a time.
    "wal_retrieve_retry_interval": "200ms",
    "max_logical_replication_workers": "10",
    "max_sync_workers_per_subscription": "4",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts; `source`, `replica` and `nats` are None where a setting names one that exists already."""

    source: PostgresServer | None
    replica: PostgresServer | None
    nats: NatsServer | None
    listener: ServiceProcess
    gateway: ServiceProcess
    checker: ServiceProcess
    demo: ServiceProcess
    source_url: str
    replica_url: str
    nats_url: str
    source_name: str
    prefix: str
    stream: str
    gateway_url: str
    listener_url: str
    check_url: str
    needs_token: bool
    listening: tuple[Listening, ...]

    async def end_leftovers(self) -> list[str]:
        """End what an earlier run that was killed left behind, in the order in which it would have stopped; their names."""
        parts = {
            "demo": self.demo,
            "checker": self.checker,
            "gateway": self.gateway,
            "listener": self.listener,
            "replica": self.replica,
            "source": self.source,
            "nats": self.nats,
        }
        return [name for name, part in parts.items() if part is not None and await part.end_leftover()]


def make_plan(settings: Settings, folder: Path) -> Plan:
    """A port set to 0 becomes a free one. Nothing is started, nothing is written."""
    source = _postgres(folder / "source", settings.embedded_source_port, "SOURCE", SOURCE_CONFIGURATION) if settings.database_url is None else None
    replica = _postgres(folder / "replica", settings.embedded_replica_port, "REPLICA", REPLICA_CONFIGURATION) if settings.replica_url is None else None
    nats_setting = "TOCSIN_EMBEDDED_NATS_PORT"
    nats = None if "nats_url" in settings.model_fields_set else NatsServer(folder / "nats", settings.embedded_nats_port or free_port(), setting=nats_setting)
    urls = {
        "database_url": source.url(DATABASE) if source else settings.require_database_url(),
        "replica_url": replica.url(DATABASE) if replica else settings.require_replica_url(),
        "nats_url": nats.url if nats else settings.nats_url,
    }
    ports = {f"{name}_port": getattr(settings, f"{name}_port") or free_port() for name in ("listener", "gateway", "check")}
    complete = settings.model_copy(update={**urls, **ports})
    passed = {**urls, **{name: str(port) for name, port in ports.items()}}
    return Plan(
        source=source,
        replica=replica,
        nats=nats,
        listener=ServiceProcess("listener", folder, passed),
        gateway=ServiceProcess("gateway", folder, passed),
        checker=ServiceProcess("check", folder, passed),
        demo=ServiceProcess("demo", folder, passed),
        source_url=urls["database_url"],
        replica_url=urls["replica_url"],
        nats_url=urls["nats_url"],
        source_name=complete.source_name,
        prefix=settings.subject_prefix,
        stream=complete.stream_name,
        gateway_url=complete.gateway_url,
        listener_url=complete.listener_url,
        check_url=complete.check_url,
        needs_token=settings.jwt_secret is not None or settings.jwks_url is not None,
        listening=tuple(_listening(settings, ports, source, replica, nats)),
    )


def _postgres(data: Path, port: int, name: str, configuration: dict[str, str]) -> PostgresServer:
    return PostgresServer(data, port or free_port(), configuration=configuration, setting=f"TOCSIN_EMBEDDED_{name}_PORT")


def _listening(
    settings: Settings, ports: dict[str, int], source: PostgresServer | None, replica: PostgresServer | None, nats: NatsServer | None
) -> list[Listening]:
    embedded = {"source PostgreSQL": ("SOURCE", source), "replica PostgreSQL": ("REPLICA", replica), "NATS": ("NATS", nats)}
    found = [
        Listening(f"the embedded {what}", "127.0.0.1", server.port, f"TOCSIN_EMBEDDED_{name}_PORT")
        for what, (name, server) in embedded.items()
        if server is not None
    ]
    for what, name in (("the gateway", "gateway"), ("the listener's health", "listener"), ("the checker", "check")):
        found.append(Listening(what, getattr(settings, f"{name}_host"), ports[f"{name}_port"], f"TOCSIN_{name.upper()}_PORT"))
    return found
