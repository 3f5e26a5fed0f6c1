"""`tocsin check`: the checker as a service."""

from __future__ import annotations

from typing import Annotated

import typer

from tocsin.service import configure_logging, run_service
from tocsin.settings import load_settings


def command(
    database_url: Annotated[str | None, typer.Option(help="The source database; else TOCSIN_DATABASE_URL.")] = None,
    replica_url: Annotated[str | None, typer.Option(help="The replica database; else TOCSIN_REPLICA_URL.")] = None,
    check_host: Annotated[str | None, typer.Option(help="Address to serve on.")] = None,
    check_port: Annotated[int | None, typer.Option(help="Port to serve on.")] = None,
) -> None:
    """Run the checker: it proves all the time, row by row, that the replica equals the source.

    The report is a page at http://127.0.0.1:8090/ and JSON at /drift; what it finds is also published on pg.SOURCE.drift.SCHEMA.TABLE.

    Example: `tocsin check --check-port 8090`
    """
    from tocsin_check.__main__ import serve

    settings = load_settings(database_url=database_url, replica_url=replica_url, check_host=check_host, check_port=check_port)
    configure_logging(settings.log_level, settings.log_format)
    raise typer.Exit(run_service(lambda stop: serve(settings, stop)))
