"""The gateway as a process and a web server: when it refuses to start, what it serves beside events, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from pathlib import Path

import httpx
import msgspec
import pytest
from nats.aio.client import Client
from websockets.exceptions import InvalidStatus

from tests.support import servers
from tests.support.gateway import Peer, RunningGateway, numbers, peer, running_gateway
from tests.support.stream import Stream
from tocsin_gateway import gateway as gateway_module
from tocsin_gateway import server

ROOT = Path(__file__).parents[3]


async def run_gateway(*arguments: str, **settings: str) -> tuple[int | None, str]:
    """(exit code, what was printed) of a gateway that has to end by itself."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tocsin.cli.main", "gateway", "--source", "shop", *arguments),
        env={**os.environ, **settings},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(20):
            output, _ = await child.communicate()
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    return child.returncode, output.decode()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"TOCSIN_GATEWAY_HOST": "0.0.0.0"}, "TOCSIN_INSECURE=1"),
        ({"TOCSIN_GATEWAY_HOST": "::"}, "TOCSIN_INSECURE=1"),
        ({"TOCSIN_JWKS_URL": "http://keys.example/jwks"}, "https://"),
        ({"TOCSIN_GATEWAY_PORT": "eighty"}, "TOCSIN_GATEWAY_PORT='eighty'"),
    ],
)
async def test_it_refuses_to_start_with_a_fix_rather_than_open_a_door(settings: dict[str, str], words: str) -> None:
    code, output = await run_gateway(**{"TOCSIN_GATEWAY_PORT": "0", **settings})
    assert code == 2, output
    assert "fix:" in output
    assert words in output


async def test_a_taken_port_is_named_with_its_setting(gateway: RunningGateway) -> None:
    code, output = await run_gateway("--port", str(gateway.port))
    assert code == 1, output
    assert f"port {gateway.port}" in output
    assert "TOCSIN_GATEWAY_PORT" in output


async def test_the_console_and_what_it_loads_come_from_here_alone(gateway: RunningGateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        console = await client.get("/")
        assert (console.status_code, console.headers["content-type"].partition(";")[0]) == (200, "text/html")
        assert "default-src 'none'" in console.headers["content-security-policy"]
        assert "://" not in console.text.replace("http://www.w3.org/2000/svg", "")
        for name in ("console.js", "console.css"):
            assert (await client.get(f"/static/{name}")).status_code == 200
        module = await client.get("/client.js")
        assert module.headers["content-type"].startswith("text/javascript")
        assert module.text == (ROOT / "clients" / "tocsin.js").read_text()


async def test_health_metrics_documentation_and_the_service_protocol_answer(gateway: RunningGateway, stream: Stream, nats: Client) -> None:
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        assert (await client.get("/healthz")).json() == {"status": "ok"}
        ready = await client.get("/readyz")
        assert (ready.status_code, ready.json()["epoch"], ready.json()["stream"]) == (200, stream.epoch, stream.name)
        assert (await client.get("/docs")).status_code == 200
        paths = (await client.get("/openapi.json")).json()["paths"]
        assert {"/sse", "/healthz", "/readyz", "/metrics"} <= set(paths)
        sse, events = ({parameter["name"] for parameter in paths[path]["get"]["parameters"]} for path in ("/sse", "/events"))
        assert sse == {"subject", "since", "where", "select", "presence", "ticket", "last-event-id"}
        assert events == {"subject", "since", "where", "select", "limit"}
    async with peer(gateway) as one:
        await one.subscribe(stream.subject())
        await stream.publish(stream.subject())
        await one.events(1)
        assert await gateway.metric("tocsin_gateway_clients", kind="websocket") == 1
        assert await gateway.metric("tocsin_gateway_events_total") == 1
        assert await gateway.metric("tocsin_gateway_frames_total") == 1
    await gateway.until_metric("tocsin_gateway_clients", 0, kind="websocket")
    await gateway.until_metric("tocsin_gateway_subscriptions", 0)
    service = msgspec.json.decode((await nats.request("$SRV.INFO.tocsin-gateway", timeout=5)).data)
    assert service["name"] == "tocsin-gateway"


async def test_a_server_without_our_extension_serves_the_same(nats_server: servers.Server, stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "EXTENSION", "of.another.server")
    async with running_gateway(nats_server.url, stream.source) as gateway, peer(gateway) as client:
        await stream.publish_many([stream.subject()] * 300)
        await client.subscribe(stream.subject(), since="start")
        await client.events(300)
        await stream.publish_many([stream.subject()] * 300)
        assert numbers(await client.events(300)) == list(range(301, 601))


async def test_a_restart_is_told_by_1012(nats_server: servers.Server, stream: Stream) -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with running_gateway(nats_server.url, stream.source) as gateway:
            client = await stack.enter_async_context(peer(gateway))
            await client.subscribe(stream.subject())
        assert (await client.closed())[0] == 1012


async def test_a_gateway_that_stops_closes_its_clients_in_groups_and_takes_no_new_ones(
    nats_server: servers.Server, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateway_module, "DRAIN_GROUP", 2)
    monkeypatch.setattr(gateway_module, "DRAIN_STEP_SECONDS", 0.5)
    ended: list[tuple[float, int]] = []

    async def until_closed(client: Peer) -> None:
        code, _ = await client.closed()
        ended.append((asyncio.get_running_loop().time(), code))

    async with contextlib.AsyncExitStack() as stack:
        async with running_gateway(nats_server.url, stream.source) as gateway, asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(until_closed(await stack.enter_async_context(peer(gateway))))
            gateway.stop.set()
            while not ended:
                await asyncio.sleep(0.01)
            assert len(ended) <= 2
            with pytest.raises(InvalidStatus) as refused:
                await stack.enter_async_context(peer(gateway))
            async with httpx.AsyncClient(base_url=gateway.url) as client:
                answers = [(await client.get(path)).status_code for path in ("/readyz", f"/sse?subject={stream.subject()}", "/healthz")]
        assert refused.value.response.status_code == 503
        assert answers == [503, 503, 200]
    assert [code for _, code in ended] == [1012] * 6
    times = [at for at, _ in ended]
    assert times[2] - times[0] > 0.4
    assert times[4] - times[2] > 0.4
