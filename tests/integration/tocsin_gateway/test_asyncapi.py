"""/asyncapi.json describes what the gateway really says and takes."""

from __future__ import annotations

from typing import Any, get_args

import httpx
import msgspec
import pytest

from tests.support.asyncapi import faults
from tests.support.gateway import RunningGateway, peer
from tests.support.schema import problems, resolve
from tests.support.stream import Stream
from tocsin_gateway import protocol

ELSEWHERE = {"row", "snapshot-end", "published", "presence", "joined", "left"}
"""What needs a source, or another client: compared with the document where it is tested."""


async def document_of(gateway: RunningGateway) -> Any:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{gateway.url}/asyncapi.json")
    assert answer.headers["content-type"].startswith("application/json")
    return answer.json()


def names(document: Any, operation: str) -> set[str]:
    return {resolve(resolve(message["$ref"], document)["$ref"], document)["name"] for message in document["operations"][operation]["messages"]}


async def test_the_document_is_valid_by_asyncapi_s_own_schema_which_refuses_what_is_not(gateway: RunningGateway) -> None:
    document = await document_of(gateway)
    assert faults(document) == []
    for path, broken in (
        ("operations.ask.action", "sends"),
        ("channels.socket.bindings.ws.method", 7),
        ("info.version", None),
        ("components.schemas.Code.enum", "all"),
    ):
        spoilt = msgspec.json.decode(msgspec.json.encode(document))
        *way, last = path.split(".")
        place = spoilt
        for name in way:
            place = place.setdefault(name, {})
        place[last] = broken
        assert faults(spoilt) != [], path


async def test_the_document_names_exactly_the_messages_and_codes_of_the_protocol(gateway: RunningGateway) -> None:
    document = await document_of(gateway)
    assert document["asyncapi"] == "3.0.0"
    assert names(document, "ask") == {struct.__struct_config__.tag for struct in get_args(protocol.ClientMessage)}
    schemas = document["components"]["schemas"]
    assert tuple(schemas["Code"]["enum"]) == get_args(protocol.Code)
    assert tuple(schemas["Reason"]["enum"]) == get_args(protocol.Reason)
    assert {int(code) for code in document["info"]["x-close-codes"]} == set(protocol.Close)


async def test_each_example_fits_its_schema_and_the_gateway_reads_each_of_a_client(gateway: RunningGateway) -> None:
    document = await document_of(gateway)
    for name, message in document["components"]["messages"].items():
        for example in message["examples"]:
            assert problems(example["payload"], message["payload"], document) == [], name
    for name in names(document, "ask"):
        message = document["components"]["messages"][name]
        struct = type(protocol.decode(msgspec.json.encode(message["examples"][0]["payload"])))
        assert set(message["payload"]["properties"]) - {"op"} <= set(struct.__struct_fields__)


async def test_every_kind_of_frame_that_the_gateway_sends_fits_the_document(gateway: RunningGateway, stream: Stream) -> None:
    document = await document_of(gateway)
    await stream.publish(*[stream.subject()] * 3)
    async with peer(gateway) as client:
        frames = [client.welcome]
        frames.append(await client.subscribe(stream.subject()))
        frames.append(await client.subscribe("pg.>", "b", since="aaaa111111-99"))
        frames.append(await client.subscribe("$SYS.>", "c"))
        await client.send(op="nonsense")
        frames.append(await client.next())
        frames.append(await client.subscribe("pg.>", "d", since="start"))
        frames += await client.events(3)
        await client.send(op="auth", token="anything")
        frames.append(await client.next())
        await stream.publish(stream.subject())
        frames += await client.events(1)
        await client.send(op="unsubscribe", id="d")
        frames.append(await client.next())
        await client.send(op="ping")
        while frames[-1]["op"] != "pong":
            frames.append(await client.next())
    assert {frame["op"] for frame in frames} == names(document, "tell") - ELSEWHERE
    for frame in frames:
        message = document["components"]["messages"][frame["op"]]
        assert problems(frame, message["payload"], document) == []
        if frame["op"] == "event":
            assert problems(frame["event"]["data"], document["components"]["schemas"]["ChangeData"], document) == []


@pytest.mark.parametrize(
    "frame",
    [
        {"op": "pong", "extra": 1},
        {"op": "subscribed", "id": "a", "subject": "pg.>", "position": "aaaa111111-1", "recovered": False},
        {"op": "subscribed", "id": "a", "subject": "pg.>", "position": "aaaa111111-1", "recovered": True, "reason": "gap"},
        {"op": "subscribed", "id": "a", "subject": "pg.>", "position": "one", "recovered": True},
        {"op": "error", "code": "oops", "message": "m"},
        {"op": "event", "subject": "pg.x", "position": "aaaa111111-1", "event": {"id": "1"}},
    ],
)
async def test_the_checker_of_these_tests_refuses_what_does_not_fit(gateway: RunningGateway, frame: dict[str, Any]) -> None:
    document = await document_of(gateway)
    assert problems(frame, document["components"]["messages"][frame["op"]]["payload"], document) != []
