"""`GET /events`: pages of history that are whole, or say that they are not."""

from __future__ import annotations

import time
from typing import Any

import httpx
import jwt
import msgspec
import pytest

from tests.support import servers
from tests.support.gateway import RunningGateway, numbers, running_gateway
from tests.support.stream import Stream

SECRET = "a secret of at least thirty-two bytes!"


async def get(gateway: RunningGateway, subject: str, *, status: int = 200, headers: dict[str, str] | None = None, **query: Any) -> dict[str, Any]:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{gateway.url}/events", params={"subject": subject, **query}, headers=headers)
        assert answer.status_code == status, answer.text
        return msgspec.json.decode(answer.content, type=dict[str, Any])


async def test_pages_follow_one_another_without_a_hole_or_a_repeat(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish_many([stream.subject(), stream.subject("customers")] * 600)
    since, found, pages = "start", [], 0
    while True:
        page = await get(gateway, stream.subject(), since=since, limit=250)
        assert page["recovered"]
        found += numbers(page["events"])
        since, pages = page["next"], pages + 1
        if not page["more"]:
            break
    assert found == [number for subject, number, _ in stream.sent if subject == stream.subject()]
    assert pages == 3
    assert page["next"] == stream.position(stream.last), "what does not match needs not be looked at again"
    await stream.publish(stream.subject())
    after = await get(gateway, stream.subject(), since=since)
    assert numbers(after["events"]) == [stream.number]
    assert after["events"][0].keys() == {"op", "subject", "position", "event"}
    assert (await get(gateway, stream.subject(), since="now"))["events"] == []
    assert len((await get(gateway, stream.subject(), since="5m", limit=7))["events"]) == 7


async def test_a_page_that_ends_at_its_limit_exactly_says_whether_there_is_more(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish(stream.subject(), stream.subject())
    assert [(await get(gateway, stream.subject(), limit=limit))["more"] for limit in (1, 2, 3)] == [True, False, False]


async def test_where_and_select_and_what_the_event_did(gateway: RunningGateway, stream: Stream) -> None:
    for customer in (42, 7, 42):
        await stream.publish(stream.subject(), new={"id": 1, "customer": customer})
    page = await get(gateway, "pg.>", where='{"customer": {"eq": 42}}', select="customer")
    assert [(frame["for"], frame["event"]["data"]["new"]) for frame in page["events"]] == [({"0": "enter"}, {"customer": 42})] * 2


async def test_what_is_not_there_whole_is_not_there_in_part(gateway: RunningGateway, stream: Stream) -> None:
    await stream.publish_many([stream.subject()] * 20)
    first = stream.position(stream.sent[0][2])
    await stream.purge(keep=5)
    end = stream.position(stream.last)
    for since, reason in ((first, "expired"), ("cccc333333-1", "epoch"), (stream.position(10_000), "epoch")):
        page = await get(gateway, stream.subject(), since=since)
        assert (page["recovered"], page["reason"], page["events"], page["next"], page["more"]) == (False, reason, [], end, False)
    assert len((await get(gateway, stream.subject(), since="start"))["events"]) == 5


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ({"subject": ""}, "bad-subject"),
        ({"since": "yesterday"}, "bad-since"),
        ({"since": "snapshot"}, "bad-since"),
        ({"where": '{"a": 5}'}, "bad-where"),
        ({"where": "{"}, "bad-where"),
        ({"limit": "0"}, "bad-message"),
        ({"limit": "1001"}, "bad-message"),
        ({"limit": "-1"}, "bad-message"),
        ({"limit": "\u0661"}, "bad-message"),
    ],
)
async def test_a_bad_question_is_answered_clearly(gateway: RunningGateway, query: dict[str, str], code: str) -> None:
    asked = {"subject": "pg.>", **query}
    options: dict[str, Any] = asked
    answer = await get(gateway, options.pop("subject"), status=400, **options)
    assert answer["code"] == code
    assert answer["message"]


async def test_history_is_for_whom_the_token_says(stream: Stream, nats_server: servers.Server) -> None:
    claims = {"exp": int(time.time()) + 60, "subscribe": ["pg.*.change.>"], "rows": {"public.orders": {"customer": {"eq": 42}}}}
    bearer = {"authorization": f"Bearer {jwt.encode(claims, SECRET, 'HS256')}"}
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as gateway:
        await stream.publish(stream.subject(), new={"id": 1, "customer": 42})
        await stream.publish(stream.subject(), new={"id": 2, "customer": 7})
        assert (await get(gateway, stream.subject(), status=401))["code"] == "unauthenticated"
        assert (await get(gateway, "pg.>", status=403, headers=bearer))["code"] == "forbidden"
        page = await get(gateway, stream.subject(), headers=bearer)
        assert [frame["event"]["data"]["new"]["id"] for frame in page["events"]] == [1]
        foreign = await get(gateway, stream.subject(), status=403, headers={"origin": "https://elsewhere.example", **bearer})
        assert foreign["code"] == "forbidden"
        await stream.publish(stream.subject("orders", "update"), op="update", key={"id": 1}, new=None, truncated=True)
        page = await get(gateway, f"pg.{stream.source}.change.>", headers=bearer)
        assert (page["recovered"], page["reason"], len(page["events"])) == (False, "gap", 1)
