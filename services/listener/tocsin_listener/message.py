"""Journal rows as the messages of a batch: subject, body and headers. Pure, and the same at every reading of the same rows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from typing import Final, NamedTuple, Protocol

from tocsin.event import BATCH, COPY, EPOCH, MSG_ID, SNAPSHOTS
from tocsin.subject import canary_subject, encode_token

CANARY: Final = "canary"


class Event(Protocol):
    """A journal row, as tocsin_listener.journal.Row is one."""

    @property
    def seq(self) -> int: ...
    @property
    def subject(self) -> str: ...
    @property
    def old_subject(self) -> str | None: ...
    @property
    def age(self) -> float: ...
    @property
    def message(self) -> bytes: ...


class Message(NamedTuple):
    """`headers` are lines, each ended by CR LF, complete but for what belongs to one attempt; `copy` marks the copy under an old route. `age`
    is the seconds since the statement's begin when it was read, at the monotonic time `read_at`.
    """

    seq: int
    copy: bool
    subject: str
    body: bytes
    headers: str
    age: float
    read_at: float

    @property
    def fields(self) -> dict[str, str]:
        """The headers by name."""
        return dict(line.split(": ", 1) for line in self.headers.splitlines())


class Address(NamedTuple):
    """What stands around every message of a source: `prefix` and `source` are those of the subjects, `source` not yet encoded."""

    prefix: str
    source: str
    incarnation: str
    epoch: str


class Numbering:
    """Turns a batch's rows into messages, in order, numbering them; the rows may come in several pages.

    A message whose (seq, copy) is in `quarantined` is left out, and has no number.
    """

    def __init__(self, address: Address, reached: str, intended: str, quarantined: AbstractSet[tuple[int, bool]]) -> None:
        self._address = address
        self._root = f"{address.prefix}.{encode_token(address.source)}."
        self._canary = canary_subject(address.source)
        self._id = f"{MSG_ID}: {address.epoch}-{address.incarnation}-"
        self._snapshots = f"{SNAPSHOTS}: {reached};{intended}\r\n"
        self._quarantined = quarantined
        self._first: int | None = None
        self._batch = ""
        self.next_index = 0

    def messages(self, rows: Iterable[Event], read_at: float = 0.0) -> Iterator[Message]:
        for row in rows:
            if self._first is None:
                self._first = row.seq
                self._batch = f"\r\n{EPOCH}: {self._address.epoch}\r\n{BATCH}: {row.seq};"
            subject = self._canary if row.subject == CANARY else self._root + row.subject
            if not self._quarantined or (row.seq, False) not in self._quarantined:
                yield Message(row.seq, False, subject, row.message, self._headers(f"{row.seq}"), row.age, read_at)
            if row.old_subject is not None and (row.seq, True) not in self._quarantined:
                headers = self._headers(f"{row.seq}-old") + f"{COPY}: 1\r\n"
                yield Message(row.seq, True, self._root + row.old_subject, row.message, headers, row.age, read_at)

    def _headers(self, name: str) -> str:
        # One piece of text and no dictionary: this runs for every event.
        headers = f"{self._id}{name}{self._batch}{self.next_index}\r\n"
        if self.next_index == 0:
            headers += self._snapshots
        self.next_index += 1
        return headers
