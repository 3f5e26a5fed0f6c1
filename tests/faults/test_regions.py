"""Regions as docs/scaling.md says: a leaf node with a mirror of its own, and a supercluster; the link between them cut and healed."""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import msgspec
import nats.errors
import pytest
from nats.aio.client import Client
from websockets.asyncio.client import connect

from tests.faults.test_listener_crashes import STREAM, running_listener
from tests.support import oracle
from tests.support.pipeline import Pipeline
from tests.support.proxy import TcpProxy
from tests.support.servers import NATS_SERVER
from tocsin.broker import JetStreamError, api
from tocsin.errors import Unavailable
from tocsin.stack.nats_server import NatsServer
from tocsin.stack.process import free_port

MIRROR = "EU_SHOP"
ALL = "pg.shop.change.>"

Collecting = tuple[oracle.Seen, asyncio.Event]


def jetstream(folder: Path, domain: str) -> str:
    """Takes the place of NatsServer's own block."""
    return f'jetstream {{ store_dir: "{folder / domain}", domain: "{domain}", max_file_store: 32GB, max_memory_store: 64MB }}\n'


@dataclass(slots=True)
class Regions:
    """`home` has the database, the listener and the stream; `far` the mirror. `links` are the only ways between them."""

    running: Pipeline
    source: asyncpg.Connection
    home: NatsServer
    far: NatsServer
    links: list[TcpProxy]
    near_socket: str = ""
    far_socket: str = ""

    def cut(self) -> None:
        for link in self.links:
            link.refuse = True
            link.cut()

    def heal(self) -> None:
        for link in self.links:
            link.refuse = False

    async def insert(self, count: int) -> None:
        for _ in range(count):
            await self.source.execute("INSERT INTO t (n) VALUES (1)")

    async def start_gateways(self) -> None:
        for name, server, stream in (("near", self.home, STREAM), ("far", self.far, MIRROR)):
            port = str(free_port())
            await self.running.start("gateway", name=name, TOCSIN_GATEWAY_PORT=port, TOCSIN_NATS_URL=server.url, TOCSIN_SOURCE="shop", TOCSIN_STREAM=stream)
            setattr(self, f"{name}_socket", f"ws://127.0.0.1:{port}/ws")


@contextlib.asynccontextmanager
async def leaf_node() -> AsyncIterator[Regions]:
    """A server at home that takes leaf nodes, and one far away that is one; each with JetStream in a domain of its own."""
    with tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True) as name:
        folder, leaves = Path(name), free_port()
        home = NatsServer(
            folder / "home",
            free_port(),
            program=NATS_SERVER,
            extra=jetstream(folder, "home") + f'server_name: home\nleafnodes {{ listen: "127.0.0.1:{leaves}" }}',
        )
        async with TcpProxy(leaves) as link, contextlib.AsyncExitStack() as stack:
            remote = f'server_name: far\nleafnodes {{ reconnect: 1, remotes: [{{ url: "nats-leaf://127.0.0.1:{link.port}" }}] }}'
            far = NatsServer(folder / "far", free_port(), program=NATS_SERVER, extra=jetstream(folder, "far") + remote)
            for server in (home, far):
                await server.start()
                stack.push_async_callback(server.stop)
            running, source = await stack.enter_async_context(running_listener(start=False))
            running.environment["TOCSIN_NATS_URL"] = home.url
            await running.start("listener")
            regions = Regions(running, source, home, far, [link])
            await make_mirror(far, external={"api": "$JS.home.API"})
            yield regions


@contextlib.asynccontextmanager
async def supercluster() -> AsyncIterator[Regions]:
    """Three servers at home, one far away, joined by NATS gateways: one JetStream, whose majority is at home."""
    names, routes, ports = ("a", "b", "c", "far"), {}, {}
    for name in names:
        routes[name], ports[name] = free_port(), free_port()
    async with contextlib.AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tocsin-", ignore_cleanup_errors=True)))
        links = {name: await stack.enter_async_context(TcpProxy(ports[name])) for name in names}
        clusters = {"home": names[:3], "abroad": names[3:]}
        servers = {}
        for cluster, members in clusters.items():
            other, others = next((name, them) for name, them in clusters.items() if name != cluster)
            beside = ", ".join(f'"nats://127.0.0.1:{routes[name]}"' for name in members)
            across = ", ".join(f'"nats://127.0.0.1:{links[name].port}"' for name in others)
            for name in members:
                servers[name] = NatsServer(
                    folder / name,
                    free_port(),
                    program=NATS_SERVER,
                    extra=f'server_name: {name}\ncluster {{ name: {cluster}, listen: "127.0.0.1:{routes[name]}", routes: [{beside}] }}\n'
                    f'gateway {{ name: {cluster}, listen: "127.0.0.1:{ports[name]}", advertise: "127.0.0.1:{links[name].port}", connect_retries: 1000, '
                    f"gateways: [{{ name: {other}, urls: [{across}] }}] }}",
                )
        for server in servers.values():
            await server.start()
            stack.push_async_callback(server.stop)
        running, source = await stack.enter_async_context(running_listener(start=False))
        running.environment["TOCSIN_NATS_URL"] = ",".join(servers[name].url for name in names[:3])
        running.environment["TOCSIN_STREAM_REPLICAS"] = "3"
        await running.start("listener")
        await make_mirror(servers["far"], placement={"cluster": "abroad"})
        yield Regions(running, source, servers["a"], servers["far"], list(links.values()))


async def make_mirror(server: NatsServer, *, external: dict[str, str] | None = None, **config: Any) -> None:
    """As `nats stream add EU_SHOP --mirror TOCSIN_SHOP` does."""
    mirror = {"name": STREAM, **({"external": external} if external else {})}
    async with client_of(server) as client, asyncio.timeout(30):
        while True:
            with contextlib.suppress(JetStreamError, Unavailable):
                await api(client, f"STREAM.CREATE.{MIRROR}", {"name": MIRROR, "storage": "file", "mirror": mirror, **config})
                return
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def client_of(server: NatsServer) -> AsyncIterator[Client]:
    client = Client()
    await client.connect(server.url)
    try:
        yield client
    finally:
        await client.close()


async def in_stream(server: NatsServer, stream: str) -> oracle.Seen:
    async with client_of(server) as client:
        return await oracle.stream_events(client, stream)


async def subscribed(socket_url: str, since: str) -> tuple[dict[str, Any], list[str]]:
    """The answer to a subscription since that position, and the ids of the events that followed at once."""
    async with connect(socket_url, compression=None) as socket:
        await socket.send(msgspec.json.encode({"op": "subscribe", "id": "a", "subject": ALL, "since": since}).decode())
        answer: dict[str, Any] = {}
        ids: list[str] = []
        async with asyncio.timeout(20):
            while not answer or (answer["recovered"] and "live" not in answer):
                frame = msgspec.json.decode(await socket.recv())
                if frame["op"] == "subscribed":
                    answer = frame
                    await socket.send('{"op": "ping"}')
                elif frame["op"] == "event":
                    ids.append(frame["event"]["id"])
                elif frame["op"] == "pong":
                    answer["live"] = True
    return answer, ids


@contextlib.asynccontextmanager
async def cut_between_clients(regions: Regions) -> AsyncIterator[tuple[Collecting, Collecting]]:
    """A client of each side has the first five events; then the link is cut, and the near one has the next five."""
    await regions.insert(5)
    await regions.start_gateways()
    async with oracle.socket_client(regions.near_socket, ALL, "start") as near, oracle.socket_client(regions.far_socket, ALL, "start") as far:
        for client in (near, far):
            await oracle.until_count(*client, 5)
        regions.cut()
        await regions.insert(5)
        await oracle.until_count(*near, 10)
        yield near, far


async def holds_in(socket_url: str, other_url: str) -> None:
    """A present position of the one side is known by the other, which has nothing behind it."""
    answer, _ = await subscribed(socket_url, "now")
    again, ids = await subscribed(other_url, answer["position"])
    assert (again["recovered"], ids) == (True, []), "a position of one region holds in the other"


async def test_a_leaf_node_s_mirror_serves_its_region_through_a_cut_link_and_positions_hold_in_both() -> None:
    """Its clients have what the stream has, once and in order, by one crossing of the link; nothing is set on the mirror by hand."""
    async with leaf_node() as regions:
        async with cut_between_clients(regions) as (near, far):
            answer, ids = await subscribed(regions.far_socket, "start")
            assert (answer["recovered"], ids) == (True, far[0].ids), "the region serves what it has"
            assert len(ids) == 5, "nothing crosses a cut link"
            ahead, _ = await subscribed(regions.near_socket, "now")
            answer, _ = await subscribed(regions.far_socket, ahead["position"])
            assert (answer["recovered"], answer["reason"]) == (False, "epoch"), "a place that the mirror has not reached is no place there"
            regions.heal()
            await oracle.until_count(*far, 10)
            stream = await in_stream(regions.home, STREAM)
            assert near[0].ids == far[0].ids == stream.ids == (await in_stream(regions.far, MIRROR)).ids
        await holds_in(regions.near_socket, regions.far_socket)
        await holds_in(regions.far_socket, regions.near_socket)


@pytest.mark.slow
async def test_a_supercluster_s_mirror_waits_out_a_cut_link_and_then_has_everything() -> None:
    """The side without the majority can make no consumer: its gateways are not ready, its sockets stay; home does not notice."""
    async with supercluster() as regions:
        async with cut_between_clients(regions) as (near, far):
            await until_ready(regions.far_socket, 503)
            assert len(far[0].events) == 5
            regions.heal()
            await oracle.until_count(*far, 10, patience=90)
            await until_ready(regions.far_socket, 200)
            stream = await in_stream(regions.home, STREAM)
            assert near[0].ids == far[0].ids == stream.ids
        await holds_in(regions.near_socket, regions.far_socket)


async def until_ready(socket_url: str, status: int) -> None:
    url = socket_url.replace("ws://", "http://").replace("/ws", "/readyz")
    async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(90):
        while (await client.get(url)).status_code != status:
            await asyncio.sleep(0.2)


@pytest.mark.slow
async def test_a_mirror_of_a_stream_that_was_made_anew_is_made_anew_too_and_its_clients_are_told() -> None:
    async with leaf_node() as regions:
        await regions.insert(5)
        await regions.start_gateways()
        answer, _ = await subscribed(regions.far_socket, "now")
        async with client_of(regions.home) as client:
            await api(client, f"STREAM.DELETE.{STREAM}")
        await regions.insert(5)
        async with asyncio.timeout(60):
            while len((await in_stream_or_nothing(regions.home)).ids) < 10:
                await asyncio.sleep(0.2)
        async with client_of(regions.far) as client:
            await api(client, f"STREAM.DELETE.{MIRROR}")
        await make_mirror(regions.far, external={"api": "$JS.home.API"})
        async with asyncio.timeout(60):
            while len((await in_stream(regions.far, MIRROR)).ids) < 10:
                await asyncio.sleep(0.2)
        await until_ready(regions.far_socket, 200)
        again, _ = await subscribed(regions.far_socket, answer["position"])
        assert (again["recovered"], again["reason"]) == (False, "epoch")


async def in_stream_or_nothing(server: NatsServer) -> oracle.Seen:
    try:
        return await in_stream(server, STREAM)
    except nats.errors.Error:
        return oracle.Seen()
