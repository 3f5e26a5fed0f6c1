"""The Python client over real sockets, against a gateway that cuts, goes silent, refuses and loses at a chosen frame."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.scripted_gateway import EPOCH, scripted_gateway
from tocsin import client
from tocsin.client import Delivery, Gap, GapError, SubscribeError, subscribe
from tocsin.stack.process import free_port

SUBJECT = "pg.shop.change.public.orders.*"


async def first(count: int, live: Any) -> list[Any]:
    """The first `count` items, then the end of the subscription."""
    items: list[Any] = []
    async with asyncio.timeout(20), live as events:
        async for item in events:
            items.append(item)
            if len(items) == count:
                break
    return items


async def test_a_cut_after_every_few_events_leaves_no_hole_and_no_repeat() -> None:
    async with scripted_gateway() as gateway:
        gateway.cut_after = 3
        await gateway.publish(*range(1, 11))
        deliveries = await first(10, subscribe(gateway.url, SUBJECT, since="start"))
        assert [delivery.key["id"] for delivery in deliveries] == list(range(1, 11))
        assert gateway.connections == 4
        assert [message["since"] for message in gateway.received] == ["start", f"{EPOCH}-3", f"{EPOCH}-6", f"{EPOCH}-9"]


async def test_a_subscription_for_now_that_lost_its_link_before_the_first_event_misses_nothing() -> None:
    async with scripted_gateway() as gateway:
        states: list[str] = []
        live = asyncio.Event()

        def on_state(state: str, _error: BaseException | None) -> None:
            states.append(state)
            if state == "live":
                live.set()

        async with asyncio.timeout(20), asyncio.TaskGroup() as group:
            collecting = group.create_task(first(1, subscribe(gateway.url, SUBJECT, on_state=on_state)))
            await live.wait()
            assert gateway.server is not None
            for connection in gateway.server.connections:
                connection.transport.abort()
            await gateway.publish(1)
            deliveries = await collecting
        assert [delivery.key["id"] for delivery in deliveries] == [1]
        assert states == ["connecting", "live", "retrying", "connecting", "live"]


async def test_a_gateway_that_is_not_there_yet_is_waited_for() -> None:
    port = free_port()
    states: list[tuple[str, type[BaseException]]] = []
    refused = asyncio.Event()

    def on_state(state: str, error: BaseException | None) -> None:
        if error is not None:
            states.append((state, type(error)))
            refused.set()

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        collecting = group.create_task(first(1, subscribe(f"http://127.0.0.1:{port}", SUBJECT, since="start", on_state=on_state)))
        await refused.wait()
        async with scripted_gateway(port) as gateway:
            await gateway.publish(1)
            assert len(await collecting) == 1
    assert states[0] == ("retrying", ConnectionRefusedError)


async def test_a_link_that_fell_silent_is_found_by_a_ping_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "QUIET", 0.3)
    monkeypatch.setattr(client, "PATIENCE", 0.3)
    async with scripted_gateway() as gateway:
        await gateway.publish(1)
        async with asyncio.timeout(20), subscribe(gateway.url, SUBJECT, since="start") as events:
            assert (await anext(events)).key == {"id": 1}
            gateway.silent = 1
            await gateway.publish(2)
            assert (await anext(events)).key == {"id": 2}
        assert gateway.connections == 2
        assert {"op": "ping"} in gateway.received


async def test_a_quiet_link_that_answers_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "QUIET", 0.1)
    async with scripted_gateway() as gateway, asyncio.timeout(20), subscribe(gateway.url, SUBJECT) as events, asyncio.TaskGroup() as group:
        waiting = group.create_task(anext(events))
        while gateway.received.count({"op": "ping"}) < 3:
            await asyncio.sleep(0.02)
        await gateway.publish(1)
        assert (await waiting).key == {"id": 1}
        assert gateway.connections == 1


async def test_an_expired_position_raises_a_gap_error_from_which_one_can_go_on() -> None:
    async with scripted_gateway() as gateway:
        await gateway.publish(*range(1, 6))
        gateway.oldest = 4
        with pytest.raises(GapError) as raised:
            await first(1, subscribe(gateway.url, SUBJECT, since=f"{EPOCH}-1"))
        assert raised.value.reason == "expired"
        deliveries = await first(2, subscribe(gateway.url, SUBJECT, since=raised.value.position))
        assert [delivery.key["id"] for delivery in deliveries] == [4, 5]


async def test_a_new_epoch_after_a_cut_is_a_gap_and_tolerated_where_asked() -> None:
    async with scripted_gateway() as gateway:
        gateway.cut_after = 1
        await gateway.publish(1)
        items: list[Any] = []
        async with asyncio.timeout(20), subscribe(gateway.url, SUBJECT, since="start", tolerate_gaps=True) as events:
            async for item in events:
                items.append(item)
                if isinstance(item, Gap):
                    await gateway.publish(2)
                elif item.key == {"id": 1}:
                    gateway.epoch = "klmnopqrst"
                else:
                    break
        assert [type(item) for item in items] == [Delivery, Gap, Delivery]
        assert items[1] == Gap(SUBJECT, "klmnopqrst-1", "epoch")


async def test_unavailable_is_tried_again_and_forbidden_is_not() -> None:
    async with scripted_gateway() as gateway:
        await gateway.publish(1)
        gateway.answers = [{"op": "error", "id": "a", "code": "unavailable", "message": "NATS is away"}]
        assert len(await first(1, subscribe(gateway.url, SUBJECT, since="start"))) == 1
        assert gateway.connections == 2
        gateway.answers = [{"op": "error", "id": "a", "code": "forbidden", "message": "your token does not allow it"}]
        with pytest.raises(SubscribeError, match="forbidden: your token does not allow it"):
            await first(1, subscribe(gateway.url, SUBJECT, since="start"))
        assert gateway.connections == 3


async def test_the_token_goes_first_and_an_expired_one_is_replaced_where_there_is_a_function_for_it() -> None:
    async with scripted_gateway() as gateway:
        await gateway.publish(1)
        tokens = iter(["old", "new"])
        gateway.closes = [(4401, "the token expired")]
        await first(1, subscribe(gateway.url, SUBJECT, since="start", token=lambda: next(tokens)))
        assert [(message["op"], message.get("token")) for message in gateway.received] == [
            ("auth", "old"),
            ("subscribe", None),
            ("auth", "new"),
            ("subscribe", None),
        ]
        gateway.closes = [(4401, "the token expired")]
        with pytest.raises(SubscribeError, match="unauthenticated: the token expired"):
            await first(1, subscribe(gateway.url, SUBJECT, token="old"))


@pytest.mark.parametrize("code", [1012, 4411, 4429])
async def test_a_restart_and_an_eviction_are_resumed(code: int) -> None:
    async with scripted_gateway() as gateway:
        await gateway.publish(1)
        gateway.closes = [(code, "come back")]
        assert len(await first(1, subscribe(gateway.url, SUBJECT, since="start"))) == 1


async def test_a_loop_that_is_left_by_break_closes_its_socket() -> None:
    async with scripted_gateway() as gateway:
        await gateway.publish(1)
        async for _ in subscribe(gateway.url, SUBJECT, since="start"):
            break
        assert gateway.server is not None
        async with asyncio.timeout(5):
            while gateway.server.connections:
                await asyncio.sleep(0.01)
