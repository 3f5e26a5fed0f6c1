"""A stream is one database's: a second listener, pointed at it by mistake, is refused before it has changed anything."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest
from nats.aio.client import Client
from nats.js.api import StreamConfig

from tests.integration.tocsin_listener.test_listener import until_ready
from tests.support.servers import Server
from tocsin.broker import stream_state
from tocsin.errors import OperatorError
from tocsin.settings import Settings, load_settings
from tocsin.stack.process import free_port
from tocsin_listener.__main__ import serve
from tocsin_listener.install import install


async def refusal(settings: Settings) -> OperatorError:
    """What the listener says as it ends by itself."""
    with pytest.RaisesGroup(pytest.RaisesExc(OperatorError), flatten_subgroups=True) as ended:
        async with asyncio.timeout(20):
            await serve(settings, asyncio.Event())
    return next(error for error in leaves(ended.value) if isinstance(error, OperatorError))


def leaves(error: BaseException) -> list[BaseException]:
    return [leaf for inner in error.exceptions for leaf in leaves(inner)] if isinstance(error, BaseExceptionGroup) else [error]


async def test_a_listener_of_another_database_is_refused_while_the_streams_own_one_leads_and_takes_over_when_it_is_gone(
    installed: asyncpg.Connection, source_url: str, replica: asyncpg.Connection, replica_url: str, nats_server: Server, nats: Client
) -> None:
    """With the same names in both, each would take the stream from the other again and again, and every client would be told of a new epoch each time."""
    await install(replica)
    ours = load_settings(database_url=source_url, nats_url=nats_server.url, listener_port=free_port(), stream_max_bytes="64MB")
    theirs = load_settings(
        database_url=replica_url,
        nats_url=nats_server.url,
        listener_port=free_port(),
        stream_max_bytes="64MB",
        source=ours.source_name,
        stream=ours.stream_name,
    )
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(ours, stop))
        await until_ready(ours)
        before = await stream_state(nats, ours.stream_name)
        said = await refusal(theirs)
        after = await stream_state(nats, ours.stream_name)
        stop.set()
    assert "another database writes the stream " + ours.stream_name in str(said)
    assert "TOCSIN_SOURCE and TOCSIN_STREAM" in said.fix
    assert before is not None
    assert after is not None
    assert before.epoch == after.epoch == await installed.fetchval("SELECT epoch FROM tocsin.identity")
    stop.clear()
    async with asyncio.TaskGroup() as group:
        again = theirs.model_copy(update={"listener_port": free_port()})
        group.create_task(serve(again, stop))
        await until_ready(again)
        assert "another database writes" in str(await refusal(ours.model_copy(update={"listener_port": free_port()}))), "it had the stream, and lost it"
        stop.set()


async def test_a_stream_of_other_subjects_is_left_as_it_is(installed: asyncpg.Connection, source_url: str, nats_server: Server, nats: Client) -> None:
    """An application's own, or another source's, named by mistake: its subjects would be replaced by ours."""
    name = f"ORDERS_{await installed.fetchval('SELECT current_database()')}"
    await nats.jetstream().add_stream(StreamConfig(name=name, subjects=[f"{name}.>"]))
    try:
        said = await refusal(load_settings(database_url=source_url, nats_url=nats_server.url, listener_port=free_port(), stream_max_bytes="64MB", stream=name))
        assert f"the stream {name} is there already, for other subjects: {name}.>" in str(said)
        assert "TOCSIN_STREAM=" in said.fix
        state = await stream_state(nats, name)
        assert state is not None
        assert state.config["subjects"] == [f"{name}.>"]
    finally:
        await nats.jetstream().delete_stream(name)
