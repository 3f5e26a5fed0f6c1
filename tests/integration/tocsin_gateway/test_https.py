"""HTTPS by the gateway itself: events over TLS, a renewed certificate without a closed socket, and what it refuses."""

from __future__ import annotations

import asyncio
import socket
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from tests.support import servers
from tests.support.certificates import Authority
from tests.support.gateway import Peer, numbers, running_gateway
from tests.support.stream import Stream
from tocsin import certificate
from tocsin.errors import OperatorError


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tocsin-https-") as name:
        yield Path(name)


def shown(port: int, trust: ssl.SSLContext) -> str:
    """The serial number of the certificate that the gateway shows to who comes now."""
    with socket.create_connection(("127.0.0.1", port)) as raw, trust.wrap_socket(raw, server_hostname="127.0.0.1") as link:
        told = link.getpeercert()
        assert told is not None
        return str(told["serialNumber"])


async def test_events_over_tls_and_a_certificate_that_is_renewed(
    nats_server: servers.Server, stream: Stream, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "RELOAD_EVERY", 0.05)
    authority = Authority(folder)
    cert, key = authority.issue("gateway")
    trust = ssl.create_default_context(cafile=str(authority.ca))
    settings: dict[str, Any] = {"gateway_tls_cert": cert, "gateway_tls_key": key}
    async with running_gateway(nats_server.url, stream.source, ready=False, **settings) as gateway:
        address = f"127.0.0.1:{gateway.port}"
        async with httpx.AsyncClient(base_url=f"https://{address}", verify=trust, trust_env=False) as client, asyncio.timeout(60):
            while not (await client.get("/readyz")).is_success:
                await asyncio.sleep(0.05)
            async with connect(f"wss://{address}/ws", ssl=trust, compression=None, max_size=None, proxy=None) as connection:
                peer = Peer(connection)
                assert (await peer.next())["op"] == "welcome"
                # A browser's page of the same address may connect.
                assert (await client.get(f"/sse?subject={stream.subject()}&since=bad", headers={"origin": f"https://{address}"})).status_code == 400
                await stream.publish_many([stream.subject()] * 2000)
                await peer.subscribe(stream.subject(), since="start")
                assert numbers(await peer.events(2000)) == list(range(1, 2001))
                before = await asyncio.to_thread(shown, gateway.port, trust)
                # First half of a renewal: the new certificate beside the old key. It must not be served.
                old_key = key.read_bytes()
                authority.issue("gateway")
                new_key = key.read_bytes()
                key.write_bytes(old_key)
                await asyncio.sleep(0.3)
                assert await asyncio.to_thread(shown, gateway.port, trust) == before
                key.write_bytes(new_key)
                while await asyncio.to_thread(shown, gateway.port, trust) == before:
                    await asyncio.sleep(0.02)
                await stream.publish_many([stream.subject()] * 10)
                assert len(await peer.events(10)) == 10, "the socket from before goes on"
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://{address}/healthz")
        with pytest.raises(ssl.SSLError):
            await asyncio.to_thread(shown, gateway.port, ssl.create_default_context())


def test_what_cannot_be_used_is_named_with_its_fix(folder: Path) -> None:
    cert, key = Authority(folder).issue("gateway")
    _, other = Authority(folder, "other").issue("other")
    for files, named in (((cert, None), "TOCSIN_GATEWAY_TLS_KEY"), ((None, key), "TOCSIN_GATEWAY_TLS_CERT"), ((cert, other), "TOCSIN_GATEWAY_TLS_CERT")):
        with pytest.raises(OperatorError, match=named) as refused:
            certificate.certificate(*files)
        assert refused.value.exit_code == 2
    assert certificate.certificate(None, None) is None
