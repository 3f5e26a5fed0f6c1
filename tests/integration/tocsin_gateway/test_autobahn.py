"""The cases of the Autobahn test suite, by kosoku, against the protocols that the gateway serves with.

They want an echo, which the gateway is not; so an echo stands in for the application, above the same protocols and options.
Left out are 9 (speed), 12 and 13 (compression, which the gateway does not negotiate), and 7.1.5, where the library closes
with 1002 for a fragment that the close cut off, and documents it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from kosoku import FailureError, run_fuzzingclient

from tocsin.service import bind, serve_http
from tocsin_gateway.limits import Limits
from tocsin_gateway.server import protocols

LEFT_OUT = ["9.*", "12.*", "13.*", "7.1.5"]


async def echo(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send({"type": "websocket.send", **{name: message[name] for name in ("text", "bytes") if message.get(name) is not None}})


async def test_every_case_of_autobahn_passes() -> None:
    limits, over, stop = Limits(), list[str](), asyncio.Event()
    http, socket = protocols(limits, over.append)
    sock = bind("127.0.0.1", 0, "the port")
    async with asyncio.TaskGroup() as group:
        group.create_task(
            serve_http(echo, sock, stop, ws=socket, http=http, ws_max_size=limits.message_bytes, ws_per_message_deflate=False, log_level="critical")
        )
        try:
            async with asyncio.timeout(100):
                results = await run_fuzzingclient(f"127.0.0.1:{sock.getsockname()[1]}", None, LEFT_OUT, concurrency=8)
        except FailureError as failure:
            pytest.fail(str(failure))
        finally:
            stop.set()
    sock.close()
    assert len(results) >= 240
