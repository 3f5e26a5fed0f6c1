"""Connections to PostgreSQL: direct, kept alive, named, and with errors that tell the operator what to do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import urlsplit

import asyncpg

from tocsin.errors import OperatorError, Unavailable

CONNECT_TIMEOUT: Final = 10.0
_KEEPALIVE: Final = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 10_000}

TRANSIENT: Final = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # a statement sent after the server's farewell and before the connection's end
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.IdleSessionTimeoutError,
)
"""What a lost or restarting server raises; a new connection may help."""

_SHARED_SESSION: Final = (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError, asyncpg.ProtocolViolationError)
"""What prepared statements meet where transactions share sessions."""

_FIXES: Final[dict[type[BaseException], str]] = {
    asyncpg.InvalidCatalogNameError: "correct the database's name at the end of {setting}, or create it: createdb NAME",
    asyncpg.InvalidPasswordError: "correct the user and password in {setting}",
    asyncpg.InvalidAuthorizationSpecificationError: "correct the user in {setting}, and let it in by pg_hba.conf",
    asyncpg.InsufficientPrivilegeError: "GRANT CONNECT ON DATABASE … TO the user in {setting}",
}


def without_password(url: str) -> str:
    """The URL as it may be shown: user, host, port and database."""
    parts = urlsplit(url)
    netloc = parts.netloc.rpartition("@")
    user = netloc[0].split(":")[0]
    return f"{parts.scheme}://{user + '@' if user else ''}{netloc[2]}{parts.path}"


async def connect(url: str, *, setting: str, application: str, timeout: float = CONNECT_TIMEOUT, command_timeout: float | None = None) -> asyncpg.Connection:
    """A direct connection, `application_name` set, dead peers noticed within about 10 s. `command_timeout` bounds the wait for each answer.

    Raises OperatorError for what only a person can change (it names `setting`), Unavailable for what may pass.
    """
    try:
        connection = await asyncpg.connect(
            url, timeout=timeout, server_settings={"application_name": application}, statement_cache_size=64, command_timeout=command_timeout
        )
    except tuple(_FIXES) as error:
        raise OperatorError(
            f"{setting} ({without_password(url)}): {error}", next(fix for kind, fix in _FIXES.items() if isinstance(error, kind)).format(setting=setting)
        ) from error
    except asyncpg.ProtocolViolationError as error:
        raise OperatorError(
            f"{setting} ({without_password(url)}): {error}",
            f"a connection pooler seems to stand in between; point {setting} at PostgreSQL itself",
        ) from error
    except (ValueError, asyncpg.ClientConfigurationError) as error:
        raise OperatorError(
            f"{setting} ({without_password(url)}): {error}", f"write {setting} as postgresql://user:password@host:5432/name", exit_code=2
        ) from error
    except TRANSIENT as error:
        reason = str(error) or type(error).__name__
        raise Unavailable(f"{setting}: PostgreSQL at {without_password(url)} does not answer: {reason}") from error
    _keep_alive(connection)
    try:
        if await _is_pooled(connection, url):
            raise OperatorError(
                f"{setting} ({without_password(url)}): a pooler in transaction mode stands in between; LISTEN, advisory locks and settings do not last there",
                f"point {setting} at PostgreSQL itself, or at a pool in session mode (PgBouncer: pool_mode = session); applications may go on using the pooler",
            )
    except TRANSIENT as error:
        connection.terminate()
        raise Unavailable(f"{setting}: PostgreSQL at {without_password(url)} does not answer: {error or type(error).__name__}") from error
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _is_pooled(connection: asyncpg.Connection, url: str) -> bool:
    """Whether two transactions of one connection may meet different sessions.

    A pooler makes up the process id that it tells at the connect; in session mode it still keeps its promises. In transaction mode
    another connection gets the session that this one has just used, or this one gets another while that is taken.
    """
    try:
        own = await connection.fetchval("SELECT pg_backend_pid()")
        if own == connection.get_server_pid():
            return False
        other = await asyncpg.connect(url, timeout=CONNECT_TIMEOUT)
    except _SHARED_SESSION:
        return True
    except (*TRANSIENT, asyncpg.PostgresError):
        # No room for a second connection: each has a session of its own.
        return False
    try:
        return await _share_sessions(connection, other, own)
    except _SHARED_SESSION:
        return True
    finally:
        other.terminate()


async def _share_sessions(connection: asyncpg.Connection, other: asyncpg.Connection, own: int) -> bool:
    # Not once: where the pool is busy, this one may get the same session again by chance.
    for _ in range(20):
        async with other.transaction():
            taken = await other.fetchval("SELECT pg_backend_pid()")
            if taken == own or await connection.fetchval("SELECT pg_backend_pid()") != own:
                return True
    return False


@contextlib.asynccontextmanager
async def connection(url: str, *, setting: str, application: str) -> AsyncIterator[asyncpg.Connection]:
    """`connect`, closed at the end, by force where the server does not answer within 2 s."""
    opened = await connect(url, setting=setting, application=application)
    try:
        yield opened
    finally:
        await close(opened)


async def close(opened: asyncpg.Connection) -> None:
    """Close politely, and by force after 2 s."""
    try:
        async with asyncio.timeout(2):
            await opened.close()
    except (*TRANSIENT, asyncpg.PostgresError):
        opened.terminate()
    except asyncio.CancelledError:
        opened.terminate()
        raise


def _keep_alive(opened: asyncpg.Connection) -> None:
    # asyncpg offers no public way to its socket; without these options a half-open link is noticed after hours.
    sock = opened._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # noqa: SLF001
    if sock is None or sock.family == getattr(socket, "AF_UNIX", None):
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        option = getattr(socket, name, None)
        if option is not None:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)
