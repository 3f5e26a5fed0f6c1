"""`tocsin listener`: one listener."""

from __future__ import annotations

from typing import Annotated

import typer


def command(
    database_url: Annotated[str | None, typer.Option(help="The source database (TOCSIN_DATABASE_URL).")] = None,
    nats_url: Annotated[str | None, typer.Option(help="NATS with JetStream (TOCSIN_NATS_URL).")] = None,
    source: Annotated[str | None, typer.Option(help="The source's name in subjects; default: the database's name (TOCSIN_SOURCE).")] = None,
    channels: Annotated[str | None, typer.Option(help="Existing NOTIFY channels to carry, separated by commas (TOCSIN_CHANNELS).")] = None,
    host: Annotated[str | None, typer.Option(help="Address of health and metrics (TOCSIN_LISTENER_HOST).")] = None,
    port: Annotated[int | None, typer.Option(help="Port of health and metrics (TOCSIN_LISTENER_PORT).")] = None,
) -> None:
    """Run the listener: every committed change of the watched tables goes into the NATS stream, once and in order.

    Start a second one anywhere for safety: it stands by and takes over within 5 seconds.

    Example: `tocsin listener --database-url postgresql://tocsin@db/shop --nats-url nats://nats:4222`
    """
    from tocsin.service import configure_logging, run_service
    from tocsin.settings import load_settings
    from tocsin_listener.__main__ import serve

    settings = load_settings(database_url=database_url, nats_url=nats_url, source=source, channels=channels, listener_host=host, listener_port=port)
    configure_logging(settings.log_level, settings.log_format)
    raise typer.Exit(run_service(lambda stop: serve(settings, stop)))
