"""`tocsin why`: where the events of a table or a subject are, what they wait for, and who may see them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

import asyncpg
import typer

from tocsin.cli.doctor import show
from tocsin.cli.examine import reach, way
from tocsin.cli.examine.finding import Finding, bad, good
from tocsin.cli.examine.way import Asked, Reached
from tocsin.cli.source import DatabaseUrl
from tocsin.errors import OperatorError
from tocsin.settings import Settings, load_settings
from tocsin.subject import Pattern, SubjectError, decode_token, encode_token


def command(
    what: Annotated[
        str, typer.Argument(metavar="SUBJECT|TABLE", help="A subject such as 'pg.shop.change.public.orders.*', or a table, `orders` or `sales.orders`.")
    ],
    key: Annotated[str | None, typer.Argument(help="One row's key, as the event's `subject` has it.")] = None,
    database_url: DatabaseUrl = None,
    nats_url: Annotated[str | None, typer.Option("--nats-url", help="NATS (TOCSIN_NATS_URL).")] = None,
    url: Annotated[str | None, typer.Option(help="The gateway's URL.", show_default="http://127.0.0.1:8080")] = None,
    token: Annotated[str | None, typer.Option(help="A JWT: whether its holder may see it (TOCSIN_TOKEN, which no process list shows).")] = None,
) -> None:
    """Say why an event did or did not arrive: trigger, journal, cursor, stream, position, and who may see it.

    Examples: `tocsin why orders 42` · `tocsin why 'pg.shop.change.public.orders.*.7'`
    """
    from tocsin import postgres
    from tocsin.stack.running import here

    settings = here(load_settings(database_url=database_url, nats_url=nats_url, token=token))

    async def run() -> list[Finding]:
        source = settings.require_database_url()
        async with postgres.connection(source, setting="TOCSIN_DATABASE_URL", application="tocsin why") as connection:
            return [finding async for finding in answer(connection, settings, what, key, _socket_url(settings, url), settings.bearer)]

    found = asyncio.run(run())
    show(found)
    raise typer.Exit(0 if all(finding.ok for finding in found) else 1)


async def answer(connection: asyncpg.Connection, settings: Settings, what: str, key: str | None, gateway: str, token: str | None) -> AsyncIterator[Finding]:
    """The whole way, from the writer to the client; it ends at the first stage that no event has passed.

    Raises OperatorError where Tocsin is not installed, or for what is neither a table nor a subject.
    """
    from tocsin_listener.install import require_installed

    await require_installed(connection)
    root = f"{settings.subject_prefix}.{encode_token(settings.source_name)}"
    if not what.startswith((f"{settings.subject_prefix}.", "*.", ">")):
        asked = await _of_table(connection, what, key)
    else:
        try:
            pattern = Pattern(what)
        except SubjectError as error:
            raise OperatorError(str(error), f"write it as {root}.change.public.orders.*", exit_code=2) from error
        asked = Asked(what, pattern.tokens[2:], None, key)
        refused = _kind(pattern, root, settings)
        if refused is not None:
            yield refused
            return
        asked = _with_table(asked)
    reached = Reached()
    async for finding in explain(connection, asked, reached):
        yield finding
    if reached.begun:
        identity = await connection.fetchrow(way.SQL["identity"])
        assert identity is not None, "the cursor has moved, so there is a listener's identity"
        async for finding in reach.stream(asked.what, settings, {**identity, "source": encode_token(identity["source"])}, reached):
            yield finding
    if asked.tail:
        yield await reach.gateway(asked.what, gateway, what if asked.what == what and what.startswith(root) else f"{root}.{'.'.join(asked.tail)}", token)


async def explain(connection: asyncpg.Connection, asked: Asked, reached: Reached) -> AsyncIterator[Finding]:
    """From the writer to the stream's door, in the order in which an event goes."""
    if asked.table is not None:
        refused = False
        async for finding in way.watched(connection, asked):
            refused |= not finding.ok
            yield finding
        if refused and await connection.fetchrow(way.SQL["watch"], asked.table) is None:
            return
        async for finding in way.writers(connection, asked):
            yield finding
    elif asked.tail and asked.tail[0] in ("change", "*", ">"):
        tables = way.overlapping(asked.tail, await connection.fetch(way.SQL["roots"]))
        if not tables:
            yield bad(asked.what, "no watched table has such subjects", "tocsin watch TABLE   # tocsin watched lists what is watched")
            return
        yield good(asked.what, f"it may name events of {', '.join(tables[:10])}{' …' if len(tables) > 10 else ''}")
    async for finding in way.journal(connection, asked, reached):
        yield finding


async def _of_table(connection: asyncpg.Connection, table: str, key: str | None) -> Asked:
    what = table if key is None else f"{table} {key}"
    watch = await connection.fetchrow(way.SQL["watch"], table)
    tail = ("change", encode_token(watch["schema"]), encode_token(watch["table"]), ">") if watch else ()
    return Asked(what, tail, table, key)


def _with_table(asked: Asked) -> Asked:
    """With the table where the subject names exactly one."""
    if len(asked.tail) < 4 or asked.tail[0] != "change" or {"*", ">"} & set(asked.tail[1:3]):
        return asked
    try:
        schema, table = (decode_token(token) for token in asked.tail[1:3])
    except SubjectError:
        return asked
    quoted = ".".join('"' + str(name).replace('"', '""') + '"' for name in (schema, table))
    return Asked(asked.what, asked.tail, quoted, asked.key)


def _kind(pattern: Pattern, root: str, settings: Settings) -> Finding | None:
    """Why no event of this source can ever have such a subject, or None."""
    what, tokens = pattern.text, pattern.tokens
    if not pattern.overlaps(Pattern(f"{root}.>")):
        return bad(
            what, f"it is not of this source, whose subjects begin with {root}", "correct it, or set TOCSIN_SOURCE and TOCSIN_DATABASE_URL to the other source"
        )
    kind = tokens[2] if len(tokens) > 2 else ">"
    if kind not in (*way.KINDS, "*", ">"):
        return bad(what, f"{kind} is no kind of event", f"the kinds are {', '.join(way.KINDS)}: {root}.change.public.orders.*")
    if kind == "live":
        return good(what, "it is ephemeral: told to who listens at that moment, not in the journal nor in the stream, and without a position")
    if kind == "notify" and len(tokens) > 3 and tokens[3] not in ("*", ">", *map(encode_token, settings.channels)):
        return bad(what, f"the channel {tokens[3]} is not carried", f"TOCSIN_CHANNELS={','.join((*settings.channels, tokens[3]))}, then restart the listener")
    if kind == "change" and len(tokens) < 6 and tokens[-1] != ">":
        return bad(what, "it is too short: a change has schema, table and operation", f"{root}.change.public.orders.*")
    return None


def _socket_url(settings: Settings, url: str | None) -> str:
    return (url or settings.gateway_url).rstrip("/").replace("http", "ws", 1) + "/ws"
