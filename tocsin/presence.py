"""Who else is subscribed to the same subject, as a client of a gateway is told. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec


class Member(msgspec.Struct, frozen=True):
    """A subscription that is present. `client` is random, new for each subscription and connection; `user` is its token's `sub`, None where it has none."""

    client: str
    user: str | None = None


@dataclass(frozen=True, slots=True)
class Members:
    """All who are present, ourselves too: what was known before is void. Comes again after a lost link.

    `client` is ourselves; None: a new token does not allow presence, and we are neither seen nor told any more.
    """

    client: str | None
    members: tuple[Member, ...]


@dataclass(frozen=True, slots=True)
class Joined:
    """Somebody came; ourselves not."""

    member: Member


@dataclass(frozen=True, slots=True)
class Left:
    """Somebody went, or lost the link."""

    member: Member


Presence = Members | Joined | Left


def presence(op: str, client: str | None, user: str | None, members: tuple[Member, ...]) -> Presence:
    """What a frame of the operation presence, joined or left says."""
    if op == "presence":
        return Members(client, members)
    member = Member(client or "", user)
    return Joined(member) if op == "joined" else Left(member)
