"""`tocsin retry`, `replay`, `backfill` and `why` as processes of their own: what they print, and their exit codes."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from nats.aio.client import Client

from tests.integration.tocsin_listener.test_again import POISON, poisoned
from tests.integration.tocsin_listener.test_listener import Start, messages, start
from tests.support.servers import Server
from tocsin.event import decode_event
from tocsin.stack.process import free_port
from tocsin_listener.watch import watch

__all__ = ["start"]

Verb = Callable[..., Awaitable[tuple[int, str]]]


@pytest.fixture
def verb(source_url: str, nats_server: Server) -> Verb:
    """`await verb("retry", "--list")`: the exit code, and both outputs; keywords are more settings."""
    settings = {"TOCSIN_DATABASE_URL": source_url, "TOCSIN_NATS_URL": nats_server.url, "TOCSIN_GATEWAY_PORT": str(free_port()), "COLUMNS": "200"}
    environment = {**{name: value for name, value in os.environ.items() if not name.startswith("TOCSIN_")}, **settings}

    async def run(*arguments: str, **more: str) -> tuple[int, str]:
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tocsin.cli.main", *arguments, env={**environment, **more}, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        async with asyncio.timeout(30):
            output, _ = await child.communicate()
        assert child.returncode is not None
        assert b"Traceback" not in output, output.decode()
        return child.returncode, output.decode()

    return run


async def together(*runs: Awaitable[tuple[int, str]]) -> list[tuple[int, str]]:
    """Independent ones at the same time: each needs a second to start."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(_of(run)) for run in runs]
    return [task.result() for task in tasks]


async def _of(run: Awaitable[tuple[int, str]]) -> tuple[int, str]:
    return await run


async def test_events_once_more_by_each_verb(start: Start, installed: asyncpg.Connection, nats: Client, verb: Verb) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(101, 103)")
    await watch(installed, ["t"])
    again = await nats.subscribe("replay.verbs")
    await nats.flush()
    async with start() as settings:
        async with installed.transaction():
            await installed.execute("INSERT INTO t VALUES (1)")
            await poisoned(installed, 2)
        await messages(nats, settings, 1)
        seq = await installed.fetchval("SELECT seq FROM tocsin.quarantine")
        listed, nothing, filled = await together(verb("retry", "--list"), verb("retry", "999999"), verb("backfill", "t"))
        assert listed[0] == 0
        assert f"{seq}  waiting" in listed[1]
        assert (nothing[0], "nothing is set aside" in nothing[1]) == (0, True)
        assert (filled[0], "t: 4 rows read, 4 events written" in filled[1]) == (0, True), filled
        found = await messages(nats, settings, 5)
        assert sorted(decode_event(m.data).data["key"]["id"] for m in found[1:]) == [1, 101, 102, 103]
        await installed.execute(f"UPDATE tocsin.quarantine SET subject = replace(subject, '.{POISON}', '')")
        code, said = await verb("retry", str(seq))
        assert (code, f"{seq}  sent" in said) == (0, True), said
        await messages(nats, settings, 6)
        replayed, why, other = await together(verb("replay", "--since", "1h", "--to", "replay.verbs"), verb("why", "t", "101"), verb("why", "t", "999"))
        assert replayed[0] == 0, replayed
        count = int(replayed[1].split()[0])
        keys: list[int | None] = []
        async with asyncio.timeout(10):
            while len(keys) < count:
                event = decode_event((await again.next_msg(timeout=5)).data)
                keys += [event.data["key"]["id"]] if event.type.startswith("public.t.") else [None]
        # The row that was refused is in the journal twice: as it was, and as it was sent.
        assert sorted(key for key in keys if key is not None) == [1, 1, 2, 2, 101, 102, 103]
        assert "at the position" in why[1]
        assert (other[0], "the journal has no event" in other[1]) == (1, True)


async def test_mistakes_end_with_their_fix_and_no_traceback(installed: asyncpg.Connection, verb: Verb) -> None:
    await installed.execute("CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE keyless (id int)")
    await watch(installed, ["keyless"])
    ended = await together(
        verb("backfill", "t"),
        verb("backfill", "keyless"),
        verb("backfill", "nowhere"),
        verb("replay", "--since", "whenever", "--to", "replay.a"),
        verb("replay", "--since", "1h", "--to", "a..b"),
        verb("replay", "--since", "1h", "--to", "replay.a", TOCSIN_NATS_CREDS="/nowhere"),
        verb("retry", "not-a-number"),
        verb("why", "pg..t"),
        verb("why", "nowhere"),
    )
    expected = [
        (1, "fix: tocsin watch t"),
        (1, "ADD PRIMARY KEY"),
        (1, "is not watched"),
        (2, "neither a time nor a position"),
        (1, "start the listener once"),
        (2, "TOCSIN_NATS_CREDS"),
        (2, "valid integer"),
        (2, "empty token"),
        (1, "there is no table nowhere"),
    ]
    for (code, said), (wanted, words) in zip(ended, expected, strict=True):
        assert (code, words in said) == (wanted, True), said
