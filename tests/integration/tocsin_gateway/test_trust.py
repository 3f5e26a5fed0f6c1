"""What a token opens, how it comes in, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jwt
import msgspec
import pytest
import pytest_asyncio
from nats.aio.client import Client
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from tests.support import servers
from tests.support.gateway import Peer, RunningGateway, numbers, peer, running_gateway
from tests.support.key_server import ec_key, key_server, rsa_key
from tests.support.stream import Stream
from tocsin import revocation
from tocsin_gateway.admission import tickets
from tocsin_gateway.stream.history import History, Page

SECRET = "a-secret-of-at-least-thirty-two-bytes"


def token(**claims: Any) -> str:
    now = int(time.time())
    return jwt.encode({"exp": now + 600, "iat": now - 60, "subscribe": ["pg.>"], **claims}, SECRET, "HS256")


@pytest_asyncio.fixture
async def guarded(stream: Stream, nats_server: servers.Server) -> AsyncIterator[RunningGateway]:
    async with asyncio.timeout(100), running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as running:
        yield running
    for name in (revocation.stream_name(stream.name), tickets.stream_name(stream.name)):
        with contextlib.suppress(Exception):
            await stream.client.jetstream().delete_stream(name)


@contextlib.asynccontextmanager
async def admitted(gateway: RunningGateway, **claims: Any) -> AsyncIterator[Peer]:
    """A client whose token was accepted."""
    async with peer(gateway) as client:
        await client.send(op="auth", token=token(**claims))
        assert (await client.next())["op"] == "authenticated"
        yield client


async def revoke(stream: Stream, **what: Any) -> None:
    """As anybody with the right does: a plain message."""
    await stream.client.publish(revocation.subject(stream.source), msgspec.json.encode(what))
    await stream.client.flush()


async def refused(gateway: RunningGateway, text: str) -> None:
    async with peer(gateway) as client:
        await client.send(op="auth", token=text)
        assert (await client.next())["code"] == "unauthenticated"
        assert (await client.closed())[0] == 4401


async def ticket_for(gateway: RunningGateway, text: str) -> str:
    async with httpx.AsyncClient() as client:
        answer = await client.post(f"{gateway.url}/tickets", headers={"authorization": f"Bearer {text}"})
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store"), answer.text
    given: str = answer.json()["ticket"]
    return given


async def first_of_sse(gateway: RunningGateway, query: str, headers: dict[str, str] | None = None) -> tuple[int, str]:
    """(status, the first line or the refusal)"""
    async with httpx.AsyncClient(timeout=10) as client, client.stream("GET", f"{gateway.url}/sse?{query}", headers=headers) as answer:
        if answer.status_code != 200:
            return answer.status_code, (await answer.aread()).decode()
        return 200, await anext(answer.aiter_lines())


async def test_keys_rotate_under_a_living_gateway(stream: Stream, nats_server: servers.Server) -> None:
    one, two = rsa_key("one"), ec_key("two")
    async with key_server(one) as keys, running_gateway(nats_server.url, stream.source, jwks_url=keys.url) as gateway, peer(gateway) as client:
        await client.send(op="auth", token=one.token())
        assert (await client.next())["op"] == "authenticated"
        assert (await client.subscribe(stream.subject()))["op"] == "subscribed"
        keys.keys = [two.public]
        # At least five seconds lie between two requests for keys, whatever tokens name.
        async with asyncio.timeout(15):
            while True:
                async with peer(gateway) as other:
                    await other.send(op="auth", token=two.token())
                    if (await other.next())["op"] == "authenticated":
                        break
                await asyncio.sleep(0.3)
        await refused(gateway, one.token())
        await stream.publish(stream.subject())
        assert numbers(await client.events(1)) == [1]


async def test_the_verb_revokes(guarded: RunningGateway, stream: Stream, nats_server: servers.Server) -> None:
    async def run(*arguments: str) -> tuple[int | None, str]:
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tocsin.cli.main", "revoke", "--source", stream.source, "--nats-url", nats_server.url, *arguments),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await child.communicate()
        return child.returncode, output.decode()

    async with admitted(guarded, sub="alice") as alice, admitted(guarded, sub="bob", iat=int(time.time())) as bob:
        assert (await run("--user", "alice"))[0] == 0
        assert (await alice.closed(patience=1))[0] == 4401
        await bob.nothing_more()
        assert (await run("--before", "now"))[0] == 0
        assert (await bob.closed(patience=1))[0] == 4401
    for wrong in ((), ("--token-id", "x", "--user", "y"), ("--before", "soon")):
        code, output = await run(*wrong)
        assert (code, "fix:" in output) == (2, True), output


async def test_a_token_revoked_while_a_page_of_history_is_read_does_not_get_it(
    guarded: RunningGateway, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    await stream.publish(stream.subject())
    reading, revoked = asyncio.Event(), asyncio.Event()
    page = History.page

    async def slow(self: History, *asked: Any) -> Page:
        found = await page(self, *asked)
        reading.set()
        await revoked.wait()
        return found

    monkeypatch.setattr(History, "page", slow)
    async with admitted(guarded, sub="alice", jti="t1") as witness, httpx.AsyncClient(timeout=10) as http, asyncio.TaskGroup() as group:
        headers = {"authorization": f"Bearer {token(sub='alice', jti='t1')}"}
        asked = group.create_task(http.get(f"{guarded.url}/events", params={"subject": stream.subject()}, headers=headers))
        await reading.wait()
        await revoke(stream, jti="t1")
        assert (await witness.closed(patience=2))[0] == 4401
        revoked.set()
        answer = await asked
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize("what", [{"jti": "t1"}, {"sub": "alice"}, {"before": 0}])
async def test_a_revoked_token_ends_within_a_second_and_others_live(guarded: RunningGateway, stream: Stream, what: dict[str, Any]) -> None:
    claims = {"sub": "alice", "jti": "t1"}
    if "before" in what:
        what = {"before": time.time() - 30}
    async with admitted(guarded, **claims) as client, admitted(guarded, sub="bob", jti="t2", iat=int(time.time())) as witness:
        await client.subscribe(stream.subject())
        await witness.subscribe(stream.subject())
        async with httpx.AsyncClient(timeout=10) as http:
            headers = {"authorization": f"Bearer {token(**claims)}"}
            async with http.stream("GET", f"{guarded.url}/sse?subject={stream.subject()}", headers=headers) as events:
                lines = events.aiter_lines()
                await anext(lines)
                ticket = await ticket_for(guarded, token(**claims))
                began = time.monotonic()
                await revoke(stream, **what)
                assert (await client.closed(patience=1))[0] == 4401
                async with asyncio.timeout(1):
                    with contextlib.suppress(StopAsyncIteration):
                        while True:
                            await anext(lines)
                assert time.monotonic() - began < 1
        await refused(guarded, token(**claims))
        assert (await first_of_sse(guarded, f"subject={stream.subject()}&ticket={ticket}"))[0] == 401
        assert (await first_of_sse(guarded, f"subject={stream.subject()}", headers))[0] == 401
        await stream.publish(stream.subject())
        assert numbers(await witness.events(1)) == [1]


async def test_a_gateway_that_starts_later_knows_what_was_revoked(stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as gateway:
        await refused(gateway, "x")
        async with admitted(gateway, jti="t1", sub="alice") as client:
            await revoke(stream, jti="t1")
            await client.closed()
        await revoke(stream, sub="alice", before=time.time() - 30)
        await revoke(stream, jti="")
        await revoke(stream, nothing="of this")
        await stream.client.publish(revocation.subject(stream.source), b"\xff not JSON")
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as gateway:
        await refused(gateway, token(jti="t1"))
        await refused(gateway, token(jti="t3", sub="alice"))
        # Who logs in again is welcome.
        async with admitted(gateway, jti="t1-new", sub="alice", iat=int(time.time())):
            pass
        async with admitted(gateway, sub="bob"):
            pass
    await stream.client.jetstream().delete_stream(revocation.stream_name(stream.name))


async def test_what_was_revoked_while_nats_was_away_is_learned(stream: Stream, nats_server: servers.Server) -> None:
    """The gateway's own subscription is not the only way: it reads the stream again every few seconds."""
    from tocsin import broker

    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as gateway, admitted(gateway, jti="t1") as client:
        async with broker.connect([nats_server.url], name="revoke") as link:
            await revocation.revoke(link, stream.name, stream.source, revocation.Revocation(jti="t1"))
        assert (await client.closed())[0] == 4401
    await stream.client.jetstream().delete_stream(revocation.stream_name(stream.name))


async def test_a_new_token_on_a_living_socket_keeps_what_it_still_allows(guarded: RunningGateway, stream: Stream) -> None:
    async with admitted(guarded, exp=int(time.time()) + 2) as client:
        assert (await client.subscribe(stream.subject(), "kept"))["op"] == "subscribed"
        assert (await client.subscribe("pg.>", "lost"))["op"] == "subscribed"
        await client.send(op="auth", token=token(subscribe=[stream.subject()]))
        frames = [await client.next() for _ in range(3)]
        assert [frame["op"] for frame in frames] == ["authenticated", "error", "unsubscribed"]
        assert (frames[1]["id"], frames[1]["code"], frames[2]["id"]) == ("lost", "forbidden", "lost")
        # The first token's end is no longer this socket's.
        await asyncio.sleep(2.2)
        await stream.publish(stream.subject("customers"), stream.subject())
        assert numbers(await client.events(1)) == [2]


async def test_a_denied_part_refuses_the_whole_pattern(guarded: RunningGateway, stream: Stream) -> None:
    async with admitted(guarded, deny=[f"pg.{stream.source}.change.public.salaries.>"]) as client:
        for asked in ("pg.>", stream.subject("salaries"), f"pg.{stream.source}.change.*.salaries.insert"):
            assert (await client.subscribe(asked))["code"] == "forbidden"
        assert (await client.subscribe(stream.subject()))["op"] == "subscribed"


async def test_a_token_in_the_subprotocol_is_never_answered(guarded: RunningGateway, stream: Stream) -> None:
    text = token()
    offered = [Subprotocol("tocsin"), Subprotocol(f"bearer.{text}")]
    async with connect(guarded.socket_url, subprotocols=offered, compression=None, proxy=None) as socket:
        assert socket.subprotocol == "tocsin"
        assert socket.response is not None
        assert text not in str(socket.response.headers)
        client = Peer(socket)
        assert [(await client.next())["op"] for _ in range(2)] == ["welcome", "authenticated"]
        assert (await client.subscribe(stream.subject()))["op"] == "subscribed"


@pytest.mark.parametrize("name", ["token", "access_token", "jwt", "Authorization"])
async def test_a_token_in_the_address_is_refused_with_the_way_out(guarded: RunningGateway, stream: Stream, name: str) -> None:
    query = f"{name}={token()}&subject={stream.subject()}"
    async with peer(guarded, f"?{query}") as client:
        answer = await client.next()
        assert (answer["code"], "POST /tickets" in answer["message"]) == ("unauthenticated", True)
        assert (await client.closed())[0] == 4401
    assert (await first_of_sse(guarded, query))[0] == 401


async def test_a_ticket_lets_one_in_once_with_the_token_s_rights_and_end(guarded: RunningGateway, stream: Stream) -> None:
    ticket = await ticket_for(guarded, token(subscribe=[stream.subject()], exp=int(time.time()) + 3))
    async with peer(guarded, f"?ticket={ticket}&subject={stream.subject()}") as client:
        assert [(await client.next())["op"] for _ in range(2)] == ["authenticated", "subscribed"]
        assert (await client.subscribe("pg.>", "b"))["code"] == "forbidden"
        async with peer(guarded, f"?ticket={ticket}") as other:
            assert (await other.next())["code"] == "unauthenticated"
            assert (await other.closed())[0] == 4401
        assert (await client.closed())[0] == 4401
    ticket = await ticket_for(guarded, token())
    assert (await first_of_sse(guarded, f"subject={stream.subject()}&ticket={ticket}")) == (200, "event: subscribed")
    assert (await first_of_sse(guarded, f"subject={stream.subject()}&ticket={ticket}"))[0] == 401


async def test_of_many_that_come_with_one_ticket_to_two_gateways_one_gets_in(guarded: RunningGateway, stream: Stream, nats_server: servers.Server) -> None:
    async with running_gateway(nats_server.url, stream.source, jwt_secret=SECRET) as second:
        for _ in range(5):
            ticket = await ticket_for(guarded, token())
            answers = await asyncio.gather(
                *(first_of_sse(gateway, f"subject={stream.subject()}&ticket={ticket}") for gateway in (guarded, second) for _ in range(10))
            )
            assert sorted(status for status, _ in answers) == [200] + [401] * 19


async def test_tickets_cost_a_token_and_nothing_else_buys_one(guarded: RunningGateway) -> None:
    ticket = await ticket_for(guarded, token())
    async with httpx.AsyncClient(base_url=guarded.url) as client:
        assert (await client.post("/tickets")).status_code == 401
        assert (await client.post(f"/tickets?ticket={ticket}")).status_code == 401
        assert (await client.post(f"/tickets?token={token()}")).status_code == 401
        assert (await client.post("/tickets", headers={"authorization": f"Bearer {ticket}"})).status_code == 401
        assert (await client.post("/tickets", headers={"authorization": f"Bearer {token(exp=1)}"})).status_code == 401
        foreign = await client.post("/tickets", headers={"authorization": f"Bearer {token()}", "origin": "https://evil.example"})
        assert (foreign.status_code, "access-control-allow-origin" in foreign.headers) == (403, False)
        assert (await client.options("/tickets", headers={"origin": "https://evil.example"})).status_code == 403
        assert (await client.options("/tickets", headers={"origin": guarded.url})).headers["access-control-allow-origin"] == guarded.url


async def test_what_nats_keeps_of_a_ticket_opens_nothing(guarded: RunningGateway, stream: Stream) -> None:
    text = token(sub="alice")
    ticket = await ticket_for(guarded, text)
    kept = await stream.client.jetstream().get_last_msg(tickets.stream_name(stream.name), tickets.subjects(stream.source))
    assert kept.subject is not None
    assert kept.data is not None
    assert ticket not in kept.subject + kept.data.decode()
    assert text.rpartition(".")[2] not in kept.data.decode()
    assert (await first_of_sse(guarded, f"subject={stream.subject()}&ticket={kept.subject.rpartition('.')[2]}"))[0] == 401


async def test_neither_tokens_nor_tickets_get_into_the_log(stream: Stream, nats_server: servers.Server) -> None:
    """A process of its own, with every logger of Python switched on."""
    from tocsin.stack.process import free_port

    running = RunningGateway(free_port())
    program = "import logging; logging.basicConfig(level=1); from tocsin.cli.main import main; main()"
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, "gateway", "--port", str(running.port), "--source", stream.source, "--nats-url", nats_server.url),
        env={**os.environ, "TOCSIN_JWT_SECRET": SECRET, "TOCSIN_LOG_LEVEL": "debug"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    good, bad, old = token(sub="alice"), token()[:-3] + "xyz", token(exp=1)
    try:
        await running.until_ready()
        secrets = [good, bad, old, SECRET]
        for text in (good, bad, old):
            async with peer(running) as client:
                await client.send(op="auth", token=text)
                await client.next()
                with contextlib.suppress(ConnectionClosed):
                    await client.send(op="nonsense", token=text)
            async with peer(running, additional_headers={"Authorization": f"Bearer {text}"}) as client:
                await client.next()
            async with connect(running.socket_url, subprotocols=[Subprotocol("tocsin"), Subprotocol(f"bearer.{text}")], proxy=None) as socket:
                await socket.recv()
            async with peer(running, f"?token={text}") as client:
                await client.next()
            await first_of_sse(running, f"access_token={text}&subject=pg.%3E")
            async with httpx.AsyncClient(base_url=running.url) as http:
                await http.post("/tickets", headers={"authorization": f"Bearer {text}"})
                await http.get(f"/nowhere?token={text}", headers={"authorization": f"Bearer {text}"})
                await http.get("/sse", params={"subject": "pg.>", "token": text}, headers={"origin": "https://evil.example"})
        for _ in range(2):
            ticket = await ticket_for(running, good)
            secrets.append(ticket)
            await first_of_sse(running, f"ticket={ticket}&subject=pg.%3E")
            async with peer(running, f"?ticket={ticket}") as client:
                await client.next()
        await revoke(stream, sub="alice")
        await refused(running, good)
    finally:
        child.terminate()
        output, _ = await child.communicate()
    log = output.decode()
    assert "gateway" in log, "nothing was logged, so nothing was tested"
    for secret in secrets:
        parts = [secret, *(part for part in secret.split(".") if len(part) > 40)]
        assert not [part for part in parts if part in log], log


async def test_without_a_secret_tokens_tickets_and_revocations_are_not_needed(gateway: RunningGateway, stream: Stream, nats: Client) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        answer = await client.post("/tickets")
        assert (answer.status_code, answer.json()["ticket"]) == (200, None)
    assert (await first_of_sse(gateway, f"subject={stream.subject()}&ticket=any"))[0] == 200
    names = [info.config.name for info in await nats.jetstream().streams_info()]
    assert not [name for name in names if name and name.startswith(f"{stream.name}_")]


async def test_the_subprotocol_cloudevents_json_has_one_bare_cloudevent_in_each_message(guarded: RunningGateway, stream: Stream) -> None:
    offered = [Subprotocol("cloudevents.json"), Subprotocol("tocsin"), Subprotocol(f"bearer.{token()}")]
    async with connect(f"{guarded.socket_url}?subject={stream.subject()}", subprotocols=offered, compression=None, proxy=None) as socket:
        assert socket.subprotocol == "cloudevents.json"

        async def next_one() -> dict[str, Any]:
            async with asyncio.timeout(10):
                frame: dict[str, Any] = msgspec.json.decode(await socket.recv())
            assert {"specversion", "id", "source", "type"} <= frame.keys()
            return frame

        said = [await next_one() for _ in range(3)]
        assert [frame["type"] for frame in said] == ["tocsin.welcome", "tocsin.authenticated", "tocsin.subscribed"]
        assert len({(frame["source"], frame["id"]) for frame in said}) == 3
        await stream.publish(stream.subject())
        live = await next_one()
        assert (live["sequence"], live["natssubject"], live["position"], live["data"]["op"]) == ("1", stream.subject(), stream.position(1), "insert")
        # A replay, and a filter, come by another way through the gateway; a client may speak in CloudEvents too.
        asked = {"specversion": "1.0", "id": "1", "source": "/me", "type": "tocsin.subscribe"}
        data = {"id": "b", "subject": stream.subject(), "since": "start", "where": {"id": {"gte": 1}}}
        await socket.send(msgspec.json.encode({**asked, "data": data}).decode())
        assert (await next_one())["data"]["recovered"] is True
        replayed = await next_one()
        assert {**replayed, "position": live["position"]} == live
        await socket.send('{"op":"ping"}')
        while (frame := await next_one())["type"] == "tocsin.position":
            assert frame["data"]["position"] == stream.position(1)
        assert frame["type"] == "tocsin.pong"
        await socket.send('{"specversion":"1.0","type":5}')
        assert (await next_one())["data"]["code"] == "bad-message"
