"""A word to who subscribes to what has never come: a slip in a subject looks like silence otherwise, for ever."""

from __future__ import annotations

import asyncio
import math
import time
from typing import Final

from tocsin import broker
from tocsin.errors import Unavailable
from tocsin.subject import Pattern, SubjectError, decode_token
from tocsin_gateway.admission.grant import Grant
from tocsin_gateway.rows.visibility import Visibility
from tocsin_gateway.source.watched import Watched

PATIENCE: Final = 1.0
AGAIN_SECONDS: Final = 5.0
REMEMBERED: Final = 4096
NO_MESSAGE: Final = 10037


class Hints:
    """Of one worker; the stream is asked once for a pattern that has events, and every few seconds for one that has none."""

    def __init__(self, link: broker.Link, stream: str, watched: Watched) -> None:
        self._link = link
        self._stream = stream
        self._watched = watched
        self._found: dict[Pattern, tuple[float, str | None]] = {}

    async def about(self, pattern: Pattern, grant: Grant | None) -> str | None:
        """None where the stream has an event of it, where it can't be asked, and for whom a token's rules hide some of it. Raises nothing."""
        if grant is None or grant.visibility != Visibility.all():
            return None
        until, hint = self._found.get(pattern, (0.0, None))
        if time.monotonic() < until:
            return hint
        if len(self._found) >= REMEMBERED:
            self._found.clear()
        try:
            async with asyncio.timeout(PATIENCE):
                hint = None if await self._has_any(pattern) else await self._why_none(pattern)
            self._found[pattern] = (math.inf if hint is None else time.monotonic() + AGAIN_SECONDS, hint)
        except (Unavailable, broker.JetStreamError, TimeoutError):
            hint = None
            self._found[pattern] = (time.monotonic() + AGAIN_SECONDS, hint)
        return hint

    async def _has_any(self, pattern: Pattern) -> bool:
        """Raises Unavailable, JetStreamError."""
        try:
            await broker.api(self._link.client, f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": pattern.text})
        except broker.JetStreamError as error:
            if error.err_code == NO_MESSAGE:
                return False
            raise
        return True

    async def _why_none(self, pattern: Pattern) -> str:
        table = self._watched.one_table(pattern)
        rows = await self._watched.rows(AGAIN_SECONDS) if table is not None else []
        if table is not None and rows and not await self._watched.columns(table, frozenset()):
            name = _name(table)
            return f"{name} is not watched, so that nothing of it comes: is it spelled so? If it is, its owner runs: tocsin watch {name}"
        return f"the stream holds no event of {pattern.text} yet; if one should have come, GET /why?subject={pattern.text} says more"


def _name(table: tuple[str, str]) -> str:
    try:
        return ".".join(decode_token(token) or "" for token in table)
    except (SubjectError, UnicodeError):
        return ".".join(table)
