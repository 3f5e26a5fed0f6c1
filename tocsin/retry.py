"""The retry policies, all in one place. Each is jittered, and bounded in time or in the wait between attempts."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, stop_never, wait_exponential_jitter

from tocsin.errors import Unavailable

Hook = Callable[[int, BaseException | None, float], Any]
"""Called before each pause with the attempt's number from 1, its error and the seconds to come."""


def _before_sleep(hook: Hook | None) -> Callable[[RetryCallState], None] | None:
    if hook is None:
        return None

    def call(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        hook(state.attempt_number, error, state.next_action.sleep if state.next_action else 0.0)

    return call


def forever(*errors: type[BaseException], on_retry: Hook | None = None, longest: float = 5.0) -> AsyncRetrying:
    """For links that a service can't live without: 50 ms, doubling to `longest` seconds, with jitter, without end.

    Make a new one after each success, so that the next outage begins with short pauses.
    """
    return AsyncRetrying(
        retry=retry_if_exception_type(errors or (Unavailable,)),
        wait=wait_exponential_jitter(multiplier=0.05, max=longest, jitter=0.25),
        stop=stop_never,
        before_sleep=_before_sleep(on_retry),
        reraise=True,
    )


class Pauses:
    """The pauses before a link is made anew, for one that can fail after it was made: 100 ms, doubling to `longest` seconds.

    Half of each is chance, so that a gateway's clients do not all come back at once. `reset` after the link has lasted.
    """

    def __init__(self, longest: float = 5.0) -> None:
        self._longest = longest
        self._failures = 0

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        whole = min(self._longest, 0.1 * (1 << self._failures))
        self._failures = min(self._failures + 1, 16)
        return whole * (0.5 + random.random() / 2)  # noqa: S311  # chance, not a secret

    def reset(self) -> None:
        self._failures = 0
