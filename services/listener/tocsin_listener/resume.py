"""Where to go on, after a start or whenever something went wrong: the stream's end, the cursor and the source's identity decide. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from tocsin.broker import StreamState
from tocsin_listener.progress import BEGINNING, Cursor, Identity, reborn
from tocsin_listener.stream import Stored

FIRST: Final = "this source has no stream yet"


@dataclass(frozen=True, slots=True)
class Plan:
    """Go on from `cursor`, skipping the first `published` messages of its batch. `new_epoch` is the reason for one, or None.

    `identity` is as it is to be stored, its epoch excepted. Where `rewind` is true, the cursor is to be looked up for the stream's
    end, since it lost messages that it had acknowledged.
    """

    identity: Identity
    cursor: Cursor
    published: int
    new_epoch: str | None
    rewind: bool = False


def plan(identity: Identity, present: Identity, cursor: Cursor | None, state: StreamState, last: Stored | None, begun: int = 0) -> Plan:
    """`identity` is stored, `present` has the present system, timeline and settings; `last` is the stream's last message, if it is there, and
    `begun` how many messages of the cursor's batch the stream has, as stream.begun counts them.

    A new epoch wherever positions given out before may no longer mean what they meant, a new incarnation wherever sequences of the
    journal may be given a second time.
    """
    known = replace(present, incarnation=identity.incarnation, epoch=identity.epoch, stream_created=state.created)
    end = state.last_sequence
    if cursor is None or identity.epoch is None:
        return Plan(known, Cursor(BEGINNING, None, end), 0, FIRST)
    if identity.system is not None and (identity.system, identity.timeline) != (present.system, present.timeline):
        same = identity.system == present.system and _continues(identity, known, cursor, state, last)
        reason = "the source is another server, or another timeline of it"
        return Plan(reborn(known), cursor, end - cursor.stream_sequence, reason) if same else _set_back(known, cursor, end, begun, reason)
    other = _other_stream(identity, known)
    if other is not None:
        return Plan(known, Cursor(BEGINNING, None, end), 0, other)
    if end < cursor.stream_sequence:
        return Plan(known, cursor, 0, f"the stream ends at {end}, though it had acknowledged {cursor.stream_sequence}", rewind=True)
    stranger = _stranger(identity, cursor, state, last)
    if stranger is not None:
        return _set_back(known, cursor, end, begun, stranger)
    return Plan(known, cursor, end - cursor.stream_sequence, None)


def _set_back(known: Identity, cursor: Cursor, end: int, begun: int, reason: str) -> Plan:
    """The stream goes on behind the cursor's batch by what this database does not know of: the rest of that batch, if any, comes after it.

    What S' sees was committed before the row that holds S': all of the batch is in the database that has the cursor, and what of it was sent is the same.
    """
    if not begun:
        return Plan(reborn(known), Cursor(cursor.reached, None, end), 0, reason)
    return Plan(reborn(known), Cursor(cursor.reached, cursor.intended, end - begun), begun, reason)


def _continues(identity: Identity, present: Identity, cursor: Cursor, state: StreamState, last: Stored | None) -> bool:
    """After a failover: whether the stream ends in the batch of the cursor that the new primary has.

    Then all of the batch is there too, as in _set_back. Where the standby was behind, the stream has later batches, and the journal's rows may
    get other sequences or be gone: that is no continuation.
    """
    same = _other_stream(identity, present) is None and state.last_sequence >= cursor.stream_sequence
    return same and _stranger(identity, cursor, state, last) is None


def _other_stream(identity: Identity, present: Identity) -> str | None:
    if (identity.stream, identity.prefix, identity.source) != (present.stream, present.prefix, present.source):
        return "the source's stream or its subjects have other names"
    return "the stream was made anew" if identity.stream_created != present.stream_created else None


def _stranger(identity: Identity, cursor: Cursor, state: StreamState, last: Stored | None) -> str | None:
    """Why the stream's end is not of this journal's making."""
    if state.epoch != identity.epoch:
        return "another listener changed the stream's epoch"
    published = state.last_sequence - cursor.stream_sequence
    if published and cursor.intended is None:
        return "the stream has messages that this journal did not send"
    if published and last is not None and (last.epoch, last.index) != (identity.epoch, published - 1):
        return "the stream's last message is not of the batch under way"
    return None
