"""Where NATS itself loses or refuses: an older disk restored, a full store, a leader killed in a cluster of three."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

from nats.aio.client import Client

from tests.faults.test_listener_crashes import STREAM, assert_exactly_once, running_listener, writers
from tests.faults.test_listener_links import until, until_events
from tests.support import oracle
from tests.support.servers import NATS_SERVER
from tocsin.broker import api, stream_state
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.process import free_port


async def epoch_of(url: str) -> str | None:
    client = Client()
    await client.connect(url)
    try:
        state = await stream_state(client, STREAM)
        return state.epoch if state else None
    finally:
        await client.close()


async def test_an_older_store_restored_begins_a_new_epoch_and_is_filled_from_the_journal() -> None:
    """F10: what a power cut with NATS's default fsync, or a backup put back, looks like. Never silence."""
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) SELECT generate_series(1, 50)")
        await assert_exactly_once(running)
        before = await epoch_of(running.nats.url)
        await running.nats.stop()
        copy = running.folder / "older"
        shutil.copytree(running.nats.data, copy)
        await running.nats.start()
        for number in range(20):
            await source.execute("INSERT INTO t (n) VALUES ($1)", 100 + number)
        await source.execute("UPDATE t SET n = n + 1000")
        await assert_exactly_once(running)
        async with asyncio.timeout(10):
            # Until then the loss of a whole last batch goes unnoticed, rightly: the same messages are sent again at the same positions.
            while await source.fetchval("SELECT intended FROM tocsin.progress ORDER BY n DESC LIMIT 1") is not None:
                await asyncio.sleep(0.05)
        await running.nats.stop()
        shutil.rmtree(running.nats.data)
        copy.rename(running.nats.data)
        await running.nats.start()
        await running.until_ready(running.listener_url, running.services["listener"], "listener")
        seen = await assert_exactly_once(running)
        assert len(seen.events) == 50 + 20 + 70
        assert await epoch_of(running.nats.url) != before


async def test_a_full_store_presses_back_to_the_journal_and_goes_on_when_there_is_room() -> None:
    """F13: NATS refuses every message for want of room. Writers are not blocked, the listener does not spin, nothing is lost."""
    async with running_listener() as (running, source):
        await source.execute("INSERT INTO t (n) VALUES (1)")
        await assert_exactly_once(running)
        client = Client()
        await client.connect(running.nats.url)
        filler = await api(client, "STREAM.CREATE.FILLER", {"name": "FILLER", "subjects": ["filler"], "storage": "file"})
        assert filler["config"]["name"] == "FILLER"
        await running.nats.stop()
        limited = NatsServer(running.nats.data, running.nats.port, extra=f'jetstream {{ store_dir: "{running.nats.data}", max_file_store: 200KB }}')
        await limited.start()
        try:
            await source.execute("INSERT INTO t (n) SELECT generate_series(1, 2000)")
            child = running.services["listener"]
            log = running.folder / "listener.log"
            await until(lambda: "insufficient resources" in log.read_text(), 20, "the listener says why NATS refuses")
            assert "NATS's store is full" in await running.tocsin("doctor", expect=1)
            used = _cpu_seconds(child.pid)
            async with asyncio.timeout(2):
                for number in range(100):
                    await source.execute("INSERT INTO t (n) VALUES ($1)", number)
            await asyncio.sleep(3)  # a measuring time, not a wait for something
            assert _cpu_seconds(child.pid) - used < 1.5, "it must not spin"
            assert child.returncode is None
        finally:
            await limited.stop()
            await running.nats.start()
        await running.until_ready(running.listener_url, running.services["listener"], "listener")
        seen = await assert_exactly_once(running)
        assert len(seen.events) == 1 + 2000 + 100
        await client.close()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def test_a_purge_under_load_repeats_nothing() -> None:
    """F11: what was purged is gone, and what comes later is there once, in the same epoch."""
    async with running_listener() as (running, _):
        client = Client()
        await client.connect(running.nats.url)
        before = await epoch_of(running.nats.url)
        async with writers(running):
            for count in (50, 100, 150):
                state = await stream_state(client, STREAM)
                assert state is not None
                async with asyncio.timeout(15):
                    while (state := await stream_state(client, STREAM)) is None or state.last_sequence < count:
                        await asyncio.sleep(0.02)
                await client.jetstream().purge_stream(STREAM)
            await until_events(running, 50, 15)
        seen = await oracle.stream_events(client, STREAM)
        sequences = [int(event["sequence"]) for event in seen.events]
        assert len(sequences) == len(set(sequences))
        oracle.assert_ordered_per_key(seen, "stream")
        assert await epoch_of(running.nats.url) == before
        await client.close()


@contextlib.asynccontextmanager
async def cluster(sync: str = "2m") -> AsyncIterator[dict[str, NatsServer]]:
    """Three NATS servers of one cluster, by name."""
    with tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        routes = {server: free_port() for server in ("a", "b", "c")}
        urls = ", ".join(f'"nats://127.0.0.1:{port}"' for port in routes.values())
        servers = {
            server: NatsServer(
                folder / server,
                free_port(),
                sync=sync,
                program=NATS_SERVER,
                extra=f'server_name: "{server}"\ncluster {{ name: "three", listen: "127.0.0.1:{port}", routes: [{urls}] }}',
            )
            for server, port in routes.items()
        }
        try:
            async with asyncio.TaskGroup() as group:
                for server in servers.values():
                    group.create_task(server.start())
            yield servers
        finally:
            for server in servers.values():
                await server.stop()


async def test_the_stream_s_leader_killed_under_load_in_a_cluster_of_three() -> None:
    """F12: batches under way are stored whole or not at all, wherever the next leader is; the stream's end is read back each time."""
    async with cluster() as servers, running_listener(start=False) as (running, _):
        running.environment["TOCSIN_NATS_URL"] = ",".join(server.url for server in servers.values())
        await running.start("listener", TOCSIN_STREAM_REPLICAS="3")
        async with writers(running):
            for _ in range(2):
                client = Client()
                await client.connect([server.url for server in servers.values()])
                leader = (await api(client, f"STREAM.INFO.{STREAM}"))["cluster"]["leader"]
                await client.close()
                await servers[leader].kill()
                survivor = next(server for name, server in servers.items() if name != leader)
                before = await _messages(survivor.url)
                async with asyncio.timeout(30):
                    while await _messages(survivor.url) < before + 50:
                        await asyncio.sleep(0.1)
                await servers[leader].start()
        running.nats.port, kept = next(iter(servers.values())).port, running.nats.port
        try:
            seen = await assert_exactly_once(running)
        finally:
            running.nats.port = kept
        assert len(seen.events) > 100


async def _messages(url: str) -> int:
    """The stream's count of messages as that server has it; 0 while no leader answers."""
    client = Client()
    await client.connect(url)
    try:
        with contextlib.suppress(Exception):
            state = await stream_state(client, STREAM)
            return state.messages if state else 0
        return 0
    finally:
        await client.close()
