"""`tocsin retry`: send again what NATS refused."""

from __future__ import annotations

from typing import Annotated

import asyncpg
import typer
from rich.console import Console

from tocsin.cli.source import DatabaseUrl, with_source


def command(
    seqs: Annotated[list[int] | None, typer.Argument(metavar="SEQ", help="Journal sequences, as --list shows them; none means all.")] = None,
    only_list: Annotated[bool, typer.Option("--list", help="Show what is set aside and why, and send nothing.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Send also what a later change of the same row has overtaken.")] = False,
    drop: Annotated[bool, typer.Option("--dismiss", help="Send nothing, and count them no more: superseded ones, or what nobody misses.")] = False,
    database_url: DatabaseUrl = None,
) -> None:
    """Send again the events that NATS refused for good, each as a new event, once what it refused them for is mended.

    Example: `tocsin retry --list`, then raise max_payload in nats-server's configuration and restart it, then `tocsin retry`
    """
    from tocsin_listener.quarantine import Refusal, dismiss, refusals, retry

    async def work(connection: asyncpg.Connection) -> list[Refusal]:
        if only_list:
            return await refusals(connection, seqs)
        return await dismiss(connection, seqs) if drop else await retry(connection, seqs, force=force)

    console = Console(highlight=False, soft_wrap=True)
    found = with_source(database_url, work)
    if not found:
        console.print("nothing is set aside")
    for entry in found:
        console.print(f"{entry.seq}  {entry.fate:<10}  {entry.subject}  {entry.at:%Y-%m-%d %H:%M:%S}  {entry.reason}", markup=False)
    if any(entry.fate == "superseded" for entry in found):
        console.print("superseded: a later change of the same row is there, which the old one would undo: --dismiss forgets it, --force sends it all the same")
