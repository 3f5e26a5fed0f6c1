"""`tocsin tail` as a process, through a real gateway."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec

from tests.support.gateway import RunningGateway, running_gateway
from tests.support.servers import Server
from tests.support.stream import Stream
from tocsin.client import Publisher


@asynccontextmanager
async def tail(url: str, *arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tocsin.cli.main", "tail", *arguments, "--url", url),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "NO_COLOR": "1", "TZ": "UTC"},
    )
    try:
        async with asyncio.timeout(30):
            yield child
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_events_are_shown_as_lines_with_what_changed(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(stream.subject())
    await stream.publish(stream.subject(op="update"), op="update", new={"id": 2, "status": "paid\x1b[31m"}, old={"status": "open"})
    await stream.publish(f"pg.{stream.source}.event.order.paid")
    async with tail(gateway.url, "pg.>", "--since", "start", "--count", "3") as child:
        out, err = await child.communicate()
        assert child.returncode == 0, err.decode()
        insert, update, emitted = out.decode().splitlines()
        assert insert == f"20:15:31.123 insert   {stream.subject()} id 1"
        assert update == f'20:15:31.123 update   {stream.subject(op="update")} {{"id":2}} status open → paid·[31m'
        assert emitted.startswith(f"20:15:31.123 insert   pg.{stream.source}.event.order.paid")


async def test_json_lines_carry_what_a_program_needs_to_resume(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(stream.subject(), stream.subject(), stream.subject())
    async with tail(gateway.url, stream.subject(), "--since", stream.position(1), "--json", "--count", "2") as child:
        out, err = await child.communicate()
        assert child.returncode == 0, err.decode()
        lines = [msgspec.json.decode(line) for line in out.splitlines()]
        assert [line["position"] for line in lines] == [stream.position(2), stream.position(3)]
        assert [line["event"]["sequence"] for line in lines] == ["2", "3"]


async def test_a_filter_and_columns(gateway: RunningGateway, stream: Stream) -> None:
    for total in (1, 7, 9):
        await stream.publish(stream.subject(), new={"id": total, "total": total})
    await stream.publish(stream.subject(op="update"), op="update", new={"id": 9, "total": 2}, old={"total": 9})
    async with tail(gateway.url, "pg.>", "--since", "start", "--where", "total>5", "--select", "total", "--count", "3") as child:
        out, err = await child.communicate()
        assert child.returncode == 0, err.decode()
        assert [line.split(" ", 1)[1] for line in out.decode().splitlines()] == [
            f"enter    {stream.subject()} total 7",
            f"enter    {stream.subject()} total 9",
            f'leave    {stream.subject(op="update")} {{"id":4}} total 9 → 2',
        ]


async def test_a_subject_of_which_nothing_ever_came_is_said(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(stream.subject())
    async with tail(gateway.url, stream.subject("ordres")) as child:
        assert child.stderr is not None
        assert f"no event of {stream.subject('ordres')} yet" in (await child.stderr.readline()).decode()


async def test_a_gap_is_said_and_an_interrupt_ends_it(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 5)
    await stream.purge(keep=1)
    async with tail(gateway.url, stream.subject(), "--since", stream.position(1)) as child:
        assert child.stderr is not None
        assert "missing" in (await child.stderr.readline()).decode()
        child.send_signal(signal.SIGINT)
        assert await child.wait() == 130


async def test_a_missing_gateway_is_waited_for(stream: Stream, nats_server: Server) -> None:
    await stream.publish(stream.subject())
    async with running_gateway(nats_server.url, stream.source) as first:
        port = first.port
    async with tail(f"http://127.0.0.1:{port}", stream.subject(), "--since", "start", "--count", "1") as child:
        assert child.stderr is not None
        assert "waiting for the gateway" in (await child.stderr.readline()).decode()
        async with running_gateway(nats_server.url, stream.source, port=port):
            out, _ = await child.communicate()
        assert child.returncode == 0
        assert stream.subject() in out.decode()


async def test_refusals_name_the_reason_and_end_it(gateway: RunningGateway) -> None:
    for arguments, words in (
        (("pg..x",), "empty token"),
        (("$SYS.>",), "forbidden"),
        (("orders",), "fix: a subject is such as pg."),
        (("pg.>", "--since", "yesterday"), "5m"),
    ):
        async with tail(gateway.url, *arguments) as child:
            _, err = await child.communicate()
            assert (child.returncode, words in err.decode()) == (1, True), err.decode()


async def test_a_reader_that_has_had_enough_is_no_error(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish_many([stream.subject()] * 3000)
    command = f"'{sys.executable}' -m tocsin.cli.main tail '{stream.subject()}' --since start --json --url {gateway.url} | head -n 1"
    child = await asyncio.create_subprocess_exec("bash", "-o", "pipefail", "-c", command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(30):
        out, err = await child.communicate()
    assert (child.returncode, err.decode(), len(out.splitlines())) == (0, "", 1)


async def test_a_program_runs_for_each_event_with_its_json_and_nothing_in_an_event_is_a_command(gateway: RunningGateway, stream: Stream) -> None:
    evil = "x'; touch owned; $(touch owned) `touch owned`"
    await stream.publish(stream.subject(), new={"id": 1, "note": evil})
    await stream.publish(stream.subject(op="delete"), op="delete")
    script = "import json, os, sys; e = json.load(sys.stdin); print(os.environ['EVENT_OP'], os.environ['EVENT_KEY'], e['event']['data']['new'].get('note'))"
    async with tail(gateway.url, "pg.>", "--since", "start", "--count", "2", "--exec", f'"{sys.executable}" -c "{script}"') as child:
        out, err = await child.communicate()
    assert child.returncode == 0, err.decode()
    assert out.decode().splitlines() == [f'insert {{"id":1}} {evil}', 'delete {"id":2} None']


async def test_a_program_that_fails_ends_it_and_says_where_to_go_on(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 3)
    once = ("pg.>", "--exec", "sh -c 'test $EVENT_ID != inc-2'")
    async with tail(gateway.url, *once, "--since", "start") as child:
        _, err = await child.communicate()
    assert (child.returncode, f"--since {stream.position(1)}" in err.decode(), stream.position(2) in err.decode()) == (1, True, True), err.decode()
    async with tail(gateway.url, "pg.>", "--exec", "true", "--since", stream.position(1), "--count", "2") as child:
        assert await child.wait() == 0
    async with tail(gateway.url, "pg.>", "--exec", "/no/such/program", "--since", "start") as child:
        _, err = await child.communicate()
    assert (child.returncode, "fix:" in err.decode()) == (2, True), err.decode()


async def test_clients_own_messages_are_shown_too(gateway: RunningGateway, stream: Stream) -> None:
    """They have no position, no sequence and no transaction."""
    room = f"pg.{stream.source}.live.room.7"
    async with (
        Publisher(gateway.url) as live,
        tail(gateway.url, room, "--count", "1") as plain,
        tail(gateway.url, room, "--count", "1", "--json") as lines,
        asyncio.TaskGroup() as group,
    ):
        ended = [group.create_task(child.communicate()) for child in (plain, lines)]
        while not all(task.done() for task in ended):
            # Nothing is kept for who comes later.
            await live.publish(room, {"text": "hi"})
            await asyncio.wait(ended, timeout=0.2)
    shown, written = (task.result()[0] for task in ended)
    assert f'live     {room} {{"text":"hi"}}' in shown.decode()
    assert msgspec.json.decode(written)["event"]["data"] == {"text": "hi"}
