"""A gateway in this process, on a free port, in front of a stream of the test's own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.support import servers
from tests.support.gateway import RunningGateway, running_gateway
from tests.support.stream import Stream
from tests.support.stream import stream as make_stream

_numbers = itertools.count(1)


@pytest.fixture
def source_name() -> str:
    return f"gw{next(_numbers)}"


@pytest_asyncio.fixture
async def stream(nats: Client, source_name: str) -> AsyncIterator[Stream]:
    """A fresh stream, deleted afterwards."""
    made = await make_stream(nats, source_name)
    yield made
    await made.delete()


@pytest_asyncio.fixture
async def gateway(stream: Stream, nats_server: servers.Server) -> AsyncIterator[RunningGateway]:
    """The gateway of the stream, ready."""
    async with asyncio.timeout(100), running_gateway(nats_server.url, stream.source) as running:
        yield running
