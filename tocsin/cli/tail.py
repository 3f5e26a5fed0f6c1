"""`tocsin tail`: live events in the terminal, through the gateway."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from tocsin.cli.handler import Handler, HandlerError
from tocsin.cli.https import certificate_fix
from tocsin.client import Delivery, Gap, Live, Row, SnapshotEnd, SnapshotStart, SubscribeError, subscribe
from tocsin.errors import OperatorError
from tocsin.settings import load_settings

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

Show = Callable[[Delivery | Row], Awaitable[None] | None]

STYLES: Final = {
    "insert": "green",
    "update": "yellow",
    "delete": "red",
    "truncate": "bold red",
    "read": "cyan",
    "enter": "green",
    "stay": "yellow",
    "leave": "red",
}
OPERATORS: Final = {"=": "eq", "!=": "ne", "<": "lt", "<=": "lte", ">": "gt", ">=": "gte", "~": "like"}
_CONDITION: Final = re.compile(r"([^=!<>~]+)(=|!=|<=|>=|<|>|~)(.*)", re.DOTALL)
_PLAIN_VALUE: Final = re.compile(r"true|false|-?(0|[1-9][0-9]*)(\.[0-9]+)?")
INTERRUPTED: Final = 130
_SUBJECT: Final = "a subject is such as pg.shop.change.public.orders.> (source, schema, table); tocsin watched lists the tables"
_FIXES: Final = {
    "bad-subject": _SUBJECT,
    "forbidden": f"{_SUBJECT}; what a token allows, its issuer decides",
    "unauthenticated": "export TOCSIN_TOKEN=…, a JWT for this gateway; or --token",
}
LONGEST_VALUE: Final = 60


def command(  # noqa: PLR0917  # each is a flag
    subject: Annotated[str, typer.Argument(help="A subject; `*` is one token, a last `>` the rest.")],
    since: Annotated[str, typer.Option(help="Where to begin: now, start, snapshot (a table's rows first), an age such as 5m, or a position.")] = "now",
    where: Annotated[
        list[str] | None, typer.Option(help="A condition such as customer_id=42, total>=9.5, status!=paid, note~%x%, note=NULL, or JSON; repeat it.")
    ] = None,
    select: Annotated[str | None, typer.Option(help="Only these columns, with commas between.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: subject, position, event.")] = False,
    execute: Annotated[
        str | None,
        typer.Option(
            "--exec", metavar="COMMAND", help="Run this for each event: its JSON on standard input, EVENT_OP, EVENT_KEY, … as variables; a failure ends it."
        ),
    ] = None,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    url: Annotated[str | None, typer.Option(help="The gateway's URL.", show_default="http://127.0.0.1:8080")] = None,
    token: Annotated[str | None, typer.Option(help="A JWT, where the gateway asks for one (TOCSIN_TOKEN, which no process list shows).")] = None,
) -> None:
    """Show events as they happen; a lost gateway is waited for, and nothing of the time between is missed.

    Examples: `tocsin tail 'pg.>'` · `tocsin tail 'pg.shop.change.public.orders.*' --since 5m --json` ·
    `tocsin tail 'pg.shop.change.public.orders.>' --since snapshot --where customer_id=42 --select id,status` ·
    `tocsin tail 'pg.shop.event.order.paid' --exec 'python3 send_invoice.py'`
    """
    from rich.console import Console

    out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    show = _shower(out, as_json=as_json, execute=execute)
    settings = load_settings(token=token)
    asked = {"since": since, "where": conditions(where) if where else None, "select": select.split(",") if select else None, "token": settings.bearer}
    following = _follow(url or settings.gateway_url, subject, asked, count, show, err.print)
    try:
        code = asyncio.run(following)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SubscribeError as error:
        if error.code not in _FIXES:
            raise
        raise OperatorError(str(error), _FIXES[error.code]) from error
    except BrokenPipeError:
        # Whoever read us has had enough; the interpreter must not try to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise typer.Exit(code)


def _shower(out: Console, *, as_json: bool, execute: str | None) -> Show:
    """What is done with each event: with --exec it is shown only where --json asks for that too."""
    if execute is None:
        return _json_line if as_json else lambda delivery: out.print(line(delivery))
    handler = Handler(execute)

    async def handle(item: Delivery | Row) -> None:
        await handler.run(item, _encoded(item))
        if as_json:
            _json_line(item)

    return handle


async def _follow(url: str, subject: str, asked: dict[str, Any], count: int | None, show: Show, say: Callable[[Any], None]) -> int:
    teller = _Teller(url, say)
    try:
        live = subscribe(url, subject, **asked, tolerate_gaps=True, on_state=teller)
    except ValueError as error:
        raise OperatorError(str(error), "tocsin tail --url http://127.0.0.1:8080 …", exit_code=2) from None
    teller.live = live
    shown = 0
    try:
        async with live as events:
            async for item in events:
                if isinstance(item, Gap | SnapshotStart | SnapshotEnd):
                    say(_remark(item))
                    continue
                showing = show(item)
                if showing is not None:
                    await _handled(showing, teller.before, say)
                teller.before = live.position
                shown += 1
                if shown == count:
                    break
    finally:
        if live.position is not None and sys.stderr.isatty():
            say(f"[dim]go on from here with: --since {live.position}[/]")
    return 0


class _Teller:
    """Says when the gateway is waited for, once for each outage. `before` is where to resume so that the next event comes again."""

    def __init__(self, url: str, say: Callable[[Any], None]) -> None:
        self.live: Live[Any] | None = None
        self.before: str | None = None
        self._url = url
        self._say = say
        self._told = ""

    def __call__(self, state: str, error: BaseException | None) -> None:
        if state == "live" and self.before is None and self.live is not None:
            self.before = self.live.position
            if self.live.hint is not None:
                self._say(f"[yellow]{_plain(self.live.hint)}[/]")
        now = f"[yellow]waiting for the gateway at {_plain(self._url)}: {_plain(str(error))}[/]" if state == "retrying" else ""
        if state == "live" and self._told:
            self._say("[green]connected[/]")
        if now and not self._told:
            fix = certificate_fix(error, "tail") or "start it with: tocsin gateway, or everything with: tocsin up"
            self._say(f"{now}\n[dim]{_plain(fix)}[/]")
        if state != "connecting":
            self._told = now


async def _handled(running: Awaitable[None], before: str | None, say: Callable[[Any], None]) -> None:
    try:
        await running
    except HandlerError:
        if before is not None:
            say(f"[dim]the event that failed comes again with: --since {before}[/]")
        raise


def _remark(item: Gap | SnapshotStart | SnapshotEnd) -> str:
    match item:
        case Gap():
            return f"[bold red]events are missing before {item.position} ({item.reason})[/]: read the present state from the database"
        case SnapshotStart():
            return "[dim]the rows as they are now[/]"
        case SnapshotEnd():
            return "[dim]what follows is what changes[/]"


def conditions(given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """What --where says, as the gateway understands it. Raises OperatorError."""
    made: dict[str, dict[str, Any]] = {}
    for text in given:
        try:
            found = msgspec.json.decode(text, type=dict[str, dict[str, Any]]) if text.startswith("{") else _condition(text)
        except (msgspec.MsgspecError, ValueError):
            raise OperatorError(
                f"--where {text!r} is no condition", '--where customer_id=42, or --where \'{"customer_id": {"in": [42, 43]}}\'', exit_code=2
            ) from None
        for column, tests in found.items():
            made.setdefault(column, {}).update(tests)
    return made


def _condition(text: str) -> dict[str, dict[str, Any]]:
    match = _CONDITION.fullmatch(text)
    if match is None:
        raise ValueError(text)
    column, sign, value = match.groups()
    if value == "NULL" and sign in ("=", "!="):
        return {column: {"null": sign == "="}}
    if sign == "~" or not _PLAIN_VALUE.fullmatch(value):
        return {column: {OPERATORS[sign]: value}}
    return {column: {OPERATORS[sign]: value == "true" if value in ("true", "false") else Decimal(value)}}


def _json_line(delivery: Delivery | Row) -> None:
    sys.stdout.write(_encoded(delivery).decode() + "\n")
    sys.stdout.flush()


def _encoded(delivery: Delivery | Row) -> bytes:
    if isinstance(delivery, Row):
        frame: dict[str, Any] = {"key": delivery.key, "row": delivery.row}
    else:
        effect = {"effect": delivery.effect} if delivery.effect is not None else {}
        frame = {"subject": delivery.subject, "position": delivery.position, "event": delivery.event, **effect}
    return msgspec.json.encode(frame)


def line(delivery: Delivery | Row) -> Text:
    """One event as one line: local time, what happened, subject, and the values; of an update the changed columns alone."""
    from rich.text import Text

    if isinstance(delivery, Row):
        row = delivery.row if delivery.row is not None else delivery.key or {}
        return Text.assemble((f"{'row':<21}", "cyan"), " ", *(part for name, value in row.items() for part in ((f"{name} ", "dim"), f"{_short(value)} ")))
    what = delivery.effect or delivery.op or (delivery.subject.split(".")[2:3] or ["event"])[0]
    made = Text.assemble(
        (_clock(delivery.event.time), "dim"), " ", (f"{what:<8}", STYLES.get(what, "magenta")), " ", (delivery.subject, "bold"), " ", *_values(delivery)
    )
    made.rstrip()
    return made


def _clock(time: str) -> str:
    try:
        return datetime.fromisoformat(time).astimezone().strftime("%H:%M:%S.%f")[:-3]
    except ValueError:
        return time


def _values(delivery: Delivery) -> list[str | tuple[str, str]]:
    new, old = delivery.new, delivery.old
    if delivery.op is None:
        return [_short(delivery.data, 200)]
    if delivery.op == "update" and isinstance(new, dict) and isinstance(old, dict):
        parts: list[str | tuple[str, str]] = [(f"{_short(delivery.key)} ", "cyan")]
        for name in (name for name in old if old[name] != new.get(name)):
            parts += [(f"{name} ", "dim"), (_short(old[name]), "red"), " → ", (_short(new.get(name)), "green"), " "]
        return parts
    row = new if isinstance(new, dict) else old if isinstance(old, dict) else delivery.key or {}
    return [part for name, value in row.items() for part in ((f"{name} ", "dim"), f"{_short(value)} ")]


def _short(value: Any, longest: int = LONGEST_VALUE) -> str:
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    # A terminal obeys control characters, and a row may hold any.
    text = "".join(c if c.isprintable() else "·" for c in text)
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def _plain(text: str) -> str:
    return text.replace("[", "\\[")
