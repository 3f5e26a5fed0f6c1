"""What the workers of one gateway count, as one answer: each worker tells its own on a UNIX socket, whoever is asked gathers.

A scrape reaches any one of the workers; so each sample has the label `worker`, and every answer holds all of them.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

GATHER_SECONDS: Final = 1.0
_SAMPLE: Final = re.compile(rb"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$")


@dataclass(frozen=True, slots=True)
class Worker:
    """One of `count` workers, numbered from 0; `folder` holds their sockets and is theirs alone."""

    number: int
    count: int
    folder: Path

    def path(self, number: int) -> Path:
        return self.folder / str(number)

    @property
    def headcount(self) -> Path:
        return self.folder / "headcount"


async def tell(worker: Worker, registry: CollectorRegistry) -> None:
    """Answer whoever connects to the worker's socket with its metrics; until cancelled."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(generate_latest(registry))
        writer.close()

    # The one before us may have been killed.
    worker.path(worker.number).unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, worker.path(worker.number))
    async with server:
        await server.serve_forever()


async def gathered(worker: Worker, registry: CollectorRegistry) -> bytes:
    """The metrics of all workers that answer in time, in Prometheus's text form."""
    texts: dict[int, bytes] = {worker.number: generate_latest(registry)}

    async def ask(number: int) -> None:
        try:
            async with asyncio.timeout(GATHER_SECONDS):
                reader, writer = await asyncio.open_unix_connection(worker.path(number))
                try:
                    texts[number] = await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return  # it is being started again; its absence shows in the answer

    async with asyncio.TaskGroup() as group:
        for number in range(worker.count):
            if number != worker.number:
                group.create_task(ask(number))
    return merged(sorted(texts.items()))


def merged(texts: Iterable[tuple[int, bytes]]) -> bytes:
    """One text of several: each family once, its samples with the label `worker`."""
    families: dict[bytes, list[bytes]] = {}
    for number, text in texts:
        head = b""
        for line in text.splitlines():
            if line.startswith(b"# HELP"):
                head = line
                families.setdefault(head, [])
            elif line.startswith(b"#"):
                if line not in families[head]:
                    families[head].insert(0, line)
            elif (found := _SAMPLE.match(line)) is not None:
                labels = b'worker="%d"' % number + (b"," + found[2] if found[2] else b"")
                families[head].append(b"%b{%b} %b" % (found[1], labels, found[3]))
    return b"".join(b"%b\n%b\n" % (head, b"\n".join(lines)) for head, lines in families.items())


def metrics_route(worker: Worker, registry: CollectorRegistry) -> APIRouter:
    """`/metrics` of all workers; goes before the one that tells of this process alone."""
    router = APIRouter()

    @router.get("/metrics", summary="Prometheus metrics of every worker", tags=["health"], response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(await gathered(worker, registry), media_type=CONTENT_TYPE_LATEST)

    return router
