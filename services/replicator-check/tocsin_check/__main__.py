"""The checker as a service: settings and edges meet here."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from typing import Any

from prometheus_client import CollectorRegistry

from tocsin import broker, postgres, service
from tocsin.access import check_exposure
from tocsin.errors import Unavailable
from tocsin.revocation import Revocations
from tocsin.service import Readiness
from tocsin.settings import Settings, load_settings
from tocsin_check import sessions
from tocsin_check.app import make_app
from tocsin_check.catalog.findings import RETAINED_WARNING
from tocsin_check.fencing.pace import MOST_ACTIVE, MOST_LAG, Pace
from tocsin_check.guard import guard
from tocsin_check.metrics import Metrics, ReportCollector
from tocsin_check.watch.changes import Changes
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.feed import Feed, follow
from tocsin_check.watch.history import History
from tocsin_check.watch.report import summary
from tocsin_check.watch.unfinished import Unfinished


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Audit and serve the report until `stop`. Raises OperatorError where only a person can help."""
    source_url, replica_url = settings.require_database_url(), settings.require_replica_url()
    allowed = guard(settings)
    exposes = "read the keys of drifted rows"
    check_exposure(settings.check_host, setting="TOCSIN_CHECK_HOST", exposes=exposes, needs_token=allowed.rules is not None, insecure=settings.insecure)
    sock = service.bind(settings.check_host, settings.check_port, "TOCSIN_CHECK_PORT")
    for url, setting in ((source_url, sessions.SOURCE_SETTING), (replica_url, sessions.REPLICA_SETTING)):
        # A wrong URL ends the start with its fix; a server that is only down is waited for.
        with contextlib.suppress(Unavailable):
            await postgres.close(await sessions.open_reader(url, setting))
    metrics = Metrics(CollectorRegistry())
    changes = Changes()
    feed = Feed(changes, stream=settings.stream_name, prefix=settings.subject_prefix, source=settings.source_name)
    unfinished = Unfinished(replica_url)
    checker = Checker(
        source_url,
        replica_url,
        on_audit=metrics.observe,
        followed=(changes, feed),
        pace=_pace(settings),
        exact=settings.check_exact,
        unfinished=unfinished,
    )
    metrics.registry.register(ReportCollector(checker))

    def readiness() -> Readiness:
        return Readiness(checker.alive, {"lag_seconds": checker.lag, "reason": checker.trouble})

    history = History(replica_url, checker.report)
    following = follow(feed, settings.nats_servers, settings.nats_login)
    async with broker.connecting(settings.nats_servers, name="tocsin check", login=settings.nats_login) as link, asyncio.TaskGroup() as group:
        revocations = Revocations(link, settings.stream_name, settings.source_name)
        app = make_app(checker, metrics.registry, readiness, history, dataclasses.replace(allowed, check_revoked=revocations.check))
        works = [checker.run_audits(), checker.run_pulse(), checker.run_unfinished(), history.run(), _announce(link, settings, checker), following]
        if allowed.rules is not None:
            works.append(revocations.run())
        working = [group.create_task(run) for run in works]
        await service.serve_http(app, sock, stop)
        for task in working:
            task.cancel()


def _pace(settings: Settings) -> Pace:
    return Pace(settings.check_max_load, settings.check_max_rows, active=MOST_ACTIVE, lag=MOST_LAG, gives_way=True, retained=RETAINED_WARNING)


async def _announce(link: broker.Link, settings: Settings, checker: Checker) -> None:
    """Answer `nats micro ls` while NATS is there; the checker works without it."""

    async def status() -> bytes:
        return checker.report().model_dump_json().encode()

    def measured() -> dict[str, Any]:
        return summary(checker.report(), ready=checker.alive)

    await link.connected.wait()
    async with broker.announce(link.client, "tocsin-check", "Tocsin's drift report", status, source=settings.source_name, measured=measured):
        await asyncio.Event().wait()


def main() -> int:
    settings = load_settings()
    service.configure_logging(settings.log_level, settings.log_format)
    return service.run_service(lambda stop: serve(settings, stop))


if __name__ == "__main__":
    sys.exit(main())
