"""`tocsin tail`: live events in the terminal, through the gateway."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
import typer

from tocsin.client import Delivery, Gap, subscribe
from tocsin.errors import OperatorError
from tocsin.settings import load_settings

if TYPE_CHECKING:
    from rich.text import Text

STYLES: Final = {"insert": "green", "update": "yellow", "delete": "red", "truncate": "bold red", "read": "cyan"}
INTERRUPTED: Final = 130
LONGEST_VALUE: Final = 60


def command(
    subject: Annotated[str, typer.Argument(help="A subject; `*` is one token, a last `>` the rest.")],
    since: Annotated[str, typer.Option(help="Where to begin: now, start, an age such as 5m, or a position.")] = "now",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line: subject, position, event.")] = False,
    count: Annotated[int | None, typer.Option(min=1, help="End after so many events.")] = None,
    url: Annotated[str | None, typer.Option(help="The gateway's URL.", show_default="http://127.0.0.1:8080")] = None,
    token: Annotated[str | None, typer.Option(help="A JWT, where the gateway asks for one.")] = None,
) -> None:
    """Show events as they happen; a lost gateway is waited for, and nothing of the time between is missed.

    Examples: `tocsin tail 'pg.>'` · `tocsin tail 'pg.shop.change.public.orders.*' --since 5m --json`
    """
    from rich.console import Console

    out, err = Console(highlight=False, soft_wrap=True), Console(stderr=True, highlight=False, soft_wrap=True)
    show = _json_line if as_json else lambda delivery: out.print(line(delivery))
    following = _follow(url or _gateway_url(), subject, since, token, count, show, err.print)
    try:
        code = asyncio.run(following)
    except KeyboardInterrupt:
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has had enough; the interpreter must not try to flush at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    raise typer.Exit(code)


def _gateway_url() -> str:
    settings = load_settings()
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.gateway_host, settings.gateway_host)  # noqa: S104  # an address to replace
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.gateway_port}"


async def _follow(
    url: str, subject: str, since: str, token: str | None, count: int | None, show: Callable[[Delivery], None], say: Callable[[Any], None]
) -> int:
    told = ""

    def on_state(state: str, error: BaseException | None) -> None:
        nonlocal told
        now = f"[yellow]waiting for the gateway at {_plain(url)}: {_plain(str(error))}[/]" if state == "retrying" else ""
        if state == "live" and told:
            say("[green]connected[/]")
        if now and not told:
            say(now + "\n[dim]start it with: tocsin gateway, or everything with: tocsin up[/]")
        if state != "connecting":
            told = now

    try:
        live = subscribe(url, subject, since=since, token=token, tolerate_gaps=True, on_state=on_state)
    except ValueError as error:
        raise OperatorError(str(error), "tocsin tail --url http://127.0.0.1:8080 …", exit_code=2) from None
    shown = 0
    try:
        async with live as events:
            async for item in events:
                if isinstance(item, Gap):
                    say(f"[bold red]events are missing before {item.position} ({item.reason})[/]: read the present state from the database")
                    continue
                show(item)
                shown += 1
                if shown == count:
                    break
    finally:
        if live.position is not None and sys.stderr.isatty():
            say(f"[dim]go on from here with: --since {live.position}[/]")
    return 0


def _json_line(delivery: Delivery) -> None:
    frame = {"subject": delivery.subject, "position": delivery.position, "event": delivery.event}
    sys.stdout.write(msgspec.json.encode(frame).decode() + "\n")
    sys.stdout.flush()


def line(delivery: Delivery) -> Text:
    """One event as one line: local time, what happened, subject, and the values; of an update the changed columns alone."""
    from rich.text import Text

    what = delivery.op or (delivery.subject.split(".")[2:3] or ["event"])[0]
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
