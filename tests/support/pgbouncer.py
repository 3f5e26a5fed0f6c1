"""A real PgBouncer in front of a PostgreSQL server, where the program is installed (apt-get install pgbouncer)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

from tests.support import programs
from tocsin.stack import process, server_user

CONFIGURATION = """
[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = {mode}
default_pool_size = {size}
max_client_conn = 200
"""


@contextlib.asynccontextmanager
async def pgbouncer(folder: Path, url: str, *, mode: str, size: int = 4) -> AsyncIterator[str]:
    """`url` as it is through a PgBouncer of `mode`, for as long as the context lasts."""
    found, port = programs.pgbouncer(), process.free_port()
    assert found is not None, "the tests that ask for it are left out where there is none"
    own = folder / f"pgbouncer-{port}"
    own.mkdir(mode=0o755)
    configuration = own / "pgbouncer.ini"
    configuration.write_text(CONFIGURATION.format(server=urlsplit(url).port, port=port, mode=mode, size=size))
    # It refuses to run as root, as PostgreSQL does.
    user = server_user.NAME if os.geteuid() == 0 else None
    child = await process.start(found, str(configuration), log=own / "log", user=user, cwd="/")
    try:
        async with asyncio.timeout(10):
            while not process.port_is_open(port):
                assert child.returncode is None, process.tail(own / "log")
                await asyncio.sleep(0.02)
        yield urlunsplit(urlsplit(url)._replace(netloc=f"postgres@127.0.0.1:{port}"))
    finally:
        await process.stop(child)
