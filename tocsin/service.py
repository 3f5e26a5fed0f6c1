"""How a service runs: one process, one event loop, one TaskGroup; signals ask it to stop; uvicorn is a guest in the group.

Nothing runs inside FastAPI's lifespan: a task that crashes there leaves a server that answers 200 with nothing behind it.
In the group the crash ends the process, and whoever supervises starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import structlog
import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Gauge, generate_latest
from rich.console import Console

from tocsin.errors import OperatorError, TocsinError, Unavailable

log = structlog.get_logger("tocsin.service")

INTERRUPTED: Final = 130
AWAY: Final = "start that server, or correct its address: host and port, in the setting or the flag"

GARBAGE: Final = (50_000, 20, 50)
"""gc's thresholds: events die by their reference counts, so that looking for cycles among them at Python's own pace is a fifth of a relay's work."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """`ready` is measured by traffic or the canary; `detail` says what is missing or what was last seen."""

    ready: bool
    detail: dict[str, Any]


class GuestServer(uvicorn.Server):
    """uvicorn without its own signal handlers: the service's group owns the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def run_service(main: Callable[[asyncio.Event], Awaitable[None]], *, fast_loop: bool = True) -> int:
    """Run `main(stop)` to its end, on uvloop where there is one and `fast_loop` is true; the exit code.

    What is loaded by now is taken out of the garbage collector's sight. SIGTERM and SIGINT set `stop`; main then ends in its own order. A
    second signal cancels it. OperatorError is shown with its fix and gives its exit code.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*GARBAGE)
    try:
        with asyncio.Runner(loop_factory=_uvloop_factory() if fast_loop else None) as runner:
            runner.run(_until_signalled(main))
    except BaseExceptionGroup as group:
        return _report(group)
    except (TocsinError, KeyboardInterrupt, asyncio.CancelledError) as error:
        return _report(error)
    return 0


def _uvloop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:  # it has no wheel for some platforms
        return None
    return uvloop.new_event_loop


async def _until_signalled(main: Callable[[asyncio.Event], Awaitable[None]]) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    task = asyncio.current_task()

    def on_signal() -> None:
        if stop.is_set() and task is not None:
            task.cancel()
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    await main(stop)


def _report(error: BaseException) -> int:
    """Show what a person can mend as a message, and anything else as it is."""
    if isinstance(error, BaseExceptionGroup):
        told = error.subgroup(OperatorError) or error.subgroup(TocsinError)
        if told is None:
            raise error
        return max(_report(leaf) for leaf in _leaves(told))
    if isinstance(error, (KeyboardInterrupt, asyncio.CancelledError)):
        return INTERRUPTED
    show_error(error)
    return error.exit_code if isinstance(error, OperatorError) else 1


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def show_error(error: BaseException) -> None:
    """The message, and below it the fix, on standard error; of a server that does not answer, the two things that it may be."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(f"[bold red]error:[/] {_plain(str(error))}")
    fix = error.fix if isinstance(error, OperatorError) else AWAY if isinstance(error, Unavailable) else None
    if fix is not None:
        console.print(f"[bold green]fix:[/] {_plain(fix)}")


def _plain(text: str) -> str:
    return text.replace("[", "\\[")


def configure_logging(level: str, form: str) -> None:
    """One line an entry on standard error: JSON, or for people where `form` is console or auto on a terminal."""
    people = form == "console" or (form == "auto" and sys.stderr.isatty())
    renderer: Any = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if people else structlog.processors.JSONRenderer()
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if not people else structlog.processors.StackInfoRenderer(),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def bind(host: str, port: int, setting: str, *, shared: bool = False, listen: bool = True) -> socket.socket:
    """A listening socket; a `shared` one leaves room for others on its port. Raises OperatorError that names the port and the setting that changes it."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((host, port))
        if listen:
            sock.listen(4096)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise OperatorError(f"port {port} on {host} is taken by another program", f"stop that program, or choose another port with {setting}") from error
        raise OperatorError(f"can't listen on {host}:{port}: {error.strerror}", f"choose another address with {setting}", exit_code=2) from error
    sock.setblocking(False)
    return sock


async def serve_http(app: Any, sock: socket.socket, stop: asyncio.Event, **options: Any) -> None:
    """Serve an ASGI app on a bound socket until `stop`; options are uvicorn's. Belongs into the service's TaskGroup."""
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, **{"timeout_graceful_shutdown": 5, **options})
    server = GuestServer(config)
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(_exit_on(stop, server))
        await server.serve(sockets=[sock])
        waiting.cancel()


async def _exit_on(stop: asyncio.Event, server: uvicorn.Server) -> None:
    await stop.wait()
    server.should_exit = True


def add_health(app: FastAPI, registry: CollectorRegistry, readiness: Callable[[], Readiness]) -> None:
    """`/healthz`, `/readyz` (503 while not ready) and `/metrics`, where `tocsin_ready` says the same."""
    Gauge("tocsin_ready", "1 while events really flow, as /readyz says", registry=registry).set_function(lambda: float(readiness().ready))

    @app.get("/healthz", summary="The process runs", tags=["health"])
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", summary="Events flow, measured by traffic or the canary", tags=["health"], responses={503: {"description": "Not ready"}})
    async def readyz(response: Response) -> dict[str, Any]:
        state = readiness()
        response.status_code = 200 if state.ready else 503
        return {"ready": state.ready, **state.detail}

    @app.get("/metrics", summary="Prometheus metrics", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)
