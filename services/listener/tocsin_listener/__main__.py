"""The listener: PostgreSQL's journal into JetStream. Its composition root; `tocsin listener` and `python -m tocsin_listener` run it."""

from __future__ import annotations

import asyncio
import sys

from tocsin import broker
from tocsin.errors import TocsinError
from tocsin.service import bind, configure_logging, run_service, serve_http, show_error
from tocsin.settings import Settings, load_settings
from tocsin.tracing import Exporter
from tocsin_listener.alteration import follow_shapes
from tocsin_listener.health import listener_app, status, summary
from tocsin_listener.measuring import measure
from tocsin_listener.meters import Meters
from tocsin_listener.session import Config, Listener
from tocsin_listener.stream import Limits
from tocsin_listener.tracing import Tracing


async def serve(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`. Raises OperatorError for what a person has to change."""
    config = Config(
        database_url=settings.require_database_url(),
        source=settings.source_name,
        prefix=settings.subject_prefix,
        stream=settings.stream_name,
        limits=Limits(settings.stream_max_age, int(settings.stream_max_bytes), settings.stream_replicas),
        channels=settings.channels,
        doorbell=settings.doorbell,
        max_event=int(settings.max_event),
    )
    meters = Meters()
    app = listener_app(meters)
    sock = bind(settings.listener_host, settings.listener_port, "TOCSIN_LISTENER_PORT")
    async with asyncio.TaskGroup() as group:
        working = [group.create_task(_work(config, settings, meters))]
        await serve_http(app, sock, stop)
        for task in working:
            task.cancel()


async def _work(config: Config, settings: Settings, meters: Meters) -> None:
    async with broker.connect(settings.nats_servers, name=f"tocsin listener {config.source}", login=settings.nats_login) as link, asyncio.TaskGroup() as group:
        exporter = Exporter(settings.otlp_url, "tocsin-listener") if settings.otlp_url is not None else None
        if exporter is not None:
            group.create_task(exporter.run())
        listener = Listener(config, link, meters, Tracing(exporter, settings.trace_sample) if exporter is not None else None)
        group.create_task(listener.run())
        group.create_task(measure(config.database_url, meters))
        group.create_task(follow_shapes(config.database_url))

        async def answer() -> bytes:
            return status(meters)

        title = f"Tocsin listener of {config.source}"
        async with broker.announce(link.client, "tocsin-listener", title, answer, source=config.source, measured=lambda: summary(meters)):
            await asyncio.Event().wait()


def main() -> None:
    """`python -m tocsin_listener`: settings from the environment alone."""
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
    except TocsinError as error:
        show_error(error)
        sys.exit(2)
    sys.exit(run_service(lambda stop: serve(settings, stop)))


if __name__ == "__main__":
    main()
