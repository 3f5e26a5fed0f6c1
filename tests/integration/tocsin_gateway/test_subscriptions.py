"""Subscriptions over /ws against real NATS: live, since, resume, errors, and what is said where a place can't be served."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from nats.aio.client import Client

from tests.support import servers
from tests.support.gateway import RunningGateway, numbers, peer, running_gateway
from tests.support.stream import EPOCH_ONE, EPOCH_TWO, Stream
from tests.support.stream import stream as make_stream


async def test_a_live_event_arrives_whole_with_its_subject_and_position(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        assert client.welcome["version"] == 1
        assert client.welcome["limits"]["message_bytes"] == 65_536
        answer = await client.subscribe(stream.subject(op="*"))
        assert "no event" in answer.pop("hint")
        assert answer == {"op": "subscribed", "id": "a", "subject": stream.subject(op="*"), "position": stream.position(0), "recovered": True}
        await stream.publish(stream.subject(), stream.subject("customers"), stream.subject(op="delete"), note="ü 🔔 \u2028")
        first, second = await client.events(2)
        assert (first["subject"], first["position"]) == (stream.subject(), stream.position(1))
        assert first["event"]["data"]["note"] == "ü 🔔 \u2028"
        assert (second["subject"], second["position"]) == (stream.subject(op="delete"), stream.position(3))
        assert "for" not in first
        await client.nothing_more()


@pytest.mark.parametrize("since", ["now", "start"])
async def test_who_asks_for_what_never_came_is_told_and_nobody_else(gateway: RunningGateway, stream: Stream, since: str) -> None:
    await stream.publish(stream.subject())
    async with peer(gateway) as client:
        for number, (subject, never) in enumerate(
            [
                ("pg.>", False),
                (stream.subject(op="*"), False),
                (stream.subject("ordres", "*"), True),
                (stream.subject(op="delete"), True),
                ("pg.elsewhere.>", True),
            ]
        ):
            answer = await client.subscribe(subject, str(number), since=since)
            while answer["op"] != "subscribed":
                answer = await client.next()
            assert (f"no event of {subject} yet" in answer.get("hint", "")) == never, answer
            assert never == ("hint" in answer)
        answer = await client.subscribe(stream.subject("ordres", "*"), "resumed", since=stream.position(1))
        assert "hint" not in answer


@pytest.mark.parametrize(
    ("tail", "expected"),
    [
        ("change.>", [1, 2, 3, 4]),
        ("change.public.orders.*", [1]),
        ("change.public.orders.*.42", [2]),
        ("change.*.customers.insert", [4]),
        (">", [1, 2, 3, 4, 5]),
    ],
)
async def test_wildcards_choose(gateway: RunningGateway, stream: Stream, tail: str, expected: list[int]) -> None:
    async with peer(gateway) as client:
        await client.subscribe(f"pg.{stream.source}.{tail}")
        subject = stream.subject
        await stream.publish(
            subject(), subject("orders", "insert", "42"), subject("orders", "insert", "43"), subject("customers"), f"pg.{stream.source}.event.x"
        )
        assert numbers(await client.events(len(expected))) == expected
        await client.nothing_more()


async def test_the_prefix_alone_means_everything_but_the_canary(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        await client.subscribe("pg.>")
        await stream.publish(f"_tocsin.{stream.source}.canary", stream.subject())
        assert numbers(await client.events(1)) == [2]


async def test_an_event_that_two_subscriptions_match_comes_once_and_unsubscribe_ends_one(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        await client.subscribe(stream.subject(op="*"), "a")
        await client.subscribe("pg.>", "b")
        await stream.publish(stream.subject(), stream.subject("customers"))
        assert numbers(await client.events(2)) == [1, 2]
        await client.send(op="unsubscribe", id="b")
        assert await client.next() == {"op": "unsubscribed", "id": "b"}
        await stream.publish(stream.subject("customers"), stream.subject())
        assert numbers(await client.events(1)) == [4]
        await client.nothing_more()


@pytest.mark.parametrize(
    ("message", "code", "words"),
    [
        ("nope", "bad-message", "not a JSON object"),
        ("[1]", "bad-message", "object"),
        ('{"op": "dance"}', "bad-message", "auth, subscribe, unsubscribe, publish, ping"),
        ('{"id": "a"}', "bad-message", "op"),
        ('{"op": "subscribe", "id": "a"}', "bad-message", "subject"),
        ('{"op": "subscribe", "id": 7, "subject": "pg.>"}', "bad-message", "id"),
        ('{"op": "subscribe", "id": "", "subject": "pg.>"}', "bad-message", "1 to 128"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.>", "sinse": "now"}', "bad-message", "sinse"),
        ('{"op": "subscribe", "id": "a", "subject": "pg..x"}', "bad-subject", "empty token"),
        ('{"op": "subscribe", "id": "a", "subject": ""}', "bad-subject", "empty"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.>.x"}', "bad-subject", "last token"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.a b"}', "bad-subject", "%XX"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.x\\r\\nPUB y 1"}', "bad-subject", "not allowed"),
        ('{"op": "subscribe", "id": "a", "subject": ">"}', "forbidden", "pg."),
        ('{"op": "subscribe", "id": "a", "subject": "*.>"}', "forbidden", "pg."),
        ('{"op": "subscribe", "id": "a", "subject": "$SYS.>"}', "forbidden", "pg."),
        ('{"op": "subscribe", "id": "a", "subject": "$JS.API.>"}', "forbidden", "pg."),
        ('{"op": "subscribe", "id": "a", "subject": "_INBOX.>"}', "forbidden", "pg."),
        ('{"op": "subscribe", "id": "a", "subject": "_tocsin.>"}', "forbidden", "pg."),
        ('{"op": "subscribe", "id": "a", "subject": "pg.>", "since": "yesterday"}', "bad-since", "5m"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.>", "since": "aaaa111111--5"}', "bad-since", "position"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.>", "since": "aaaa111111-99999999999999999999"}', "bad-since", "position"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.>", "since": "999999999999d"}', "bad-since", "age"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.>", "since": "snapshot"}', "bad-since", "snapshot"),
        ('{"op": "subscribe", "id": "a", "subject": "pg.>", "where": {"id": 1}}', "bad-where", "where"),
        ('{"op": "unsubscribe", "id": "zz"}', "unknown-id", "zz"),
    ],
)
async def test_a_bad_message_is_answered_clearly_and_the_socket_lives_on(gateway: RunningGateway, stream: Stream, message: str, code: str, words: str) -> None:
    async with peer(gateway) as client:
        await client.socket.send(message)
        answer = await client.next()
        assert (answer["op"], answer["code"]) == ("error", code)
        assert words in answer["message"]
        await client.subscribe(stream.subject())
        await stream.publish(stream.subject())
        assert len(await client.events(1)) == 1


async def test_an_id_can_be_used_once_at_a_time(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        await client.subscribe(stream.subject(), "a")
        assert (await client.subscribe(stream.subject("x"), "a"))["code"] == "duplicate-id"
        await client.send(op="unsubscribe", id="a")
        await client.until("unsubscribed")
        assert (await client.subscribe(stream.subject("x"), "a"))["op"] == "subscribed"


async def test_a_socket_has_a_bounded_number_of_subscriptions(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        most = client.welcome["limits"]["subscriptions"]
        for number in range(most):
            await client.send(op="subscribe", id=str(number), subject=stream.subject("t", "insert", str(number)))
            assert (await client.next())["op"] == "subscribed"
        assert (await client.subscribe(stream.subject(), "one more"))["code"] == "limit"


async def test_since_start_replays_what_matches_and_goes_on_live(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish_many([stream.subject("orders" if number % 3 else "customers") for number in range(900)])
    async with peer(gateway) as client:
        answer = await client.subscribe(stream.subject(), since="start")
        assert (answer["recovered"], answer["position"]) == (True, stream.position(0))
        wanted = [number for subject, number, _ in stream.sent if subject == stream.subject()]
        replayed = await client.events(len(wanted))
        assert numbers(replayed) == wanted
        assert all(frame["for"] == {"a": None} for frame in replayed)
        await stream.publish(stream.subject())
        (live,) = await client.events(1)
        assert numbers([live]) == [901]


async def test_a_position_resumes_exactly_behind_it(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 10)
    async with peer(gateway) as client:
        answer = await client.subscribe(stream.subject(), since=stream.position(7))
        assert (answer["recovered"], answer["position"]) == (True, stream.position(7))
        assert numbers(await client.events(3)) == [8, 9, 10]
        await client.nothing_more()
        assert (await client.subscribe(stream.subject(), "b", since=stream.position(10)))["recovered"] is True
        await client.nothing_more()


async def test_an_age_begins_with_the_first_event_that_is_not_older(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(stream.subject(), stream.subject())
    await asyncio.sleep(1.2)
    await stream.publish(stream.subject(), stream.subject())
    async with peer(gateway) as client:
        answer = await client.subscribe(stream.subject(), since="1s")
        assert (answer["recovered"], answer["position"]) == (True, stream.position(2))
        assert numbers(await client.events(2)) == [3, 4]
        assert (await client.subscribe(stream.subject(), "b", since="1h"))["recovered"] is True
        assert numbers(await client.events(4)) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("since", "reason"),
    [("bbbb222222-3", "epoch"), ("aaaa111111-99", "epoch"), ("aaaa111111-9223372036854775807", "epoch"), ("aaaa111111-2", "expired"), ("1h", "expired")],
)
async def test_a_place_that_cannot_be_served_is_said_and_delivery_begins_now(gateway: RunningGateway, stream: Stream, since: str, reason: str) -> None:
    await stream.publish(*[stream.subject()] * 10)
    await asyncio.sleep(0.01)
    await stream.purge(keep=4)
    async with peer(gateway) as client:
        answer = await client.subscribe(stream.subject(), since=since)
        assert answer == {
            "op": "subscribed",
            "id": "a",
            "subject": stream.subject(),
            "position": stream.position(10),
            "recovered": False,
            "reason": reason,
        }
        await stream.publish(stream.subject())
        assert numbers(await client.events(1)) == [11]


async def test_a_position_just_before_the_oldest_event_is_still_whole(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 10)
    await stream.purge(keep=4)
    async with peer(gateway) as client:
        assert (await client.subscribe(stream.subject(), since=stream.position(6)))["recovered"] is True
        assert numbers(await client.events(4)) == [7, 8, 9, 10]


async def test_since_start_of_a_purged_stream_begins_with_what_is_there(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 5)
    await stream.purge(keep=0)
    async with peer(gateway) as client:
        answer = await client.subscribe(stream.subject(), since="start")
        assert (answer["recovered"], answer["position"]) == (True, stream.position(5))
        await stream.publish(stream.subject())
        assert numbers(await client.events(1)) == [6]


async def test_a_quiet_subscription_learns_its_position_with_a_pong(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        await client.subscribe(stream.subject())
        await stream.publish(*[stream.subject("customers")] * 3)
        await client.subscribe(stream.subject("other"), "b")  # the gateway looks at the stream when somebody joins
        await client.send(op="ping")
        _, positions = await client.until("pong")
        assert {frame["id"]: frame["position"] for frame in positions} == {"a": stream.position(3), "b": stream.position(3)}
        async with peer(gateway) as later:
            assert (await later.subscribe(stream.subject(), since=stream.position(3)))["recovered"] is True


async def test_the_copy_under_the_old_route_reaches_only_who_did_not_get_the_original(gateway: RunningGateway, stream: Stream) -> None:
    old, new = stream.subject("orders", "update", "1"), stream.subject("orders", "update", "2")
    async with peer(gateway) as everything, peer(gateway) as former, peer(gateway) as both:
        await everything.subscribe(stream.subject(op="update") + ".*")
        await former.subscribe(old)
        await both.subscribe(old, "a")
        await both.subscribe(new, "b")
        await stream.publish(new, copy=old)
        await stream.publish(new, old)
        assert [(frame["subject"], *numbers([frame])) for frame in await everything.events(3)] == [(new, 1), (new, 2), (old, 3)]
        assert [(frame["subject"], *numbers([frame])) for frame in await former.events(2)] == [(old, 1), (old, 3)]
        assert [(frame["subject"], *numbers([frame])) for frame in await both.events(3)] == [(new, 1), (new, 2), (old, 3)]
        await everything.nothing_more()
    async with peer(gateway) as late:
        await late.subscribe(stream.subject(op="update") + ".*", since="start")
        assert numbers(await late.events(3)) == [1, 2, 3]
        await late.subscribe(old, "b", since="start")
        assert [(frame["subject"], *numbers([frame])) for frame in await late.events(2)] == [(old, 1), (old, 3)]


async def test_a_resume_between_an_original_and_its_copy_does_not_bring_the_copy(gateway: RunningGateway, stream: Stream) -> None:
    old, new = stream.subject("orders", "update", "1"), stream.subject("orders", "update", "2")
    await stream.publish(new, copy=old)
    async with peer(gateway) as client:
        await client.subscribe(stream.subject(op="update") + ".*", since=stream.position(1))
        await stream.publish(new)
        assert numbers(await client.events(1)) == [2]


async def test_a_stranger_in_the_stream_is_never_forwarded(gateway: RunningGateway, stream: Stream) -> None:
    async with peer(gateway) as client:
        await client.subscribe(stream.subject())
        await stream.client.jetstream().publish(stream.subject(), b'"}},"op":"subscribed"')
        await stream.publish(stream.subject())
        assert numbers(await client.events(1)) == [1]


async def test_a_recreated_stream_is_told_to_whoever_listens(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 5)
    async with peer(gateway) as client, peer(gateway) as two:
        await client.subscribe(stream.subject())
        await two.subscribe(stream.subject(), "a")
        await two.subscribe("pg.>", "b")
        await stream.recreate(EPOCH_TWO)
        frame, before = await client.until("subscribed", patience=40)
        assert before == []
        assert frame == {"op": "subscribed", "id": "a", "subject": stream.subject(), "position": stream.position(0), "recovered": False, "reason": "epoch"}
        assert {(await two.until("subscribed"))[0]["id"] for _ in range(2)} == {"a", "b"}
        await stream.publish(stream.subject(), stream.subject())
        for listening in (client, two):
            assert [frame["position"] for frame in await listening.events(2)] == [stream.position(1), stream.position(2)]


async def test_a_recreated_stream_that_is_longer_than_the_old_one_does_not_pass_for_it(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(*[stream.subject()] * 3)
    async with peer(gateway) as client:
        await client.subscribe(stream.subject())
        await stream.recreate(EPOCH_TWO)
        await stream.publish(*[stream.subject()] * 8)
        frame, before = await client.until("subscribed", patience=40)
        assert (before, frame["recovered"], frame["reason"]) == ([], False, "epoch")
        await stream.publish(stream.subject())
        told = int(frame["position"].partition("-")[2])
        assert numbers(await client.events(9 - told)) == [number for _, number, sequence in stream.sent if sequence > told]


async def test_old_messages_behind_a_new_epoch_do_not_stop_the_gateway(gateway: RunningGateway, stream: Stream) -> None:
    """Messages of the old epoch may still be unread when the gateway learns of the new one."""
    async with peer(gateway) as client, peer(gateway) as other:
        await client.subscribe(stream.subject())
        await stream.begin_epoch(EPOCH_TWO)
        await other.subscribe("pg.>")  # the gateway looks at the stream when somebody joins
        frame = await client.next()
        assert (frame["op"], frame["recovered"], frame["reason"]) == ("subscribed", False, "epoch")
        stream.epoch = EPOCH_ONE
        await stream.publish(stream.subject())
        stream.epoch = EPOCH_TWO
        await stream.publish(stream.subject())
        for listening in (client, other):
            found = await listening.events(2)
            assert numbers(found) == [1, 2]
            assert [frame["position"] for frame in found] == [stream.position(1), stream.position(2)]


async def test_a_replay_across_epochs_can_be_resumed_at_each_of_its_positions(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(stream.subject(), stream.subject())
    await stream.begin_epoch(EPOCH_TWO)
    await stream.publish(stream.subject())
    async with peer(gateway) as client:
        await client.subscribe(stream.subject(), since="start")
        found = await client.events(3)
        answer = await client.subscribe(stream.subject(), "b", since=found[0]["position"])
        assert answer["recovered"] is True
        assert numbers(await client.events(2)) == [2, 3]


async def test_without_a_stream_nobody_is_told_subscribed_until_it_comes(nats: Client, nats_server: servers.Server, source_name: str) -> None:
    async with running_gateway(nats_server.url, source_name, ready=False) as running:
        await running.until_metric("tocsin_gateway_events_total", 0.0)
        async with peer(running) as client:
            answer = await client.subscribe("pg.>")
            assert (answer["op"], answer["code"]) == ("error", "unavailable")
            made = await make_stream(nats, source_name)
            await running.until_ready()
            assert (await client.subscribe("pg.>"))["op"] == "subscribed"
            await made.publish(made.subject())
            assert numbers(await client.events(1)) == [1]
        await made.delete()


async def test_the_query_subscribes_at_once(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(stream.subject())
    async with peer(gateway, f"?subject=pg..x&subject={stream.subject()}&since=start") as client:
        frames: list[Any] = [await client.next() for _ in range(3)]
        assert [(frame["op"], frame.get("code")) for frame in frames] == [("error", "bad-subject"), ("subscribed", None), ("event", None)]
