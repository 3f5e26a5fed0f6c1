"""Every limit of the gateway, in one place. `welcome` tells them to the client."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

from tocsin.errors import OperatorError


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of one worker. Sizes in bytes, times in seconds, rates per second. `replays` are those at once on one socket; more wait for their turn.

    docs/limits.md says of each what it is for, and what a client over it sees.
    """

    message_bytes: int = 65_536
    messages_per_second: int = 100
    subscriptions: int = 128
    outbox_bytes: int = 1 << 20
    replays: int = 16
    connections: int = 20_000
    connections_per_address: int = 1_000
    connections_per_user: int = 256
    publish_bytes: int = 16_384
    header_bytes: int = 32_768
    auth_seconds: float = 10.0
    handshake_seconds: float = 10.0


def chosen_limits(changes: Iterable[str]) -> Limits:
    """The defaults with changes such as `subscriptions=256`. Raises OperatorError that names TOCSIN_LIMITS, what is wrong and what is allowed."""
    values: dict[str, float] = {}
    for change in changes:
        name, _, text = change.partition("=")
        name = name.strip()
        if name not in Limits.__struct_fields__:
            raise OperatorError(f"TOCSIN_LIMITS: there is no limit {name!r}", f"these are there: {', '.join(Limits.__struct_fields__)}", exit_code=2)
        kind = type(getattr(Limits(), name))
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < MAX_LIMIT:
            kinds = "a number of seconds" if kind is float else "a whole number"
            raise OperatorError(f"TOCSIN_LIMITS: {change!r} is not one", f"{kinds} over 0 is allowed, such as {name}={getattr(Limits(), name)}", exit_code=2)
        values[name] = value
    return Limits(**values)  # type: ignore[arg-type]  # each of its own kind


MAX_LIMIT: Final = 1 << 40

EVICT_SECONDS: Final = 1.0
"""How long a slow client has to take its close frame before its transport is aborted."""

POSITION_SECONDS: Final = 30.0
"""How often a subscription is told its position."""

REPLAY_PAGE: Final = 256
REPLAY_PAGE_BYTES: Final = 256 << 10
PAGES_AT_ONCE: Final = 8
"""Of one worker's replays: behind these pages on the connection to NATS wait the live events."""

REPLAY_TURN: Final = 32
"""So many events of a replay are handed out before whatever else waits has its turn."""

JOIN_BUFFER_BYTES: Final = 512 << 10
READ_AHEAD_BYTES: Final = 64 << 10


def read_ahead(outbox_bytes: int) -> int:
    """How much of a replay or a snapshot may wait for its client before the next is read."""
    return min(READ_AHEAD_BYTES, outbox_bytes // 4)


HISTORY_LIMIT: Final = 1000
HISTORY_BYTES: Final = 4 << 20
HISTORY_PAGES: Final = 40
HISTORY_READS: Final = 8
HISTORY_SECONDS: Final = 15.0
"""Of `GET /events`: events and bytes of one answer, pages looked at for it, reads at once, and the time of each."""

DRAIN_GROUP: Final = 50
DRAIN_STEP_SECONDS: Final = 0.1
"""A gateway that stops closes at least so many clients at once, and then waits so long."""
