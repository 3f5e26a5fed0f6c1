"""`tocsin tail --exec`: a program that runs once for each event, one after another, with the event on its standard input."""

from __future__ import annotations

import asyncio
import shlex
from typing import Any, Final

import msgspec

from tocsin.client import Delivery, Row
from tocsin.errors import OperatorError, TocsinError
from tocsin.settings import child_environment

FIX: Final = "tocsin tail 'pg.>' --exec 'python3 handle.py'; a shell's pipes and variables need: --exec \"sh -c '…'\""


class HandlerError(TocsinError):
    """The program ended with another code than 0, and so the following events wait for whoever mends it."""


class Handler:
    """The command is split as a shell would, and run without one: nothing in an event can become a command."""

    def __init__(self, command: str) -> None:
        """Raises OperatorError for what is no command."""
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise OperatorError(f"--exec {command!r}: {error}", FIX, exit_code=2) from None
        if not self._words:
            raise OperatorError("--exec is empty", FIX, exit_code=2)

    async def run(self, item: Delivery | Row, line: bytes) -> None:
        """Until the program has ended. Raises HandlerError, and OperatorError where it can't be started."""
        try:
            child = await asyncio.create_subprocess_exec(*self._words, stdin=asyncio.subprocess.PIPE, env={**child_environment(), **variables(item)})
        except OSError as error:
            raise OperatorError(f"--exec {self._words[0]}: {error.strerror}", FIX, exit_code=2) from error
        try:
            # A program that does not read its input is none the worse for it: communicate takes a broken pipe for its end.
            await child.communicate(line)
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        if child.returncode:
            raise HandlerError(f"{self._words[0]} ended with {child.returncode} for {_place(item)}; it gets that event again with the --since shown before it")


def variables(item: Delivery | Row) -> dict[str, str]:
    """What a small script needs without reading JSON; a zero byte, which no variable can hold, becomes a replacement character."""
    found: dict[str, Any] = {"EVENT_KEY": msgspec.json.encode(item.key).decode()}
    if isinstance(item, Delivery):
        found |= {"EVENT_ID": item.id, "EVENT_OP": item.op or "", "EVENT_SUBJECT": item.subject, "EVENT_POSITION": item.position}
    else:
        found |= {"EVENT_OP": "row"}
    return {name: text.replace("\0", "\ufffd") for name, text in found.items()}


def _place(item: Delivery | Row) -> str:
    return f"the event at {item.position}" if isinstance(item, Delivery) else f"the row {item.key}"
