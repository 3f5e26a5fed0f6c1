"""deploy/nats/accounts.conf: each service works with just its rights, and what a user may not is refused by the server."""

from __future__ import annotations

import asyncio
import re
import time
from pathlib import Path

import asyncpg
import httpx
import jwt
import msgspec
import pytest
from nats.aio.client import Client
from nats.errors import Error

from tests.support import oracle
from tests.support.gateway import peer, running_gateway
from tests.support.pipeline import Pipeline, pipeline
from tocsin import broker
from tocsin.revocation import Revocation, revoke

ACCOUNTS = (Path(__file__).parents[3] / "deploy/nats/accounts.conf").read_text()
USERS = {"listener": "tocsin-listener-shop", "gateway": "tocsin-gateway", "checker": "tocsin-check", "operator": "tocsin-doctor", "reader": "reader"}


def url(running: Pipeline, user: str) -> str:
    return f"nats://{user}:{user}pw@127.0.0.1:{running.nats.port}"


async def client_of(running: Pipeline, user: str, said: list[str]) -> Client:
    async def remember(error: Exception) -> None:
        said.append(str(error).lower())

    client = Client()
    await client.connect(url(running, user), error_cb=remember, inbox_prefix=f"_INBOX.{USERS[user]}".encode())
    return client


async def refused(client: Client, said: list[str], subject: str, *, subscribe: bool = False) -> None:
    """The server's own answer comes after; a flush brings it."""
    said.clear()
    if subscribe:
        await client.subscribe(subject)
    else:
        await client.publish(subject, b"{}")
    async with asyncio.timeout(5):
        await client.flush()
        while not said:
            await asyncio.sleep(0.01)
    assert "permissions violation" in said[0], (subject, said)
    assert subject.lower() in said[0], (subject, said)


async def api(client: Client, subject: str, **request: object) -> dict[str, object]:
    answer = await client.request(f"$JS.API.{subject}", msgspec.json.encode(request), timeout=2)
    decoded: dict[str, object] = msgspec.json.decode(answer.data)
    return decoded


async def test_each_service_works_with_its_own_rights_and_no_user_can_do_more() -> None:
    extra = re.sub(r"\$TOCSIN_([A-Z]+)_PASSWORD", lambda name: f"{name[1].lower()}pw", ACCOUNTS)
    async with pipeline(replica=True, nats_extra=extra) as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute("CREATE TABLE orders (id int PRIMARY KEY, note text); CREATE TABLE salaries (id int PRIMARY KEY)")
        await running.tocsin("install")
        await running.tocsin("watch", "orders", "salaries")
        await running.tocsin("replicate", "orders")
        for service, user in (("listener", "listener"), ("gateway", "gateway"), ("check", "checker")):
            await running.start(service, TOCSIN_NATS_URL=url(running, user))
        async with oracle.socket_client(running.socket_url, "pg.shop.change.>") as (seen, arrived):
            await source.execute("INSERT INTO orders SELECT g, 'n' FROM generate_series(1, 500) g")
            await source.execute("INSERT INTO salaries VALUES (1)")
            await oracle.until_count(seen, arrived, 501)
        # A replay needs a consumer of its own.
        async with oracle.socket_client(running.socket_url, "pg.shop.change.public.orders.>", since="start") as (seen, arrived):
            await oracle.until_count(seen, arrived, 500)
        await _until_logged(running, "check", "events are followed")
        for service in ("listener", "gateway", "check"):
            log = (running.folder / f"{service}.log").read_text().lower()
            assert "permissions violation" not in log, log
        await _an_operator_looks_and_another_is_told_why_not(running)
        await _reader_reads_its_table_alone(running)
        await _nobody_writes_what_only_the_listener_may(running)
        await source.close()


async def _an_operator_looks_and_another_is_told_why_not(running: Pipeline) -> None:
    running.environment["TOCSIN_NATS_URL"] = url(running, "operator")
    assert "the stream TOCSIN_SHOP is this source's alone" in await running.tocsin("doctor", expect=None)
    assert "stands in the stream TOCSIN_SHOP" in await running.tocsin("why", "orders", "500", expect=None)
    assert "valid: " in await running.tocsin("validate", "--no-replica")
    running.environment["TOCSIN_NATS_URL"] = url(running, "reader")
    for told in (await running.tocsin("doctor", expect=1), await running.tocsin("validate", "--no-replica", expect=1)):
        assert "the user in TOCSIN_NATS_URL has not the right to this: nats: permissions violation" in told
        assert "fix: ask as the user `operator` of deploy/nats/accounts.conf" in told


async def _until_logged(running: Pipeline, service: str, words: str) -> None:
    async with asyncio.timeout(20):
        while words not in (running.folder / f"{service}.log").read_text():
            await asyncio.sleep(0.1)


async def _reader_reads_its_table_alone(running: Pipeline) -> None:
    said: list[str] = []
    reader = await client_of(running, "reader", said)
    config = {"ack_policy": "explicit", "filter_subject": "pg.shop.change.public.orders.>", "inactive_threshold": 60_000_000_000, "mem_storage": True}
    made = await api(reader, "CONSUMER.CREATE.TOCSIN_SHOP.mine.pg.shop.change.public.orders.>", stream_name="TOCSIN_SHOP", config={**config, "name": "mine"})
    assert "error" not in made, made
    subscription = await reader.subscribe(reader.new_inbox())
    await reader.publish("$JS.API.CONSUMER.MSG.NEXT.TOCSIN_SHOP.mine", b'{"batch": 1}', reply=subscription.subject)
    message = await subscription.next_msg(timeout=5)
    assert message.subject.startswith("pg.shop.change.public.orders.")
    # The ack subject is the server's own, in whichever form it has.
    await reader.publish(message.reply, b"+ACK")
    async with asyncio.timeout(5):
        while (await api(reader, "CONSUMER.INFO.TOCSIN_SHOP.mine"))["ack_floor"]["consumer_seq"] != 1:  # type: ignore[index]
            await asyncio.sleep(0.02)
    assert not said, said
    # A filter in the request that is not the one in its subject.
    lie = await api(
        reader,
        "CONSUMER.CREATE.TOCSIN_SHOP.lie.pg.shop.change.public.orders.>",
        stream_name="TOCSIN_SHOP",
        config={**config, "name": "lie", "filter_subject": "pg.shop.change.public.salaries.>"},
    )
    assert "error" in lie, lie
    for subject in ("pg.shop.change.public.salaries.>", "pg.>", ">", "_INBOX.>", "_INBOX.tocsin-gateway.>", "$SYS.>"):
        await refused(reader, said, subject, subscribe=True)
    for subject in ("$JS.API.CONSUMER.CREATE.TOCSIN_SHOP.x", "$JS.API.CONSUMER.DELETE.TOCSIN_SHOP.mine", "$JS.API.DIRECT.GET.TOCSIN_SHOP"):
        await refused(reader, said, subject)
    await reader.close()


async def _nobody_writes_what_only_the_listener_may(running: Pipeline) -> None:
    watcher = await client_of(running, "listener", [])
    before = await api(watcher, "STREAM.INFO.TOCSIN_SHOP", subjects_filter="pg.shop.change.>")
    for user in ("gateway", "checker", "operator", "reader"):
        said: list[str] = []
        client = await client_of(running, user, said)
        for subject in ("pg.shop.change.public.orders.insert", "pg.shop.event.order.paid", "_tocsin.shop.canary", "$JS.API.STREAM.UPDATE.TOCSIN_SHOP"):
            await refused(client, said, subject)
        await client.close()
    for user in USERS:
        said = []
        client = await client_of(running, user, said)
        for subject in ("$JS.API.STREAM.DELETE.TOCSIN_SHOP", "$JS.API.STREAM.PURGE.TOCSIN_SHOP", "$JS.API.STREAM.MSG.DELETE.TOCSIN_SHOP"):
            await refused(client, said, subject)
        await client.close()
    after = await api(watcher, "STREAM.INFO.TOCSIN_SHOP", subjects_filter="pg.shop.change.>")
    assert after["state"]["subjects"] == before["state"]["subjects"]  # type: ignore[index]
    await watcher.close()


async def test_the_gateway_s_user_can_issue_tickets_and_know_what_was_revoked() -> None:
    extra = re.sub(r"\$TOCSIN_([A-Z]+)_PASSWORD", lambda name: f"{name[1].lower()}pw", ACCOUNTS)
    secret = "a-secret-of-at-least-thirty-two-bytes"
    claims = {"exp": int(time.time()) + 600, "iat": int(time.time()) - 60, "subscribe": ["pg.>"], "jti": "t1"}
    headers = {"authorization": f"Bearer {jwt.encode(claims, secret, 'HS256')}"}
    async with pipeline(nats_extra=extra) as running, running_gateway(url(running, "gateway"), "shop", ready=False, jwt_secret=secret) as gateway:
        async with asyncio.timeout(20), httpx.AsyncClient(base_url=gateway.url, timeout=15) as http:
            while (answer := await http.post("/tickets", headers=headers)).status_code == 503:
                await asyncio.sleep(0.1)
            assert answer.status_code == 200, answer.text
            async with peer(gateway, f"?ticket={answer.json()['ticket']}") as client:
                assert (await client.next())["op"] == "authenticated"
                async with broker.connect([url(running, "gateway")], name="tocsin-gateway") as link:
                    await revoke(link, "TOCSIN_SHOP", "shop", Revocation(jti="t1"))
                assert (await client.closed(patience=1))[0] == 4401
            assert (await http.post("/tickets", headers=headers)).status_code == 401
        for user in ("checker", "reader"):
            said: list[str] = []
            stranger = await client_of(running, user, said)
            for subject in ("_tocsin.shop.revoke", "_tocsin.shop.ticket.x"):
                await refused(stranger, said, subject)
                if (user, subject) != ("checker", "_tocsin.shop.revoke"):  # it hears what was revoked
                    await refused(stranger, said, subject, subscribe=True)
            await stranger.close()


async def test_without_a_password_nobody_comes_in() -> None:
    extra = re.sub(r"\$TOCSIN_([A-Z]+)_PASSWORD", lambda name: f"{name[1].lower()}pw", ACCOUNTS)
    async with pipeline(nats_extra=extra) as running:
        for who in (running.nats.url, url(running, "gateway").replace("gatewaypw", "wrong")):
            with pytest.raises((Error, OSError)):
                await Client().connect(who, allow_reconnect=False, max_reconnect_attempts=1, connect_timeout=2)
