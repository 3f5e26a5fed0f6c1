"""A stream as the listener makes it, and its messages; for tests of what reads the stream."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import nats.errors
import nats.js.errors
from nats.aio.client import Client

from tocsin import broker
from tocsin.event import BATCH, COPY, EPOCH, EPOCH_METADATA, MSG_ID
from tocsin.subject import change_subject, stream_subjects

EPOCH_ONE = "aaaa111111"
EPOCH_TWO = "bbbb222222"


def event(number: int, **data: Any) -> dict[str, Any]:
    """The CloudEvent with the journal sequence `number`."""
    return {
        "specversion": "1.0",
        "id": f"inc-{number}",
        "source": "/pg/shop",
        "type": "public.orders.insert",
        "subject": str(number),
        "time": "2026-11-22T20:15:31.123456Z",
        "datacontenttype": "application/json",
        "sequence": str(number),
        "txid": str(number),
        "data": {"op": "insert", "schema": "public", "table": "orders", "key": {"id": number}, "new": {"id": number}, **data},
    }


@dataclass(slots=True)
class Stream:
    """Publishes as the listener does; `sent` has each event's (subject, journal number, stream sequence) in stream order."""

    client: Client
    name: str
    source: str
    epoch: str
    sent: list[tuple[str, int, int]]
    number: int = 0

    def subject(self, table: str = "orders", op: str = "insert", *route: str) -> str:
        return change_subject("pg", self.source, "public", table, op, route)

    def position(self, sequence: int) -> str:
        return f"{self.epoch}-{sequence}"

    @property
    def last(self) -> int:
        return self.sent[-1][2] if self.sent else 0

    async def create(self, **config: Any) -> None:
        await broker.api(
            self.client,
            f"STREAM.CREATE.{self.name}",
            {
                "name": self.name,
                "subjects": list(stream_subjects("pg", self.source)),
                "metadata": {EPOCH_METADATA: self.epoch},
                "storage": "file",
                "retention": "limits",
                "discard": "old",
                "num_replicas": 1,
                "allow_atomic": True,
                "allow_direct": True,
                **config,
            },
        )

    async def delete(self) -> None:
        await broker.api(self.client, f"STREAM.DELETE.{self.name}")

    async def recreate(self, epoch: str) -> None:
        await self.delete()
        self.epoch, self.sent = epoch, []
        await self.create()

    async def begin_epoch(self, epoch: str) -> None:
        """A new epoch in the stream that is there."""
        config = (await broker.api(self.client, f"STREAM.INFO.{self.name}"))["config"]
        self.epoch = epoch
        await broker.api(self.client, f"STREAM.UPDATE.{self.name}", {**config, "metadata": {EPOCH_METADATA: epoch}})

    async def purge(self, *, keep: int) -> None:
        await broker.api(self.client, f"STREAM.PURGE.{self.name}", {"keep": keep})

    async def publish(self, *subjects: str, copy: str | None = None, **data: Any) -> list[int]:
        """One event for each subject; with `copy`, each is followed by its copy under that subject. The events' numbers."""
        messages = []
        numbers = []
        for subject in subjects:
            self.number += 1
            numbers.append(self.number)
            messages += self._messages(subject, self.number, copy, data)
        await self._send(messages)
        return numbers

    async def insist(self, subject: str) -> None:
        """One event, again and again until JetStream has it, for at most 30 s; a repeat is known by its id."""
        self.number += 1
        ((_, number, body, headers),) = self._messages(subject, self.number, None, {})
        async with asyncio.timeout(30):
            while True:
                try:
                    ack = await self.client.jetstream().publish(subject, body, headers=headers, timeout=1)
                except (nats.errors.Error, nats.js.errors.Error, TimeoutError):
                    await asyncio.sleep(0.05)
                else:
                    break
        self.sent.append((subject, number, ack.seq))

    async def publish_many(self, subjects: Iterable[str], *, at_once: int = 200) -> None:
        """Many events, pipelined."""
        pending: list[str] = []
        for subject in subjects:
            pending.append(subject)
            if len(pending) == at_once:
                await self.publish(*pending)
                pending.clear()
        await self.publish(*pending)

    def _messages(self, subject: str, number: int, copy: str | None, data: dict[str, Any]) -> list[tuple[str, int, bytes, dict[str, str]]]:
        body = msgspec.json.encode(event(number, **data))
        headers = {MSG_ID: f"{self.epoch}-inc-{number}", EPOCH: self.epoch, BATCH: f"{number};0"}
        made = [(subject, number, body, headers)]
        if copy is not None:
            made.append((copy, number, body, {**headers, MSG_ID: headers[MSG_ID] + "-old", COPY: "1"}))
        return made

    async def _send(self, messages: list[tuple[str, int, bytes, dict[str, str]]]) -> None:
        context = self.client.jetstream()
        futures = [(subject, number, await context.publish_async(subject, body, headers=headers)) for subject, number, body, headers in messages]
        async with asyncio.timeout(20):
            for subject, number, future in futures:
                self.sent.append((subject, number, (await future).seq))


async def stream(client: Client, source: str, *, epoch: str = EPOCH_ONE, **config: Any) -> Stream:
    """A fresh stream of that source."""
    made = Stream(client, f"TOCSIN_{source.upper()}", source, epoch, [])
    await made.create(**config)
    return made
