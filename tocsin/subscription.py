"""One subscription as its client sees it: what to ask the gateway, and what its frames mean. Pure; tocsin.client has the socket."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import msgspec

from tocsin.errors import TocsinError
from tocsin.event import Event
from tocsin.presence import Member, Presence, presence
from tocsin.subject import Pattern, SubjectError

ID: Final = "a"
PERMANENT_CLOSES: Final = {4400: "bad-message", 4401: "unauthenticated", 4403: "forbidden", 4408: "unauthenticated"}
"""Close codes after which coming back would end the same way, with the error code that says the same."""


class SubscribeError(TocsinError):
    """The gateway refuses; trying again does not help. `code` is the contract's, such as bad-subject or forbidden."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class GapError(TocsinError):
    """Events after the last position can't be served whole.

    `reason` is expired, epoch, gap or limit. Events go on after `position`: read the present state from the database, then
    subscribe with `since=position`.
    """

    def __init__(self, reason: str, position: str) -> None:
        super().__init__(f"events are missing before position {position} ({reason}): read the present state anew, then go on from there")
        self.reason = reason
        self.position = position


class Unready(TocsinError):  # noqa: N818  # a state of the gateway, like tocsin.errors.Unavailable
    """The gateway can't serve the subscription at the moment."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event, the subject that it came on, and the position to resume after it; empty for a message on `pg.<source>.live.…`, which has none.

    `effect` is what it does to the rows that `where` asks for: enter, leave, stay, or None where that is not known or was not asked.
    """

    subject: str
    position: str
    event: Event
    effect: str | None = None

    @property
    def id(self) -> str:
        return self.event.id

    @property
    def data(self) -> Any:
        """The event's payload; of a row change a dict with op, schema, table, key, new and old."""
        return self.event.data

    @property
    def op(self) -> str | None:
        """insert, update, delete, truncate or read; None where the event is no row change."""
        op: str | None = self._part("op")
        return op

    @property
    def key(self) -> Any:
        return self._part("key")

    @property
    def new(self) -> Any:
        return self._part("new")

    @property
    def old(self) -> Any:
        return self._part("old")

    def _part(self, name: str) -> Any:
        return self.event.data.get(name) if isinstance(self.event.data, dict) else None


@dataclass(frozen=True, slots=True)
class SnapshotStart:
    """Rows follow, all of them: what an earlier attempt brought is void."""


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a snapshot. `row` is None where it is larger than an event may be; what events before the SnapshotEnd say is newer."""

    key: Any
    row: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """The rows are complete; from `position` on every change comes as an event."""

    position: str


Item = Delivery | SnapshotStart | Row | SnapshotEnd
"""What a subscription brings; the last three only with `since="snapshot"`. With `presence=True` come Members, Joined and Left too."""


@dataclass(frozen=True, slots=True)
class Gap:
    """In place of a GapError where gaps are tolerated: events before `position` are missing."""

    subject: str
    position: str
    reason: str


class Received(Event, frozen=True, kw_only=True):
    """An event as a client gets it: a clients' own message has neither `sequence` nor `txid`, and has who sent it, where that is known."""

    sequence: str = ""
    txid: str = ""
    user: str | msgspec.UnsetType = msgspec.UNSET


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """Any message of the gateway; what a kind of message does not have is None, what we do not know is left out."""

    op: str
    id: str | None = None
    subject: str | None = None
    position: str | None = None
    recovered: bool = True
    reason: str | None = None
    hint: str | None = None
    event: Received | None = None
    effects: dict[str, str | None] = msgspec.field(name="for", default_factory=dict)
    key: Any = None
    row: dict[str, Any] | None = None
    client: str | None = None
    user: str | None = None
    members: tuple[Member, ...] = ()
    expires: str | None = None
    code: str = ""
    message: str = ""


_decoder: Final = msgspec.json.Decoder(Frame)
_encoder: Final = msgspec.json.Encoder(decimal_format="number")


def decode_frame(text: str | bytes) -> Frame:
    """Raises SubscribeError where the other end does not speak the gateway's protocol."""
    try:
        return _decoder.decode(text)
    except msgspec.MsgspecError as error:
        raise SubscribeError("bad-message", f"the answer is not a gateway's: {error}; does the URL lead to a Tocsin gateway?") from None


def socket_url(url: str) -> str:
    """`http(s)://host:port` becomes `ws(s)://host:port/ws`; a ws URL with a path stays as it is. Raises ValueError."""
    scheme, host, path, query, _ = urlsplit(url)
    schemes = {"http": "ws", "https": "wss", "ws": "ws", "wss": "wss"}
    if scheme not in schemes or not host:
        raise ValueError(f"{url!r} is not a gateway's URL; one such as http://127.0.0.1:8080 or ws://127.0.0.1:8080/ws is allowed")
    path = path.rstrip("/")
    if scheme.startswith("http") or not path:
        path += "/ws"
    return urlunsplit((schemes[scheme], host, path, query, ""))


class Subscription:
    """What is known of one subscription: where it stands, and so what to ask when the link is made anew."""

    def __init__(
        self,
        subject: str,
        since: str,
        *,
        where: Mapping[str, Mapping[str, Any]] | None = None,
        select: Sequence[str] | None = None,
        tolerate_gaps: bool = False,
        presence: bool = False,
    ) -> None:
        """Raises SubscribeError for a subject that can't be one."""
        try:
            Pattern(subject)
        except SubjectError as error:
            raise SubscribeError("bad-subject", str(error)) from None
        self.subject: Final = subject
        self.position: str | None = None
        self.hint: str | None = None
        self._since = since
        asked = {"where": where, "select": None if select is None else list(select), "presence": presence or None}
        self._chosen = {name: value for name, value in asked.items() if value is not None}
        self._tolerate_gaps = tolerate_gaps
        self._last_id: str | None = None

    def request(self) -> str:
        """The message that begins the subscription, or resumes it."""
        asked = {"op": "subscribe", "id": ID, "subject": self.subject, "since": self.position or self._since, **self._chosen}
        return _encoder.encode(asked).decode()

    def take(self, frame: Frame) -> Item | Gap | Presence | None:
        """What the frame brings to the caller, if anything.

        Raises GapError, SubscribeError, and Unready for what passes.
        """
        match frame.op:
            case "event":
                return self._event(frame)
            case "subscribed" if frame.position is not None:
                return self._subscribed(frame.position, frame)
            case "row":
                return Row(frame.key, frame.row)
            case "snapshot-end" if frame.position is not None:
                self.position = frame.position
                return SnapshotEnd(frame.position)
            case "presence" | "joined" | "left":
                return presence(frame.op, frame.client, frame.user, frame.members)
            case "position" if frame.position is not None:
                self.position = frame.position
            case "error" if frame.code == "unavailable":
                raise Unready(frame.message)
            case "error":
                raise SubscribeError(frame.code, frame.message)
        return None

    @property
    def _reads_rows(self) -> bool:
        """Whether a snapshot is under way: who loses the link then has to begin it again."""
        return self._since == "snapshot" and self.position is None

    def _event(self, frame: Frame) -> Delivery | None:
        if frame.event is None:
            raise SubscribeError("bad-message", "an event frame without an event")
        if frame.position is not None and not self._reads_rows:
            self.position = frame.position
        if frame.event.id == self._last_id:
            # The copy under the old route: after a resume between the two the gateway can't know that we had the first.
            return None
        self._last_id = frame.event.id
        return Delivery(frame.subject or "", frame.position or "", frame.event, frame.effects.get(ID))

    def _subscribed(self, position: str, frame: Frame) -> SnapshotStart | Gap | None:
        reason, self.hint = frame.reason or "gap", frame.hint
        if self._since == "snapshot" and not frame.recovered:
            self.position = None
            raise Unready(f"events are missing ({reason}): the rows are read anew")
        if self._reads_rows:
            self._last_id = None
            return SnapshotStart()
        self.position = position
        if frame.recovered:
            return None
        if not self._tolerate_gaps:
            raise GapError(reason, position)
        return Gap(self.subject, position, reason)
