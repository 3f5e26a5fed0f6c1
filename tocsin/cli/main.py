"""The `tocsin` command. Each verb is a module with a function `command`, imported only when it is called or listed."""

from __future__ import annotations

import importlib
import sys
from typing import Annotated, Any, Final

import typer
from typer.core import TyperGroup

from tocsin import __version__
from tocsin.errors import OperatorError, TocsinError
from tocsin.service import show_error

VERBS: Final = {
    "up": "Start here",
    "doctor": "Start here",
    "validate": "Start here",
    "why": "Start here",
    "demo": "Start here",
    "psql": "Start here",
    "install": "Source database",
    "watch": "Source database",
    "unwatch": "Source database",
    "watched": "Source database",
    "uninstall": "Source database",
    "replicate": "Replica",
    "drift": "Replica",
    "tail": "Events",
    "backfill": "Events",
    "replay": "Events",
    "retry": "Events",
    "revoke": "Events",
    "listener": "Services",
    "gateway": "Services",
    "check": "Services",
}
"""Every verb, in the order of `--help`, with the panel that it stands in."""

EPILOG: Final = (
    "Exit codes, where none are named above: 0 done, 1 it could not be done (the fix is printed), 2 used or set up wrongly. "
    "Settings: what is no flag here is a variable TOCSIN_…, also from a file `.env`; docs/settings.md lists them. Secrets from files: TOCSIN_…_FILE. "
    "See also: `tocsin doctor` when something is wrong, docs/operations.md."
)
"""What every verb's help ends with."""


class LazyGroup(TyperGroup):
    """Loads a verb's module when it is asked for, so that `tocsin tail` does not import a web server."""

    def list_commands(self, _ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, _ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"tocsin.cli.{cmd_name}")
        single = typer.Typer(add_completion=False, rich_markup_mode="markdown")
        context = getattr(module, "CONTEXT", None)
        single.command(cmd_name, rich_help_panel=VERBS[cmd_name], epilog=EPILOG, context_settings=context)(module.command)
        return typer.main.get_command(single)


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, rich_markup_mode="markdown", pretty_exceptions_enable=False)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"tocsin {__version__}")
        raise typer.Exit


@app.callback()
def root(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False) -> None:
    """Live updates from the PostgreSQL you already run: every committed change on a NATS subject, in a browser, and proven on the replica.

    Begin with `tocsin up`: it starts everything on this machine and prints what to try.
    Settings are TOCSIN_* variables, a .env file or flags; docs/settings.md lists them.
    """


def main() -> None:
    """The console script: what a person can mend is shown as a message and its fix."""
    try:
        app()
    except TocsinError as error:
        show_error(error)
        sys.exit(error.exit_code if isinstance(error, OperatorError) else 1)
    except Exception as error:
        if type(error).__module__.partition(".")[0] != "asyncpg":
            raise
        show_error(_of_postgres(error))
        sys.exit(1)


def _of_postgres(error: Exception) -> TocsinError:
    """What PostgreSQL refused, for which no verb has words of its own."""
    import asyncpg

    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        fix = "run this as the owner, or GRANT what is missing; docs/operations/bring-your-own.md lists what each role needs"
        return OperatorError(f"PostgreSQL does not let this user do that: {error}", fix)
    return OperatorError(f"PostgreSQL says: {error or type(error).__name__}", "tocsin doctor examines every part")


if __name__ == "__main__":
    main()
