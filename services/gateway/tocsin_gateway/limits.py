"""Every limit of the gateway, in one place. `welcome` tells them to the client."""

from __future__ import annotations

from typing import Final

import msgspec


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Sizes in bytes, times in seconds, rates per second. `replays` are those at once on one socket; more wait for their turn."""

    message_bytes: int = 65_536
    messages_per_second: int = 100
    subscriptions: int = 128
    outbox_bytes: int = 1 << 20
    replays: int = 16
    auth_seconds: float = 10.0
    handshake_seconds: float = 10.0


EVICT_SECONDS: Final = 1.0
"""How long a slow client has to take its close frame before its transport is aborted."""

POSITION_SECONDS: Final = 30.0
"""How often a subscription is told its position."""

REPLAY_PAGE: Final = 256
REPLAY_PAGE_BYTES: Final = 256 << 10
JOIN_BUFFER_BYTES: Final = 512 << 10

DRAIN_GROUP: Final = 50
DRAIN_STEP_SECONDS: Final = 0.1
"""A gateway that stops closes at least so many clients at once, and then waits so long."""
