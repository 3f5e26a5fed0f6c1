"""The source's stream: created and kept as configured, and compared with the cursor, which decides the epoch and where to go on."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from nats.aio.client import Client

from tocsin.broker import JetStreamError, StreamState, api, state_of, stored_message, stream_state
from tocsin.errors import OperatorError
from tocsin.event import BATCH, EPOCH, EPOCH_METADATA, SNAPSHOTS
from tocsin.instances import instances
from tocsin.subject import stream_subjects
from tocsin_listener.progress import Cursor

SUBJECTS_OVERLAP: Final = 10065
MAX_DUPLICATES: Final = timedelta(minutes=2)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the operator decides of the stream."""

    max_age: timedelta
    max_bytes: int
    replicas: int


@dataclass(frozen=True, slots=True)
class Stored:
    """Where a message says that it stands: its batch's first seq, its index in it, and on a first one the snapshots."""

    epoch: str
    first: int
    index: int
    snapshots: tuple[str, str] | None


STRANGE: Final = Stored("", -1, -1, None)


def configuration(name: str, prefix: str, source: str, limits: Limits, epoch: str) -> dict[str, Any]:
    """The stream's configuration, in JetStream's own words."""
    age = int(limits.max_age.total_seconds() * 1e9)
    return {
        "name": name,
        "description": f"Tocsin: every committed change of {source}",
        "subjects": list(stream_subjects(prefix, source)),
        "retention": "limits",
        "storage": "file",
        "discard": "old",
        "max_age": age,
        "max_bytes": limits.max_bytes,
        "max_msgs": -1,
        "max_consumers": -1,
        "num_replicas": limits.replicas,
        "duplicate_window": min(age, int(MAX_DUPLICATES.total_seconds() * 1e9)) if age else int(MAX_DUPLICATES.total_seconds() * 1e9),
        "allow_direct": True,
        "allow_atomic": True,
        "metadata": {EPOCH_METADATA: epoch},
    }


async def find(client: Client, name: str) -> StreamState | None:
    return await stream_state(client, name)


async def create(client: Client, wanted: dict[str, Any]) -> StreamState:
    """Raises OperatorError where another stream has the subjects or the server can't hold such a stream."""
    return await _apply(client, "CREATE", wanted)


async def check_free(client: Client, state: StreamState, wanted: dict[str, Any], *, known: bool) -> None:
    """That a stream in whose epoch this database has not written is nobody else's; `known` where it has written it before. Raises OperatorError.

    Whoever leads from another database would lose the stream, and take it back, for ever.
    """
    bound = state.config.get("subjects") or ()
    if not known and not set(bound) & set(wanted["subjects"]):
        text = f"TOCSIN_STREAM: the stream {state.name} is there already, for other subjects: {', '.join(bound) or 'it is a mirror'}"
        raise OperatorError(text, f"choose a name that is free: TOCSIN_STREAM={state.name}_2; nats stream ls shows those that are taken")
    for other in await instances(client, "tocsin-listener"):
        if state.epoch is not None and (other.measured.get("role"), other.measured.get("epoch")) == ("leader", state.epoch):
            text = f"a listener of another database writes the stream {state.name}: the instance {other.id} of nats micro ls, since {other.started}"
            raise OperatorError(
                text, "give this database names of its own, TOCSIN_SOURCE and TOCSIN_STREAM; or, where it takes the other's place, stop that listener first"
            )


async def update(client: Client, state: StreamState, wanted: dict[str, Any]) -> StreamState:
    """Bring the stream to `wanted`, leaving alone what `wanted` does not mention; no request where nothing differs."""
    metadata = {**(state.config.get("metadata") or {}), **wanted["metadata"]}
    merged = {**state.config, **wanted, "metadata": metadata}
    if all(state.config.get(field) == value for field, value in merged.items()):
        return state
    return await _apply(client, "UPDATE", merged)


async def _apply(client: Client, verb: str, wanted: dict[str, Any]) -> StreamState:
    name = wanted["name"]
    try:
        return state_of(await api(client, f"STREAM.{verb}.{name}", wanted))
    except JetStreamError as error:
        if error.code == 503:
            raise
        if error.err_code == SUBJECTS_OVERLAP:
            fix = f"another stream has subjects of {wanted['subjects'][0].rsplit('.', 2)[0]}; set TOCSIN_STREAM to its name, or another TOCSIN_SOURCE"
        else:
            fix = "see TOCSIN_STREAM_MAX_AGE, TOCSIN_STREAM_MAX_BYTES and TOCSIN_STREAM_REPLICAS, and the server's own limits: nats account info"
        raise OperatorError(f"NATS refuses the stream {name}: {error}", fix) from error


async def stored(client: Client, name: str, sequence: int) -> Stored | None:
    """What the message at `sequence` says of itself; None where it is gone, and STRANGE where it is not a listener's. Raises Unavailable, JetStreamError."""
    message = await stored_message(client, name, seq=sequence)
    if message is None:
        return None
    headers = message.headers
    with contextlib.suppress(KeyError, ValueError):
        first, index = map(int, headers[BATCH].split(";"))
        snapshots = headers[SNAPSHOTS].split(";") if SNAPSHOTS in headers else None
        return Stored(headers[EPOCH], first, index, (snapshots[0], snapshots[1]) if snapshots else None)
    return STRANGE


async def begun(client: Client, state: StreamState, cursor: Cursor, epoch: str | None) -> int:
    """How many messages of the batch under way at the cursor the stream has, written in that epoch; 0 where the first is gone or another's.

    Raises Unavailable, JetStreamError. They stand one after the other, so that they are counted by halving what is left.
    """
    high = state.last_sequence - cursor.stream_sequence
    first = await stored(client, state.name, cursor.stream_sequence + 1) if cursor.intended is not None and high > 0 else None
    if first is None or (first.epoch, first.index, first.snapshots) != (epoch, 0, (cursor.reached, cursor.intended)):
        return 0
    low = 1
    while low < high:
        middle = (low + high + 1) // 2
        if await stored(client, state.name, cursor.stream_sequence + middle) == Stored(first.epoch, first.first, middle - 1, None):
            low = middle
        else:
            high = middle - 1
    return low
