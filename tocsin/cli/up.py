"""`tocsin up`: everything on this machine. The composition root of the embedded stack and the services' own set-up."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import asyncpg
import typer

from tocsin.service import configure_logging, run_service
from tocsin.settings import Settings, load_settings
from tocsin.stack import data_folder
from tocsin.stack.plan import make_plan
from tocsin.stack.supervisor import Supervisor
from tocsin.stack.whole import Whole


class ServiceRooms:
    """The services' set-up, as the stack needs it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    async def install(self, connection: asyncpg.Connection) -> bool:
        from tocsin_listener.install import install

        return await install(connection, max_event=int(self._settings.max_event))

    async def watch(self, connection: asyncpg.Connection, table: str, route: Sequence[str]) -> None:
        from tocsin_listener.watch import watch

        await watch(connection, tables=[table], route=list(route))

    async def replicate(self, source_url: str, replica_url: str, tables: Sequence[str]) -> None:
        from tocsin_check.replication.replicate import replicate

        await replicate(source_url=source_url, replica_url=replica_url, tables=tables)


def command(
    demo: Annotated[bool | None, typer.Option("--demo/--no-demo", help="Demo tables and traffic; by default only in the embedded source.")] = None,
    data: Annotated[Path, typer.Option("--data", help="Folder of the embedded servers' data and of all logs.")] = Path(".tocsin"),
) -> None:
    """Start everything on this machine: two PostgreSQL servers, NATS, listener, gateway, checker and a demo shop.

    With TOCSIN_DATABASE_URL, TOCSIN_REPLICA_URL or TOCSIN_NATS_URL set, that part is not embedded: yours is used.
    It prints every address, what to try, and a line that begins with `ready` once an event went all the way round.
    Ctrl-C stops everything. The data stay, and the next `tocsin up` goes on from them.

    Example: `tocsin up`

    Example, twice on one machine: `TOCSIN_GATEWAY_PORT=0 TOCSIN_LISTENER_PORT=0 TOCSIN_CHECK_PORT=0 TOCSIN_EMBEDDED_NATS_PORT=0
    TOCSIN_EMBEDDED_SOURCE_PORT=0 TOCSIN_EMBEDDED_REPLICA_PORT=0 tocsin up --data other`; 0 is any free port.
    """
    settings = load_settings()
    configure_logging(settings.log_level, settings.log_format)
    wanted = settings.database_url is None if demo is None else demo
    # asyncio's own loop: uvloop can't start a child as another user.
    raise typer.Exit(run_service(lambda stop: serve(settings, stop, data=data, demo=wanted), fast_loop=False))


async def serve(settings: Settings, stop: asyncio.Event, *, data: Path, demo: bool) -> None:
    """Everything, until `stop`; then everything ends in order."""
    with data_folder.locked(data) as folder:
        plan = make_plan(settings, folder)
        typer.echo(f"starting; data and logs are in {folder}")
        async with asyncio.TaskGroup() as group:
            supervisor = Supervisor(group, typer.echo)
            whole = Whole(plan, ServiceRooms(settings), supervisor, typer.echo, demo)
            rising = group.create_task(whole.bring_up(), name="bring up")
            try:
                await stop.wait()
            finally:
                typer.echo("stopping")
                rising.cancel()
                await asyncio.wait({rising})
                await supervisor.stop()
        typer.echo("stopped; the data stay")
