"""Plain pages of what is in the stream, for who does not want a connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Final

import msgspec

from tocsin import broker
from tocsin.errors import Unavailable
from tocsin.position import Position
from tocsin_gateway import protocol
from tocsin_gateway.delivery.frames import StreamEvent, addressed
from tocsin_gateway.delivery.selection import Selection, Unseen
from tocsin_gateway.limits import HISTORY_BYTES, HISTORY_PAGES, HISTORY_READS, HISTORY_SECONDS
from tocsin_gateway.protocol import ProtocolError, Reason, Subscribe
from tocsin_gateway.stream.replay import Hole, Pages, present, start_of

ID: Final = "0"


@dataclass(slots=True)
class Page:
    """`next` is where the following page begins; `more` whether there is something behind it already; `reason` why it is not whole."""

    next: Position
    events: list[bytes] = field(default_factory=list)
    size: int = 0
    more: bool = False
    reason: Reason | None = None

    @property
    def body(self) -> bytes:
        rest = {"next": str(self.next), "more": self.more, "recovered": self.reason is None, **({"reason": self.reason} if self.reason else {})}
        return b'{"events":[%b],%b' % (b",".join(self.events), msgspec.json.encode(rest)[1:])


class History:
    """A worker's reads of history: few at once, each bounded in time, bytes, and events looked at."""

    def __init__(self, link: broker.Link, stream: str, page_turns: asyncio.Semaphore) -> None:
        self._link = link
        self._page_turns = page_turns
        self._stream = stream
        self._turns = asyncio.Semaphore(HISTORY_READS)

    async def page(self, request: Subscribe, selection: Selection | None, limit: int) -> Page:
        """Raises ProtocolError."""
        try:
            async with asyncio.timeout(HISTORY_SECONDS), self._turns:
                return await self._page(request, selection, limit)
        except TimeoutError:
            raise ProtocolError("limit", f"{HISTORY_READS} pages at once are read, each for at most {HISTORY_SECONDS:.0f} s; try again in a moment") from None
        except (Unavailable, broker.JetStreamError) as error:
            raise ProtocolError("unavailable", str(error)) from None

    async def _page(self, request: Subscribe, selection: Selection | None, limit: int) -> Page:
        pattern, since = protocol.checked_pattern(request), protocol.checked_since(request)
        start, state = await start_of(self._link, self._stream, since), await present(self._link, self._stream)
        page = Page(Position(state.epoch or "", state.last_sequence))
        if not isinstance(start, Position):
            page.reason = start
            return page
        pages = Pages(self._link, self._stream, self._page_turns, pattern, start.epoch, start.sequence)
        try:
            await self._fill(page, pages, selection, limit)
        except Hole as hole:
            return Page(page.next, reason=hole.reason)
        finally:
            await pages.close()
        return page

    async def _fill(self, page: Page, pages: Pages, selection: Selection | None, limit: int) -> None:
        end = page.next
        for _ in range(HISTORY_PAGES):
            events, left = await pages.next()
            for number, event in enumerate(events, 1):
                _add(page, event, selection)
                if len(page.events) >= limit or page.size > HISTORY_BYTES:
                    page.next, page.more = Position(end.epoch, event.sequence), left > 0 or number < len(events)
                    return
            page.next = Position(end.epoch, pages.after if left else max(pages.after, end.sequence))
            page.more = left > 0
            if not left:
                return


def _add(page: Page, event: StreamEvent, selection: Selection | None) -> None:
    """Raises ProtocolError forbidden where a token's rule can't be judged."""
    if selection is None:
        shown = event.payload
    else:
        judged = selection.judge(event)
        if isinstance(judged, Unseen):
            if judged.forbidden is not None:
                raise ProtocolError("forbidden", judged.forbidden)
            page.reason = "gap"
        if judged is None or isinstance(judged, Unseen):
            return
        shown = addressed(judged.payload, [(msgspec.json.encode(ID), judged.mark)])
    page.events.append(shown)
    page.size += len(shown)
