"""`tocsin doctor`: examines every part, and says how to mend what it finds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import msgspec
import typer
from rich.console import Console

from tocsin.cli.examine import broker, delivery, program, replica, services, source
from tocsin.cli.examine.finding import Finding
from tocsin.settings import Settings, load_settings
from tocsin.stack.running import here


def command(
    database_url: Annotated[str | None, typer.Option(help="The source database; else TOCSIN_DATABASE_URL.")] = None,
    replica_url: Annotated[str | None, typer.Option(help="The replica database; else TOCSIN_REPLICA_URL.")] = None,
    nats_url: Annotated[str | None, typer.Option(help="NATS; else TOCSIN_NATS_URL.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Examine every part: the program, the source, NATS, the services, the replica. Nothing is changed.

    Each finding is one line; what is wrong has the fix to copy and paste below it. Exit code 0 where all is well, else 1.
    Where no URL is set, it looks at what `tocsin up` runs on this machine.

    Example: `tocsin doctor`
    """
    settings = load_settings(database_url=database_url, replica_url=replica_url, nats_url=nats_url)
    found = asyncio.run(examine(settings))
    if as_json:
        typer.echo(msgspec.json.encode({"ok": all(f.ok for f in found), "findings": found}).decode())
    else:
        show(found)
    raise typer.Exit(0 if all(finding.ok for finding in found) else 1)


async def examine(settings: Settings) -> list[Finding]:
    """All findings, part by part; the parts are asked at the same time."""
    # The stream's name follows from the source's; where `up` chose that, it is not in the settings.
    named = here(settings)
    async with asyncio.TaskGroup() as group:
        parts = [
            group.create_task(_collect(source.examine(settings))),
            group.create_task(_collect(broker.examine(named))),
            group.create_task(_collect(delivery.examine(named))),
            group.create_task(_collect(services.examine(named))),
            group.create_task(_collect(replica.examine(settings))),
        ]
    return [*program.examine(settings), *(finding for part in parts for finding in part.result())]


async def _collect(findings: AsyncIterator[Finding]) -> list[Finding]:
    return [finding async for finding in findings]


def show(found: list[Finding]) -> None:
    """The findings under their parts' names, on standard output."""
    console = Console(highlight=False, soft_wrap=True, markup=False)
    part = ""
    for finding in found:
        if finding.part != part:
            part = finding.part
            console.print(part, style="bold")
        console.print("  ✓ " if finding.ok else "  ✗ ", style="green" if finding.ok else "red", end="")
        console.print(finding.text)
        if finding.fix:
            console.print(f"    fix: {finding.fix}", style="yellow")
    wrong = sum(not finding.ok for finding in found)
    console.print("all is well" if not wrong else f"{wrong} to mend", style="bold")
