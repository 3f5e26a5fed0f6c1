"""What waits for a client is bounded, in order, and a client that is too slow is evicted once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocsin_gateway.delivery import outbox as module
from tocsin_gateway.delivery.frames import StreamEvent, frame
from tocsin_gateway.delivery.outbox import QueueOutbox, SocketOutbox
from tocsin_gateway.protocol import Close


@dataclass
class Wire:
    """A transport that takes `takes` bytes and keeps the rest waiting."""

    takes: int = 1 << 30
    written: bytearray = field(default_factory=bytearray)
    closes: list[tuple[int, str]] = field(default_factory=list)
    aborts: int = 0
    asked: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, data: bytes) -> None:
        self.written += data

    def buffered(self) -> int:
        return max(0, len(self.written) - self.takes)

    def close(self, code: int, reason: str) -> None:
        self.closes.append((code, reason))

    def abort(self) -> None:
        self.aborts += 1

    async def drained(self) -> None:
        await self.asked.wait()


EVENT = StreamEvent("e", 1, "pg.x", b'{"id":1}')


async def test_frames_of_one_turn_leave_in_one_write_in_order() -> None:
    wire = Wire()
    box = SocketOutbox(wire, 1000, lambda: None)
    box.send(b"1")
    box.send_event(EVENT)
    box.send(b"2")
    assert wire.written == b""
    assert box.waiting > 0
    await asyncio.sleep(0)
    assert wire.written == frame(b"1") + EVENT.framed + frame(b"2")
    assert box.waiting == 0


async def test_shared_frames_come_after_what_was_sent_before() -> None:
    wire = Wire()
    box = SocketOutbox(wire, 1000, lambda: None)
    box.send(b"subscribed")
    box.write(EVENT.framed)
    box.send(b"later")
    await asyncio.sleep(0)
    assert wire.written == frame(b"subscribed") + EVENT.framed + frame(b"later")


async def test_a_client_that_takes_nothing_is_evicted_once_and_then_aborted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVICT_SECONDS", 0.02)
    evictions: list[int] = []
    wire = Wire(takes=0)
    box = SocketOutbox(wire, 1000, lambda: evictions.append(1))
    for _ in range(100):
        box.write(b"x" * 100)
        box.send(b"y" * 100)
        await asyncio.sleep(0)
    assert [code for code, _ in wire.closes] == [Close.TOO_SLOW]
    assert evictions == [1]
    assert len(wire.written) < 1400, "nothing is added once the limit is passed"
    assert wire.aborts == 0
    async with asyncio.timeout(5):
        while not wire.aborts:
            await asyncio.sleep(0.01)
    assert wire.aborts == 1


async def test_closing_lets_out_what_was_sent_before_and_nothing_after() -> None:
    wire = Wire()
    box = SocketOutbox(wire, 1000, lambda: None)
    box.send(b"last")
    box.close(4401, "expired")
    box.close(4400, "again")
    box.send(b"too late")
    box.write(b"too late")
    await asyncio.sleep(0)
    assert wire.written == frame(b"last")
    assert wire.closes == [(4401, "expired")]


async def test_a_burst_in_one_turn_does_not_wait_unbounded() -> None:
    wire = Wire()
    box = SocketOutbox(wire, 1000, lambda: None)
    for _ in range(50):
        box.send(b"x" * 100)
        assert box.waiting <= 1000 + 110
    await asyncio.sleep(0)
    assert len(wire.written) == 50 * 102


async def test_a_replay_waits_for_the_transport_only_while_much_waits() -> None:
    wire = Wire(takes=0)
    box = SocketOutbox(wire, 4000, lambda: None)
    for _ in range(9):
        box.send(b"x" * 100)
        await box.drained()
    box.send(b"x" * 100)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        waiting = group.create_task(box.drained())
        await asyncio.sleep(0)
        assert len(wire.written) == 1020, "nobody is asked to take what was not written"
        assert not waiting.done()
        wire.asked.set()


async def test_a_replay_waits_until_a_queue_is_nearly_empty_or_closed() -> None:
    box = QueueOutbox(4000, lambda: None)
    for _ in range(11):
        await box.drained()
        box.send(b"x" * 100)
    for end in (False, True):
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            waiting = group.create_task(box.drained())
            for _ in range(8):
                await asyncio.sleep(0)
                assert not waiting.done()
                if not end:
                    await box.take()
            if end:
                box.close(1000, "")
            else:
                await box.take()
        for _ in range(9):
            box.send(b"x" * 100)


@given(st.lists(st.binary(min_size=1, max_size=50)))
async def test_a_queue_keeps_the_order_and_counts_its_bytes(payloads: list[bytes]) -> None:
    box = QueueOutbox(1 << 20, lambda: None)
    for payload in payloads:
        box.send(payload)
    assert box.waiting == sum(map(len, payloads))
    assert [await box.take() for _ in payloads] == payloads
    assert box.waiting == 0
    box.close(1000, "")
    assert await box.take() is None


@given(st.lists(st.binary(min_size=1, max_size=50), min_size=1), st.integers(1, 200))
async def test_what_waits_is_taken_together_in_order_and_in_bounds(payloads: list[bytes], most: int) -> None:
    box = QueueOutbox(1 << 20, lambda: None)
    for payload in payloads:
        box.send(payload)
    taken: list[bytes] = []
    while box.waiting:
        taken.append(await box.take_waiting(most) or b"")
    assert b"".join(taken) == b"".join(payloads)
    assert all(len(part) < most + 50 for part in taken)
    assert len(taken) <= len(b"".join(payloads)) // most + 1
    box.close(1000, "")
    assert await box.take_waiting(most) is None


async def test_a_queue_that_nobody_drains_is_thrown_away_and_closed_once() -> None:
    evictions: list[int] = []
    box = QueueOutbox(1000, lambda: evictions.append(1))
    for _ in range(100):
        box.send(b"x" * 100)
        assert box.waiting <= 1100
    assert evictions == [1]
    assert box.closing is not None
    assert box.closing[0] == Close.TOO_SLOW
    assert await box.take() is None


async def test_a_queue_wakes_who_waits() -> None:
    box = QueueOutbox(1000, lambda: None)
    async with asyncio.timeout(5), asyncio.TaskGroup() as group:
        taking = group.create_task(box.take())
        await asyncio.sleep(0)
        box.send_event(EVENT)
    assert json.loads(taking.result() or b"")["position"] == "e-1"
