"""`tocsin gateway`."""

from __future__ import annotations

from typing import Annotated

import typer

from tocsin.service import configure_logging, run_service
from tocsin.settings import load_settings


def command(
    host: Annotated[str | None, typer.Option(help="Address to listen on (TOCSIN_GATEWAY_HOST).", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on (TOCSIN_GATEWAY_PORT).", show_default="8080")] = None,
    nats_url: Annotated[str | None, typer.Option(help="NATS with JetStream (TOCSIN_NATS_URL).", show_default="nats://127.0.0.1:4222")] = None,
    source: Annotated[str | None, typer.Option(help="The source's name in subjects (TOCSIN_SOURCE).", show_default="the database's name")] = None,
    workers: Annotated[int, typer.Option(help="Processes that share the port; each reads the stream by itself.", min=1, max=256)] = 1,
) -> None:
    """Serve events to browsers: WebSocket, server-sent events, the live console.

    It needs NATS only; the source's name says which stream, so give TOCSIN_SOURCE or TOCSIN_DATABASE_URL.

    Example: `TOCSIN_SOURCE=shop tocsin gateway --port 8080`, then open http://127.0.0.1:8080
    """
    from tocsin_gateway.__main__ import serve, serve_workers

    settings = load_settings(gateway_host=host, gateway_port=port, nats_url=nats_url, source=source)
    configure_logging(settings.log_level, settings.log_format)
    raise typer.Exit(run_service(lambda stop: serve(settings, stop) if workers == 1 else serve_workers(settings, stop, workers)))
