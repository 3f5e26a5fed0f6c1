"""Who is present where, over all gateways of a source. Pure.

Each gateway says what it has itself; a gateway that was not heard for SILENCE_SECONDS has nobody any more.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec

BEAT_SECONDS: Final = 5.0
SILENCE_SECONDS: Final = 16.0
MAX_MEMBERS: Final = 4000
"""Of one gateway: what it has goes into one message of NATS."""


class Member(msgspec.Struct, frozen=True, array_like=True):
    """A client at a subject; `client` is random, new for each subscription."""

    subject: str
    client: str
    user: str | None = None


class Said(msgspec.Struct, frozen=True):
    """What a gateway says: all its members, or only that somebody came or went; `ask` asks the others to say theirs."""

    gateway: str
    members: tuple[Member, ...] | None = None
    joined: Member | None = None
    left: Member | None = None
    ask: bool = False


Change = tuple[Member, bool]
"""A member, and whether it came or went."""


class Roster:
    """Every method returns what changed."""

    def __init__(self) -> None:
        self._gateways: dict[str, dict[Member, None]] = {}
        self._heard: dict[str, float] = {}

    def at(self, subject: str) -> list[Member]:
        return [member for members in self._gateways.values() for member in members if member.subject == subject]

    def members(self, gateway: str) -> tuple[Member, ...]:
        return tuple(self._gateways.get(gateway, ()))

    def hear(self, said: Said, now: float) -> list[Change]:
        """`now` is in seconds of any clock."""
        mine = self._gateways.setdefault(said.gateway, {})
        self._heard[said.gateway] = now
        changes: list[Change] = []
        if said.members is not None:
            wanted = dict.fromkeys(said.members[:MAX_MEMBERS])
            changes += self._change(mine, [member for member in wanted if member not in mine], [member for member in mine if member not in wanted])
        came = [said.joined] if said.joined is not None and said.joined not in mine and len(mine) < MAX_MEMBERS else []
        return changes + self._change(mine, came, [said.left] if said.left is not None and said.left in mine else [])

    def forget(self, now: float, *, but: str) -> list[Change]:
        """Those whose gateway is silent are gone; `but` is our own."""
        changes: list[Change] = []
        for gateway in [name for name, at in self._heard.items() if now - at > SILENCE_SECONDS and name != but]:
            changes += [(member, False) for member in self._gateways.pop(gateway)]
            del self._heard[gateway]
        return changes

    @staticmethod
    def _change(mine: dict[Member, None], came: Iterable[Member], went: Iterable[Member]) -> list[Change]:
        changes = [(member, False) for member in went] + [(member, True) for member in came]
        for member, here in changes:
            if here:
                mine[member] = None
            else:
                mine.pop(member, None)
        return changes
