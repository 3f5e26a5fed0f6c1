"""The event that every subject carries: CloudEvents 1.0 in JSON, and the headers around it. Pure.

PostgreSQL builds the bytes (see the listener's SQL); nothing between the journal and the client parses them unless a
filter needs it. `Event` is for those who read: clients, the terminal, tests.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

MSG_ID: Final = "Nats-Msg-Id"  # <epoch>-<event id>, and "-old" behind it on the copy under an old route
EPOCH: Final = "Tocsin-Epoch"  # the stream's epoch when the message was published
BATCH: Final = "Tocsin-Batch"  # <first seq>;<index>: which batch, and the place in it
SNAPSHOTS: Final = "Tocsin-Snapshots"  # on a batch's first message: the snapshots <S>;<S'> that it lies between
COPY: Final = "Tocsin-Copy"  # "1" on the copy under the old route, which directly follows its original
EPOCH_METADATA: Final = "tocsin.epoch"  # the key in the stream's metadata


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One CloudEvent.

    `id` is `<incarnation>-<seq>` and stable across retries; `sequence` is the journal's, `txid` the transaction's, both
    decimal strings; `subject` is the row's key as text; `time` is the statement's, RFC 3339 in UTC with microseconds.
    """

    specversion: str
    id: str
    source: str
    type: str
    time: str
    sequence: str
    txid: str
    data: Any = None
    subject: str | None = None
    datacontenttype: str = "application/json"


_decoder: Final = msgspec.json.Decoder(Event)


def decode_event(body: bytes | memoryview) -> Event:
    """Raises msgspec.ValidationError or msgspec.DecodeError for what is not an event."""
    return _decoder.decode(body)
