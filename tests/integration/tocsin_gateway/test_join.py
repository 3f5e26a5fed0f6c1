"""Replay and live meet without a hole and without a repeat, whatever flows meanwhile; an oracle knows what each client must have."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from tests.support.gateway import Peer, RunningGateway, numbers, peer
from tests.support.stream import EPOCH_TWO, Stream
from tocsin.subject import Pattern
from tocsin_gateway import limits
from tocsin_gateway.sessions import recovery, session, telling
from tocsin_gateway.stream import consumer, replay


def expected(stream: Stream, pattern: str, position: str) -> list[int]:
    """What a client of that pattern must have had since `position`: stream sequences, in order."""
    after, wanted = int(position.partition("-")[2]), Pattern(pattern)
    return [sequence for subject, _, sequence in stream.sent if sequence > after and wanted.matches(subject)]


def sequences(frames: list[dict[str, Any]]) -> list[int]:
    return [int(frame["position"].partition("-")[2]) for frame in frames]


async def collect(client: Peer, until: asyncio.Event, stream: Stream, pattern: str) -> tuple[str, list[dict[str, Any]]]:
    """(the position of `subscribed`, every event until the stream's end once `until` is set)"""
    answer = await client.next()
    assert (answer["op"], answer["recovered"]) == ("subscribed", True), answer
    frames: list[dict[str, Any]] = []
    async with asyncio.timeout(60):
        while not until.is_set() or sequences(frames) != expected(stream, pattern, answer["position"]):
            try:
                async with asyncio.timeout(10.0 if until.is_set() else 1.0):
                    frame = await client.next(patience=30)
            except TimeoutError:
                if until.is_set():
                    break
                continue
            if frame["op"] == "event":
                frames.append(frame)
    return answer["position"], frames


@pytest.mark.parametrize("buffer_bytes", [limits.JOIN_BUFFER_BYTES, 2_000])
async def test_clients_that_come_with_any_since_under_load_have_every_event_once_and_in_order(
    gateway: RunningGateway, stream: Stream, buffer_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a small buffer the join overflows again and again, and the replay has to go on without losing what the buffer held."""
    monkeypatch.setattr(session, "JOIN_BUFFER_BYTES", buffer_bytes)
    chance = random.Random(42)
    subjects = [stream.subject(table, op, *route) for table in ("orders", "customers", "items") for op in ("insert", "update") for route in ((), ("7",))]
    patterns = ["pg.>", stream.subject("orders", "*"), stream.subject(), f"pg.{stream.source}.change.public.*.update.>", stream.subject("items", "insert", "7")]
    await stream.publish_many([chance.choice(subjects) for _ in range(1500)])
    done = asyncio.Event()

    async def load() -> None:
        for _ in range(60):
            await stream.publish(*[chance.choice(subjects) for _ in range(20)])
            await asyncio.sleep(0.01)
        done.set()

    async def client(number: int) -> None:
        await asyncio.sleep(chance.random() * 0.8)
        pattern = patterns[number % len(patterns)]
        since = chance.choice(["start", "now", stream.position(chance.randrange(1500)), stream.position(1490)])
        async with peer(gateway) as one:
            await one.send(op="subscribe", id="a", subject=pattern, since=since)
            position, frames = await collect(one, done, stream, pattern)
            assert sequences(frames) == expected(stream, pattern, position), (number, pattern, since)
            by_sequence = {sequence: number for _, number, sequence in stream.sent}
            assert numbers(frames) == [by_sequence[sequence] for sequence in sequences(frames)]

    async with asyncio.TaskGroup() as group:
        group.create_task(load())
        for number in range(25):
            group.create_task(client(number))


async def test_a_change_of_the_cover_is_no_hole_and_no_repeat_for_who_listens_already(
    gateway: RunningGateway, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others come with patterns that nobody had before, so the gateway's consumer is made anew again and again under load."""
    chance = random.Random(7)
    done = asyncio.Event()
    opened: list[int] = []
    real = consumer.Consumer.open

    async def open_at(self: consumer.Consumer, start: Any) -> None:
        opened.append(start)
        await real(self, start)

    monkeypatch.setattr(consumer.Consumer, "open", open_at)

    async def load() -> None:
        for number in range(150):
            # In any order, so that a new consumer may well begin on an event that the listeners want.
            subjects = [stream.subject(), stream.subject("orders", "insert", str(number)), stream.subject("customers")]
            await stream.publish(*chance.sample(subjects, 3))
            await asyncio.sleep(0.005)
        done.set()

    async def churn(number: int) -> None:
        turn = 0
        while not done.is_set():
            turn += 1
            async with peer(gateway) as other:
                await other.subscribe(stream.subject("orders", "insert", f"{number}-{turn}"))
                await asyncio.sleep(chance.random() * 0.02)

    async def listener() -> None:
        async with peer(gateway) as one:
            await one.send(op="subscribe", id="a", subject=stream.subject())
            position, frames = await collect(one, done, stream, stream.subject())
            assert sequences(frames) == expected(stream, stream.subject(), position)

    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(listener())
        group.create_task(load())
        for number in range(4):
            group.create_task(churn(number))
    wanted = set(expected(stream, stream.subject(), stream.position(0)))
    assert len(opened) > 20
    assert wanted & set(opened)


async def test_subscriptions_that_come_and_go_on_one_socket_lose_and_repeat_nothing(gateway: RunningGateway, stream: Stream) -> None:
    """Each subscription's events, as `for` or the pattern says, are the oracle's; those of the one that stays have no repeat at all."""
    done = asyncio.Event()
    stays = stream.subject()
    await stream.publish_many([stays] * 600)

    async def load() -> None:
        for _ in range(100):
            await stream.publish(stays, stream.subject("customers"))
            await asyncio.sleep(0.005)
        done.set()

    async with peer(gateway) as one, asyncio.TaskGroup() as group:
        answer = await one.subscribe(stays, "stays")
        group.create_task(load())
        mine: list[int] = []
        replayed: dict[str, list[int]] = {}
        begun: dict[str, str] = {}
        number = 0
        await one.send(op="subscribe", id="r0", subject=stays, since="start")
        async with asyncio.timeout(60):
            while not done.is_set() or mine != expected(stream, stays, answer["position"]):
                frame = await one.next()
                if frame["op"] == "subscribed":
                    begun[frame["id"]] = frame["position"]
                elif frame["op"] == "event":
                    (at,) = sequences([frame])
                    wanted = frame.get("for", ["stays", *begun])
                    if "stays" in wanted:
                        mine.append(at)
                    for name in set(wanted) - {"stays"}:
                        replayed.setdefault(name, []).append(at)
                    if len(replayed.get(f"r{number}", ())) == 650:
                        await one.send(op="unsubscribe", id=f"r{number}")
                        number += 1
                        await one.send(op="subscribe", id=f"r{number}", subject=stays, since="start")
                elif frame["op"] == "unsubscribed":
                    begun.pop(frame["id"])
        assert mine == expected(stream, stays, answer["position"])
        assert number >= 1
        for name, seen in replayed.items():
            assert seen == expected(stream, stays, stream.position(0))[: len(seen)], name


async def test_events_that_age_out_during_a_replay_are_a_gap_that_is_told(gateway: RunningGateway, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    await stream.publish_many([stream.subject()] * 900)
    paused, reached = asyncio.Event(), asyncio.Event()
    real = telling.Telling.drained

    async def drained(self: telling.Telling) -> None:
        reached.set()
        await paused.wait()
        await real(self)

    monkeypatch.setattr(telling.Telling, "drained", drained)
    async with peer(gateway) as client:
        await client.subscribe(stream.subject(), since="start")
        await reached.wait()
        await stream.purge(keep=10)
        paused.set()
        frame, before = await client.until("subscribed")
        assert (frame["recovered"], frame["reason"], frame["position"]) == (False, "gap", stream.position(900))
        assert numbers(before) == list(range(1, len(before) + 1))
        await stream.publish(stream.subject())
        assert numbers(await client.events(1)) == [901]
        await client.nothing_more()


async def test_a_stream_that_is_recreated_during_the_join_ends_it_once(gateway: RunningGateway, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    await stream.publish_many([stream.subject()] * 50)
    real = replay.reach
    reached = asyncio.Event()

    async def reach(*arguments: Any) -> None:
        if not reached.is_set():
            reached.set()
            await stream.recreate(EPOCH_TWO)
        await real(*arguments)

    monkeypatch.setattr(recovery, "reach", reach)
    async with peer(gateway) as client:
        await client.subscribe(stream.subject(), since="start")
        frame, before = await client.until("subscribed", patience=40)
        assert (frame["recovered"], frame["reason"], len(before)) == (False, "epoch", 50)
        await stream.publish(stream.subject(), stream.subject())
        assert len(await client.events(2)) == 2
        await client.nothing_more()
        await client.send(op="unsubscribe", id="a")
        await client.until("unsubscribed")
        assert (await client.subscribe(stream.subject("customers"), "b"))["op"] == "subscribed"
        await stream.publish(stream.subject(), stream.subject("customers"))
        assert [frame["subject"] for frame in await client.events(1)] == [stream.subject("customers")]
        await client.nothing_more()
