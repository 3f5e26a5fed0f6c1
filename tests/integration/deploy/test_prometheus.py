"""deploy/prometheus and the Grafana dashboard before a real Prometheus that scrapes the real services."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from websockets.asyncio.client import connect

from tests.support import oracle
from tests.support.pipeline import Pipeline, pipeline
from tocsin.stack import process

pytestmark = pytest.mark.prometheus
DEPLOY = Path(__file__).parents[3] / "deploy"
ALERTS = DEPLOY / "prometheus/alerts.yml"

POISON = """INSERT INTO tocsin.journal (stmt, subject, type, key, data)
    VALUES (nextval('tocsin.seq'), 'event.' || repeat('x', 5000), 'x', '1', '{}')"""
"""An event that NATS refuses, as no function of ours writes it: its subject is longer than a control line may be."""


@contextlib.asynccontextmanager
async def scraping(running: Pipeline, program: str) -> AsyncIterator[httpx.AsyncClient]:
    """Prometheus as configured for compose, with the addresses of this pipeline, and every time in it shortened."""
    folder = running.folder / "prometheus"
    folder.mkdir()
    configuration = (DEPLOY / "prometheus/prometheus.yml").read_text()
    for host, url in (("listener:8070", running.listener_url), ("gateway:8080", running.gateway_url), ("checker:8090", running.check_url)):
        assert host in configuration
        configuration = configuration.replace(host, url.removeprefix("http://"))
    (folder / "prometheus.yml").write_text(configuration.replace("_interval: 5s", "_interval: 1s"))
    (folder / "alerts.yml").write_text(re.sub(r"for: \w+", "for: 1s", ALERTS.read_text()))
    port = process.free_port()
    address = f"127.0.0.1:{port}"
    child = await process.start(
        *(program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data", f"--web.listen-address={address}"),
        log=folder / "log",
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://{address}/api/v1", trust_env=False) as client:
            yield client
    finally:
        await process.stop(child)


async def ask(client: httpx.AsyncClient, expression: str) -> list[dict[str, Any]]:
    answer = await client.get("/query", params={"query": expression})
    # 503 while it starts.
    if answer.status_code == 503:
        return []
    told = answer.json()
    assert told["status"] == "success", (expression, told)
    found: list[dict[str, Any]] = told["data"]["result"]
    return found


async def until_some(client: httpx.AsyncClient, expression: str, *, patience: float = 30) -> list[dict[str, Any]]:
    try:
        async with asyncio.timeout(patience):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if found := await ask(client, expression):
                        return found
                await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"no series for {expression}") from None


def without_threshold(expression: str) -> str:
    """The alert's expression as it is while all is well: the comparison at its end taken off."""
    shortened, count = re.subn(r"\s(?:==|>)\s[\d.e]+$", "", expression)
    assert count == 1, expression
    return shortened


def check(promtool: str, *arguments: str) -> None:
    done = subprocess.run([promtool, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration_and_every_alert_rings_in_its_time(promtool: str) -> None:
    check(promtool, "check", "config", str(DEPLOY / "prometheus/prometheus.yml"))
    check(promtool, "test", "rules", str(DEPLOY / "prometheus/alerts_test.yml"))


async def test_what_watches_asks_for_what_is_there_and_rings_for_real(prometheus: str) -> None:
    async with pipeline(replica=True) as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute("CREATE TABLE orders (id int PRIMARY KEY)")
        for verb in (("install",), ("watch", "orders"), ("replicate", "orders")):
            await running.tocsin(*verb)
        for service in ("listener", "gateway", "check"):
            await running.start(service)
        async with scraping(running, prometheus) as client, oracle.socket_client(running.socket_url, "pg.shop.change.>") as (seen, arrived):
            await source.execute("INSERT INTO orders SELECT generate_series(1, 100)")
            await oracle.until_count(seen, arrived, 100)
            await until_some(client, 'count(up{job=~"tocsin-.*"} == 1) == 3')
            for expression in re.findall(r"expr: (.+)", ALERTS.read_text()):
                await until_some(client, without_threshold(expression))
            assert await ask(client, 'ALERTS{alertstate="firing"}') == []
            await _with_a_position_of_elsewhere(running)
            await source.execute(POISON)
            async with writing(running):
                for expression in panels():
                    await until_some(client, f"({expression}) >= 0")  # which no NaN is
                await until_some(client, "sum(rate(tocsin_events_total[1m])) > 0")
            await until_some(client, 'ALERTS{alertname="TocsinQuarantined",alertstate="firing"}')
            await running.tocsin("retry", "--dismiss")
            await until_some(client, 'absent(ALERTS{alertname="TocsinQuarantined"})')
            await _break(running)
            for alert in ("TocsinClientsMissedEvents", "TocsinDrift", "TocsinServiceDown", "TocsinNoLeader"):
                await until_some(client, f'ALERTS{{alertname="{alert}",alertstate="firing"}}')
            await until_some(client, 'sum by (table, state) (tocsin_check_drifted_rows{table="public.orders",state="missing"}) == 1')
        await source.close()


def panels() -> list[str]:
    """Every query of the dashboard."""
    dashboard = json.loads((DEPLOY / "grafana/dashboards/tocsin.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@contextlib.asynccontextmanager
async def writing(running: Pipeline) -> AsyncIterator[None]:
    """A row every tenth of a second."""

    async def write() -> None:
        connection = await asyncpg.connect(running.source_url)
        try:
            while True:
                await connection.execute("INSERT INTO orders SELECT max(id) + 1 FROM orders")
                await asyncio.sleep(0.1)
        finally:
            connection.terminate()

    async with asyncio.TaskGroup() as group:
        task = group.create_task(write())
        try:
            yield
        finally:
            task.cancel()


async def _with_a_position_of_elsewhere(running: Pipeline) -> None:
    """A client that is told that it missed events."""
    async with connect(running.socket_url) as socket:
        await socket.send('{"op": "subscribe", "id": "a", "subject": "pg.shop.change.>", "since": "elsewhere1-1"}')
        async with asyncio.timeout(10):
            while (frame := json.loads(await socket.recv()))["op"] != "subscribed":
                pass
        assert frame["recovered"] is False


async def _break(running: Pipeline) -> None:
    """A row that only the replica lost, and then no listener."""
    replica = await asyncpg.connect(running.replica_url)
    await replica.execute("DELETE FROM orders WHERE id = 7")
    await replica.close()
    await running.kill("listener")
