"""Which instances of Tocsin's services answer NATS's service protocol, and what each has measured; `tocsin.broker.announce` answers."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec
import nats.errors
from nats.aio.client import Client

ANSWER_SECONDS: Final = 0.3


class _Endpoint(msgspec.Struct):
    data: dict[str, Any] | None = None


class Instance(msgspec.Struct):
    """A process: `name` is its service's, such as tocsin-listener."""

    name: str
    id: str
    version: str
    started: str = ""
    metadata: dict[str, str] = {}
    endpoints: list[_Endpoint] = []

    @property
    def source(self) -> str | None:
        return self.metadata.get("source")

    @property
    def measured(self) -> dict[str, Any]:
        return next((endpoint.data for endpoint in self.endpoints if endpoint.data is not None), {})


_decoder: Final = msgspec.json.Decoder(Instance)


async def instances(client: Client, service: str | None = None) -> list[Instance]:
    """Those of `service`, or of every one, that answer within ANSWER_SECONDS; fewer, or none, where NATS is away or nobody may be asked."""
    answers = []
    try:
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox)
        try:
            await client.publish("$SRV.STATS" if service is None else f"$SRV.STATS.{service}", b"", reply=inbox)
            async with asyncio.timeout(ANSWER_SECONDS):
                while True:
                    answers.append((await subscription.next_msg(timeout=ANSWER_SECONDS)).data)
        finally:
            await subscription.unsubscribe()
    except (nats.errors.Error, TimeoutError, OSError):
        pass  # nobody more, or nobody may be asked
    found = []
    for answer in answers:
        try:
            found.append(_decoder.decode(answer))
        except msgspec.MsgspecError:
            continue  # not one of ours
    return found
