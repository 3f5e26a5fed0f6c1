"""`tocsin revoke`: take tokens back before they expire."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from tocsin.errors import OperatorError
from tocsin.settings import load_settings

if TYPE_CHECKING:
    from tocsin.revocation import Revocation
    from tocsin.settings import Settings

CONNECT_SECONDS = 10.0


def command(
    token_id: Annotated[str | None, typer.Option("--token-id", help="One token: its claim `jti`.")] = None,
    user: Annotated[str | None, typer.Option(help="Every token that this user has had until now: their claim `sub`.")] = None,
    before: Annotated[
        str | None, typer.Option(help="Every token issued until then: a time such as 2026-11-23T12:00:00Z, or `now`; with --user, the user's.")
    ] = None,
    nats_url: Annotated[str | None, typer.Option(help="NATS with JetStream (TOCSIN_NATS_URL).", show_default="nats://127.0.0.1:4222")] = None,
    source: Annotated[str | None, typer.Option(help="The source's name in subjects (TOCSIN_SOURCE).", show_default="the database's name")] = None,
) -> None:
    """Take tokens back before they expire: their sockets close within a second, and no gateway of the source lets them in again.

    Example: `tocsin revoke --user alice` · `tocsin revoke --token-id 7f3a` · `tocsin revoke --before now`
    """
    from tocsin.revocation import Revocation

    settings = load_settings(nats_url=nats_url, source=source)
    revocation = Revocation(jti=token_id, sub=user, before=_moment(before))
    if not revocation.says_something:
        raise OperatorError("what is to be revoked is not clear", "give one of --token-id, --user and --before; --user and --before go together", exit_code=2)
    asyncio.run(_send(settings, revocation))
    Console(highlight=False).print("revoked; every gateway of the source knows it now")


def _moment(text: str | None) -> float | None:
    from datetime import UTC, datetime

    if text is None or text == "now":
        return None if text is None else datetime.now(UTC).timestamp()
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise OperatorError(f"--before {text!r} is not a time", "write it as 2026-11-23T12:00:00Z, or `now`", exit_code=2) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


async def _send(settings: Settings, revocation: Revocation) -> None:
    from tocsin import broker
    from tocsin.errors import Unavailable
    from tocsin.revocation import revoke

    try:
        async with asyncio.timeout(CONNECT_SECONDS), broker.connect(settings.nats_servers, name="tocsin-gateway", login=settings.nats_login) as link:
            await revoke(link, settings.stream_name, settings.source_name, revocation, replicas=settings.stream_replicas)
    except (TimeoutError, Unavailable, broker.JetStreamError) as error:
        reason = str(error) or "NATS does not answer"
        raise OperatorError(f"nothing was revoked: {reason}", "TOCSIN_NATS_URL says where NATS is; `tocsin doctor` looks at it") from error
