"""What was tried, in order, with times: each step stands for one part of the installation."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import nats.errors
from websockets.exceptions import WebSocketException

from tocsin.broker import JetStreamError
from tocsin.errors import OperatorError, Unavailable

SOURCE: Final = "source"
REPLICA: Final = "replica"
CHECKER: Final = "checker"
NATS: Final = "NATS"
GATEWAY: Final = "gateway"
LISTENER: Final = "listener"

_FIXES: Final = {
    SOURCE: "start that server, or correct TOCSIN_DATABASE_URL; tocsin doctor has more",
    REPLICA: "start that server, or correct TOCSIN_REPLICA_URL; tocsin doctor has more",
    CHECKER: "tocsin check   # or say where it is: TOCSIN_CHECK_HOST, TOCSIN_CHECK_PORT, --check-url",
    NATS: "start NATS with JetStream (nats-server -js), or correct TOCSIN_NATS_URL",
    GATEWAY: "tocsin gateway   # or say where it is: TOCSIN_GATEWAY_HOST, TOCSIN_GATEWAY_PORT, --url",
    LISTENER: "tocsin listener",
}

_REFUSALS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (
        asyncpg.InsufficientPrivilegeError,
        "grant this user that right, or give it a schema of its own: CREATE SCHEMA trial AUTHORIZATION USER; then tocsin validate --schema trial",
    ),
    (
        asyncpg.ReadOnlySQLTransactionError,
        "let this session write: the primary's address instead of a standby's, or ALTER ROLE name RESET default_transaction_read_only",
    ),
)
"""The server is there, and does not let this user."""


class Broken(Exception):  # noqa: N818  # it names a finding about the installation, not a fault of ours
    """A part does not do what it should; `part` is the one to blame, where it is not the step's own."""

    def __init__(self, message: str, fix: str, *, part: str | None = None) -> None:
        super().__init__(message)
        self.fix = fix
        self.part = part


class Stopped(Exception):  # noqa: N818
    """The step failed, and is in the report; what builds on it makes no sense."""


@dataclass(slots=True)
class Step:
    """`seconds` is how long it took; `detail` says what was seen, of a failed step what went wrong."""

    part: str
    what: str
    ok: bool = True
    seconds: float = 0.0
    detail: str = ""
    fix: str | None = None
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Report:
    """`left` names what could not be removed, each with how to remove it; `on_step` is told of each step when it has ended."""

    on_step: Callable[[Step], None] = lambda _step: None
    steps: list[Step] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    table: str = ""
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        return bool(self.steps) and not self.left and all(step.ok for step in self.steps)

    @property
    def failed(self) -> list[Step]:
        return [step for step in self.steps if not step.ok]

    @contextlib.contextmanager
    def step(self, part: str, what: str) -> Iterator[Step]:
        """One step. What a server or a person may cause makes it a failed one, and raises Stopped; anything else is a fault of ours."""
        step = Step(part, what)
        begun = time.perf_counter()
        try:
            yield step
        except (Broken, OperatorError, Unavailable, JetStreamError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            self._fail(step, error)
        except (OSError, TimeoutError, WebSocketException, nats.errors.Error) as error:
            self._fail(step, error)
        finally:
            step.seconds = time.perf_counter() - begun
            self.steps.append(step)
            self.on_step(step)
        if not step.ok:
            raise Stopped

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "table": self.table, "seconds": self.seconds, "left": self.left, "steps": self.steps}

    def _fail(self, step: Step, error: Exception) -> None:
        step.ok = False
        step.detail = str(error) or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
        step.part = (error.part if isinstance(error, Broken) else None) or step.part
        refusal = next((fix for refused, fix in _REFUSALS if isinstance(error, refused)), None)
        step.fix = error.fix if isinstance(error, Broken | OperatorError) else refusal or _FIXES[step.part]
