"""`tocsin validate`: one round of changes through every part, on a table of its own."""

from __future__ import annotations

import asyncio
import signal
import time
from typing import Annotated

import jwt
import msgspec
import typer
from rich.console import Console

from tocsin.cli.validation.report import Report, Step
from tocsin.cli.validation.round import Round, Wanted
from tocsin.cli.validation.trial import Trial
from tocsin.errors import OperatorError
from tocsin.service import configure_logging
from tocsin.settings import Settings, load_settings
from tocsin.stack.running import here

_INTERRUPTED = 130
_TOKEN_LASTS = 600


def command(  # noqa: PLR0917  # options are named
    database_url: Annotated[str | None, typer.Option(help="The source database; else TOCSIN_DATABASE_URL.")] = None,
    replica_url: Annotated[str | None, typer.Option(help="The replica database; else TOCSIN_REPLICA_URL.")] = None,
    nats_url: Annotated[str | None, typer.Option(help="NATS; else TOCSIN_NATS_URL.")] = None,
    url: Annotated[str | None, typer.Option(help="The gateway's URL.", show_default="http://127.0.0.1:8080")] = None,
    check_url: Annotated[str | None, typer.Option(help="The checker's URL.", show_default="http://127.0.0.1:8090")] = None,
    token: Annotated[
        str | None, typer.Option(help="A JWT for gateway and checker (TOCSIN_TOKEN); else one is made with TOCSIN_JWT_SECRET, where that is set.")
    ] = None,
    schema: Annotated[str, typer.Option(help="The schema in which the table is made.")] = "public",
    with_replica: Annotated[bool, typer.Option("--replica/--no-replica", help="Whether there is a replica and a checker to look at.")] = True,
    source_url_from_replica: Annotated[str | None, typer.Option(help="The source's URL as the replica's server reaches it, where that differs.")] = None,
    patience: Annotated[float, typer.Option(min=1, help="Seconds that one step may take.")] = 30.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON, for programs.")] = False,
) -> None:
    """Prove that an installation works: one round of changes, from the commit to every end.

    It makes a table, watches and replicates it, listens by WebSocket and by NATS, changes rows, and compares what arrives. Then
    it spoils the replica's copy, sees the checker report it, repairs it, sees it in sync, and removes all it has made, also when
    a step fails or you press Ctrl-C. Other tables are not touched. Where no URL is set, it looks at what `tocsin up` runs here.

    Exit code: 0 all is well, 1 a part failed: which, and the fix, is printed. 130 interrupted.

    Example: `tocsin validate`

    Example: `tocsin validate --url https://events.example.com --check-url http://checker:8090 --json`
    """
    settings = _found(load_settings(database_url=database_url, replica_url=replica_url, nats_url=nats_url, token=token))
    configure_logging("error", settings.log_format)
    trial = Trial(schema)
    wanted = Wanted(
        settings=settings,
        gateway_url=url or settings.gateway_url,
        check_url=check_url or settings.check_url,
        token=settings.bearer or _token(settings, trial),
        schema=schema,
        patience=patience,
        replica=with_replica,
        source_url_from_replica=source_url_from_replica,
    )
    report = Report() if as_json else Report(_show)
    interrupted = _run(Round(wanted, report, trial))
    if as_json:
        typer.echo(msgspec.json.encode(report.as_json()).decode())
    else:
        _sum_up(report, interrupted=interrupted)
    raise typer.Exit(_INTERRUPTED if interrupted else 0 if report.ok else 1)


def _run(round_: Round) -> bool:
    """Run it to its end; whether a signal cut it short. What was made is removed before it returns, further signals notwithstanding."""

    async def main() -> bool:
        task = asyncio.current_task()
        assert task is not None
        signalled = False

        def stop() -> None:
            nonlocal signalled
            if not signalled:
                signalled = True
                task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop)
        try:
            await round_.run()
        except asyncio.CancelledError:
            if not signalled:
                raise
        return signalled

    return asyncio.run(main())


def _found(settings: Settings) -> Settings:
    """With the URLs of `tocsin up` on this machine where none are set."""
    found = here(settings)
    if found.database_url is None:
        fix = "export TOCSIN_DATABASE_URL=postgresql://user@host:5432/name, or: tocsin up"
        raise OperatorError("TOCSIN_DATABASE_URL is not set, and no `tocsin up` runs here", fix, exit_code=1)
    return found


def _token(settings: Settings, trial: Trial) -> str | None:
    """A token of our own for this table's subjects, where the secret is known."""
    if settings.jwt_secret is None:
        return None
    root = trial.subjects(settings)[1].split(".drift.")[0]
    claims = {"sub": "tocsin validate", "exp": int(time.time()) + _TOKEN_LASTS, "subscribe": [trial.subjects(settings)[0], f"{root}.drift.>"]}
    named = {"aud": settings.jwt_audience, "iss": settings.jwt_issuer}
    return jwt.encode(claims | {k: v for k, v in named.items() if v}, settings.jwt_secret.get_secret_value(), "HS256")


def _show(step: Step) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    console.print("✓ " if step.ok else "✗ ", style="green" if step.ok else "red", end="")
    console.print(f"{step.seconds * 1000:8.0f} ms  {step.part:<8}  {step.what}{f': {step.detail}' if step.detail else ''}")
    if step.fix:
        console.print(f"    fix: {step.fix}", style="yellow")


def _sum_up(report: Report, *, interrupted: bool) -> None:
    console = Console(highlight=False, soft_wrap=True, markup=False)
    for left in report.left:
        console.print("✗ left behind: ", style="red", end="")
        console.print(left)
    if interrupted:
        console.print(f"interrupted after {report.seconds:.1f} s; {'not all' if report.left else 'all'} that was made is removed", style="bold")
    elif report.ok:
        console.print(f"valid: {len(report.steps)} steps in {report.seconds:.1f} s; nothing is left of {report.table}", style="bold green")
    else:
        parts = ", ".join(dict.fromkeys(step.part for step in report.failed)) or "the cleaning up"
        console.print(f"not valid: {parts}", style="bold red")
