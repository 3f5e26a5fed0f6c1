"""`tocsin replay`: events once more from the journal."""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer
from rich.console import Console

from tocsin.cli.source import DatabaseUrl


def command(
    since: Annotated[str, typer.Option(metavar="TIME|POSITION", help="24h, 2026-11-22T20:15:00Z, or a position from an event frame (exclusive).")],
    to: Annotated[str, typer.Option(metavar="SUBJECT", help="Where to publish; not one of the source's own subjects.")],
    database_url: DatabaseUrl = None,
    nats_url: Annotated[str | None, typer.Option("--nats-url", help="NATS (TOCSIN_NATS_URL).")] = None,
) -> None:
    """Publish events again from the journal to a subject of your own, with the same ids and bodies, in the order of each key.

    The header Tocsin-Subject says where each one stands in the stream. Example: `tocsin replay --since 1h --to replay.orders`
    """
    from tocsin import broker, postgres
    from tocsin.settings import load_settings
    from tocsin.stack.running import here
    from tocsin_listener.replay import parse_since, replay

    asked = parse_since(since)
    console = Console(highlight=False, soft_wrap=True)

    async def run() -> int:
        settings = here(load_settings(database_url=database_url, nats_url=nats_url))
        url = settings.require_database_url()
        async with (
            postgres.connection(url, setting="TOCSIN_DATABASE_URL", application="tocsin replay") as connection,
            broker.connect(settings.nats_servers, name="tocsin replay", login=settings.nats_login) as link,
        ):
            with console.status("publishing") as status:
                return await replay(connection, link.client, since=asked, to=to, on_progress=lambda n: status.update(f"{n} events"))

    console.print(f"{asyncio.run(run())} events published to {to}", markup=False)
