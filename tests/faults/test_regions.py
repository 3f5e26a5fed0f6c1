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
import msgspec
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


def jetstream(folder: Path, domain: str) -> str:
    """Takes the place of NatsServer's own block."""
    return f'jetstream {{ store_dir: "{folder / domain}", domain: "{domain}", max_file_store: 32GB, max_memory_store: 64MB }}\n'


@dataclass(slots=True)
class Regions:
    """`home` has the database, the listener and the stream; `far` the mirror. `link` is the only way between them."""

    running: Pipeline
    source: asyncpg.Connection
    home: NatsServer
    far: NatsServer
    link: TcpProxy
    near_socket: str = ""
    far_socket: str = ""

    async def cut(self) -> None:
        self.link.refuse = True
        self.link.cut()

    async def heal(self) -> None:
        self.link.refuse = False

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
            regions = Regions(running, source, home, far, link)
            await make_mirror(far, external={"api": "$JS.home.API"})
            yield regions


async def make_mirror(server: NatsServer, *, again: bool = False, **mirror: Any) -> None:
    """As `nats stream add EU_SHOP --mirror TOCSIN_SHOP` does."""
    async with client_of(server) as client, asyncio.timeout(20):
        if again:
            await api(client, f"STREAM.DELETE.{MIRROR}")
        while True:
            with contextlib.suppress(JetStreamError, Unavailable):
                await api(client, f"STREAM.CREATE.{MIRROR}", {"name": MIRROR, "storage": "file", "mirror": {"name": STREAM, **mirror}})
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


async def test_a_leaf_node_s_mirror_serves_its_region_through_a_cut_link_and_positions_hold_in_both() -> None:
    """Its clients have what the stream has, once and in order, by one crossing of the link; nothing is set on the mirror by hand."""
    async with leaf_node() as regions:
        await regions.insert(5)
        await regions.start_gateways()
        async with oracle.socket_client(regions.near_socket, ALL, "start") as near, oracle.socket_client(regions.far_socket, ALL, "start") as far:
            for client in (near, far):
                await oracle.until_count(*client, 5)
            await regions.cut()
            await regions.insert(5)
            await oracle.until_count(*near, 10)
            answer, ids = await subscribed(regions.far_socket, "start")
            assert (answer["recovered"], ids) == (True, far[0].ids), "the region serves what it has"
            assert len(ids) == 5, "nothing crosses a cut link"
            await regions.heal()
            await oracle.until_count(*far, 10)
            stream = await in_stream(regions.home, STREAM)
            assert near[0].ids == far[0].ids == stream.ids == (await in_stream(regions.far, MIRROR)).ids
        for one, other in ((regions.near_socket, regions.far_socket), (regions.far_socket, regions.near_socket)):
            answer, _ = await subscribed(one, "now")
            again, ids = await subscribed(other, answer["position"])
            assert (again["recovered"], ids) == (True, []), "a position of one region holds in the other"
