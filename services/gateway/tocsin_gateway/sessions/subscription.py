"""What is known of one subscription of a client."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from enum import Enum, auto

import msgspec

from tocsin.subject import Pattern
from tocsin_gateway.delivery.frames import StreamEvent
from tocsin_gateway.delivery.selection import Selection
from tocsin_gateway.protocol import Reason
from tocsin_gateway.rows.condition import Where
from tocsin_gateway.rows.visibility import Visibility
from tocsin_gateway.source.snapshot import Table


class State(Enum):
    JOINING = auto()
    REPLAYING = auto()
    BUFFERING = auto()
    LIVE = auto()
    ENDED = auto()


class Subscription:
    """`after` is the stream sequence up to which the client has everything; `hole` what the hub met while we were buffering.

    `selection` is None where every event of the pattern is wanted as it is. `on_state` is called when `state` has changed.
    """

    __slots__ = (
        *("_on_state", "_state", "after", "buffer", "buffer_bytes", "hole", "id", "json_id", "overflowed", "pattern", "select", "selection", "table", "task"),
        "where",
    )

    def __init__(self, id: str, pattern: Pattern, on_state: Callable[[], None]) -> None:  # noqa: A002  # the field's name
        self._on_state = on_state
        self.id = id
        self.json_id = msgspec.json.encode(id)
        self.pattern = pattern
        self.where: Where | None = None
        self.table: Table | None = None
        self.select: frozenset[str] | None = None
        self.selection: Selection | None = None
        self._state = State.JOINING
        self.after = 0
        self.buffer: deque[StreamEvent] = deque()
        self.buffer_bytes = 0
        self.overflowed = False
        self.hole: Reason | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def state(self) -> State:
        return self._state

    @state.setter
    def state(self, state: State) -> None:
        self._state = state
        self._on_state()

    def select_under(self, visibility: Visibility) -> None:
        """From now on only what these rules let through."""
        self.selection = Selection.of(self.pattern, self.where, self.select, visibility)

    def enter(self, state: State) -> None:
        """Raises CancelledError where it has ended: a rule that can't be judged ends it from within its own task, which is not cancelled then."""
        if self.state is State.ENDED:
            raise asyncio.CancelledError
        self.state = state
