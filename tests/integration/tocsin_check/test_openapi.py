"""What the checker says over HTTP is what its OpenAPI description says, whatever is asked."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import asyncpg
import httpx
import pytest
import pytest_asyncio

from tests.support import servers
from tests.support.conformance import schemathesis
from tocsin.settings import load_settings
from tocsin.stack.process import free_port
from tocsin_check.__main__ import serve


@pytest_asyncio.fixture
async def address(
    source: asyncpg.Connection,
    replica: asyncpg.Connection,
    source_url: str,
    replica_url: str,
    nats_server: servers.Server,
    setup: Callable[..., Awaitable[None]],
) -> AsyncIterator[str]:
    """A checker that has found a drifted row."""
    await source.execute("CREATE TABLE orders (id int PRIMARY KEY, note text); INSERT INTO orders SELECT n, 'note' FROM generate_series(1, 20) n")
    await setup()
    await replica.execute("UPDATE orders SET note = 'altered' WHERE id = 7")
    settings = load_settings(database_url=source_url, replica_url=replica_url, nats_url=nats_server.url, check_port=free_port())
    url, stop = f"http://127.0.0.1:{settings.check_port}", asyncio.Event()
    async with asyncio.TaskGroup() as group, httpx.AsyncClient(base_url=url) as client:
        group.create_task(serve(settings, stop))
        try:
            async with asyncio.timeout(60):
                while not await _drifted(client):
                    await asyncio.sleep(0.05)
            yield url
        finally:
            stop.set()


async def _drifted(client: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return bool((await client.get("/drift")).json()["status"] == "drift")
    return False


async def test_the_checker_answers_as_described(address: str, tmp_path: Path) -> None:
    code, said = await schemathesis(address, tmp_path)
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_the_checker_answers_as_described_to_hundreds_of_inventions(address: str, tmp_path: Path) -> None:
    code, said = await schemathesis(address, tmp_path, invented=200)
    assert code == 0, said
