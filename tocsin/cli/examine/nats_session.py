"""NATS as an examination asks it: one try, and no coming back."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Final

import nats.errors
from nats.aio.client import Client

from tocsin.broker import inbox_prefix
from tocsin.settings import Settings

UNREACHABLE: Final = (OSError, ValueError, TimeoutError, nats.errors.Error)
"""What `nats_session` raises at its beginning, where nothing answers or nobody is let in."""

NO_RIGHT_FIX: Final = "ask as the user `operator` of deploy/nats/accounts.conf, or give this one its rights"


def no_right(client: Client) -> str | None:
    """What NATS said that this client's user may not do, if anything; the request itself only gets no answer."""
    said = str(client.last_error or "")
    return f"the user in TOCSIN_NATS_URL has not the right to this: {said}" if "permissions violation" in said.lower() else None


@contextlib.asynccontextmanager
async def nats_session(settings: Settings, name: str) -> AsyncIterator[Client]:
    """A client that is closed at the end. Raises UNREACHABLE; with the reason that the server gave, where it gave one."""
    client = Client()
    said: list[Exception] = []

    async def remember(error: Exception) -> None:
        said.append(error)

    options = settings.nats_login.options_for(client)
    try:
        await client.connect(
            settings.nats_servers,
            name=name,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            connect_timeout=3,
            error_cb=remember,
            inbox_prefix=inbox_prefix(name).encode(),
            **options,
        )
    except UNREACHABLE as error:
        raise ConnectionError(str(said[0] if said else error) or type(error).__name__) from error
    try:
        yield client
    finally:
        await client.close()
