"""Every metric that the listener promises is there, and moves when what it measures happens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from tests.integration.tocsin_listener.test_again import poisoned
from tests.integration.tocsin_listener.test_listener import until_ready
from tocsin.settings import Settings, load_settings
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.process import free_port
from tocsin_listener import measuring
from tocsin_listener.__main__ import serve
from tocsin_listener.watch import watch

COUNTERS = ("tocsin_events_total", "tocsin_event_bytes_total", "tocsin_batches_total", "tocsin_statement_to_ack_seconds_count", "tocsin_carried_total")


async def metrics(settings: Settings) -> dict[str, float]:
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{settings.listener_port}/metrics")).text
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))}


async def until(settings: Settings, name: str, *, above: float | None = None, below: float | None = None) -> float:
    """Wait until a metric whose name begins so is above or below a bound; its value."""
    value: float | None = None
    try:
        async with asyncio.timeout(20):
            while True:
                value = next((v for n, v in (await metrics(settings)).items() if n.startswith(name)), None)
                if value is not None and (above is None or value > above) and (below is None or value < below):
                    return value
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"{name} stays at {value}") from None


@contextlib.asynccontextmanager
async def listener(settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, stop))
        try:
            await until_ready(settings)
            yield
        finally:
            stop.set()


async def test_every_metric_moves(installed: asyncpg.Connection, source_url: str, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "EVERY", 0.05)
    await installed.execute("CREATE TABLE t (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, note text)")
    await watch(installed, ["t"])
    server = NatsServer(scratch / "metrics-nats", free_port())
    await server.start()
    settings = load_settings(database_url=source_url, nats_url=server.url, listener_port=free_port(), stream_max_bytes="64MB", channels="heard")
    second = settings.model_copy(update={"listener_port": free_port()})
    try:
        async with listener(settings), listener(second):
            before = await metrics(settings)
            assert (before["tocsin_leader"], before["tocsin_standby"]) == (1, 0)
            other = await metrics(second)
            assert (other["tocsin_leader"], other["tocsin_standby"]) == (0, 1)
            await _events(installed, settings, before)
            await _bells(installed, settings)
            await _pressure(installed, settings, source_url)
            await _backlog(installed, settings, server)
            assert (await metrics(settings))["tocsin_fallback_finds"] == 0
    finally:
        await server.stop()


async def _events(source: asyncpg.Connection, settings: Settings, before: dict[str, float]) -> None:
    await source.execute("INSERT INTO t (note) SELECT repeat('x', 100) FROM generate_series(1, 50); NOTIFY heard")
    for name in COUNTERS:
        await until(settings, name, above=before.get(name, 0.0))
    assert await until(settings, "tocsin_events_total", above=before["tocsin_events_total"] + 50) >= 51
    assert await until(settings, "tocsin_event_bytes_total", above=before["tocsin_event_bytes_total"] + 50 * 300) > 0
    assert await until(settings, "tocsin_journal_bytes", above=0) > 8192


async def _bells(source: asyncpg.Connection, settings: Settings) -> None:
    naps = await until(settings, "tocsin_naps", above=0)
    bells = (await metrics(settings))["tocsin_bells"]
    await source.execute("INSERT INTO t (note) VALUES ('rung')")
    await until(settings, "tocsin_bells", above=bells)
    await until(settings, "tocsin_naps", above=naps)
    spared = (await metrics(settings))["tocsin_bells_spared"]
    async with asyncio.timeout(20):
        while (await metrics(settings))["tocsin_bells_spared"] == spared:
            for _ in range(200):
                await source.execute("INSERT INTO t (note) VALUES ('while it is awake')")


async def _pressure(source: asyncpg.Connection, settings: Settings, source_url: str) -> None:
    writer, hearing = await asyncpg.connect(source_url), await asyncpg.connect(source_url)
    pid = await writer.fetchval("SELECT pg_backend_pid()")
    await writer.execute("BEGIN; INSERT INTO t (note) VALUES ('open')")
    await until(settings, f'tocsin_oldest_writer_seconds{{pid="{pid}"}}', above=0)
    await writer.execute("ROLLBACK")
    await hearing.execute("LISTEN filling")
    await hearing.execute("BEGIN; SELECT 1")
    for _ in range(10):
        await source.execute("SELECT pg_notify('filling', repeat('x', 7000))")
    await until(settings, "tocsin_notify_queue_usage", above=0)
    await hearing.execute("ROLLBACK")
    async with source.transaction():
        await poisoned(source, 7)
        await source.execute("INSERT INTO t (note) VALUES ('rings')")
    await until(settings, "tocsin_quarantined_total", above=0)
    await until(settings, "tocsin_quarantine_waiting", above=0)
    for connection in (writer, hearing):
        connection.terminate()


async def _backlog(source: asyncpg.Connection, settings: Settings, server: NatsServer) -> None:
    await server.kill()
    await source.execute("INSERT INTO t (note) SELECT 'while NATS is away' FROM generate_series(1, 30); NOTIFY heard")
    # The first batch after the kill is already under way, and so is what the carried NOTIFY adds.
    await source.execute("INSERT INTO t (note) SELECT 'while NATS is away' FROM generate_series(1, 30)")
    await until(settings, "tocsin_journal_behind_rows", above=29)
    first = await until(settings, "tocsin_journal_behind_seconds", above=0)
    await until(settings, "tocsin_journal_behind_seconds", above=first)
    await server.start()
    await until(settings, "tocsin_journal_behind_rows", below=1)
    await until(settings, "tocsin_journal_behind_seconds", below=first)
