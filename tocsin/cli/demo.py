"""`tocsin demo`: the demo shop's traffic."""

from __future__ import annotations

import typer

from tocsin.service import configure_logging, run_service
from tocsin.settings import load_settings
from tocsin.stack.demo import trade


def command() -> None:
    """Write demo orders into the source database, a few a second, until stopped.

    It makes its tables itself: customers, orders and order_items in the schema `public`. `tocsin up` runs it by default.

    Example: `TOCSIN_DATABASE_URL=postgresql://postgres@127.0.0.1:5433/shop tocsin demo`
    """
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    url = settings.require_database_url()
    raise typer.Exit(run_service(lambda stop: trade(url, stop)))
