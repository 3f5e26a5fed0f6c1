"""One WebSocket client that only records: what arrived is decoded after the run, so that the measured machine does not work for its judge."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import msgspec

from benchmarks.sink import open_client
from tests.support.oracle import Seen

EVENT = b'"op":"event"'


@dataclass(slots=True)
class Recording:
    """The bytes of every frame in the order of arrival."""

    data: bytearray = field(default_factory=bytearray)
    count: int = 0
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, more: bytes) -> None:
        begin = max(0, len(self.data) - len(EVENT) + 1)
        self.data += more
        self.count += self.data.count(EVENT, begin)
        self.arrived.set()

    async def until(self, count: int) -> None:
        """Returns once `count` events have arrived; TimeoutError when none comes for 30 seconds."""
        while self.count < count:
            self.arrived.clear()
            async with asyncio.timeout(30):
                await self.arrived.wait()

    def seen(self) -> Seen:
        """The events, decoded."""
        found = Seen()
        for text in texts(self.data):
            frame = msgspec.json.decode(text)
            assert frame["op"] not in ("error", "gap"), frame
            if frame["op"] == "event":
                found.events.append(frame["event"])
        return found


def texts(data: bytes | bytearray) -> Iterator[bytes]:
    """The payloads of a server's whole text frames, one after the other; raises AssertionError for any other frame but a ping."""
    at = 0
    while at < len(data):
        opcode, length, begin = data[at] & 15, data[at + 1] & 127, at + 2
        if length == 126:
            length, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
        elif length == 127:
            length, begin = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
        at = begin + length
        if opcode == 1:
            yield bytes(data[begin:at])
        else:
            assert opcode == 9, f"a frame of opcode {opcode}: {bytes(data[begin:at])!r}"


@contextlib.asynccontextmanager
async def recorder(url: str, subject: str) -> AsyncIterator[Recording]:
    """A client subscribed to `subject` at the WebSocket address `url`, recording."""
    place = urlsplit(url)
    hello = msgspec.json.encode({"op": "subscribe", "id": "a", "subject": subject, "since": "now"})
    sock, rest = await asyncio.to_thread(open_client, place.hostname or "", place.port or 0, place.path, [hello], 1, b'"position":')
    sock.setblocking(False)
    recording, loop = Recording(), asyncio.get_running_loop()

    async def record() -> None:
        # What is left of the frame that said `subscribed`.
        data = rest
        while b"}" not in data:
            data += await loop.sock_recv(sock, 1 << 18)
        recording.add(data.split(b"}", 1)[1])
        while data := await loop.sock_recv(sock, 1 << 18):
            recording.add(data)
        raise AssertionError("the gateway closed the recording client")

    with sock:
        async with asyncio.TaskGroup() as group:
            recording_task = group.create_task(record())
            try:
                yield recording
            finally:
                recording_task.cancel()
