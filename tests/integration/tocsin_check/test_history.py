"""The report over HTTP beyond the report itself: tokens, foreign pages, the history, the block map, the interface's description."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import asyncpg
import httpx
import jwt
import pytest

from tests.integration.tocsin_check.test_service import Setup, _ready, until
from tests.support import servers
from tests.support.proxy import TcpProxy
from tocsin import broker
from tocsin.errors import OperatorError
from tocsin.revocation import Revocation, revoke, stream_name
from tocsin.settings import load_settings
from tocsin.stack.process import free_port
from tocsin_check.__main__ import serve
from tocsin_check.watch.history import History
from tocsin_check.watch.report import Report, TableReport

SECRET = "a secret of at least thirty-two bytes"


def token(*subjects: str, seconds: float = 60, secret: str = SECRET, **more: str) -> dict[str, str]:
    claims = {"exp": time.time() + seconds, "subscribe": list(subjects), **more}
    return {"Authorization": f"Bearer {jwt.encode(claims, secret, 'HS256')}"}


async def served(visit: Callable[[httpx.AsyncClient], Awaitable[None]], **values: object) -> None:
    """Run the service with these settings while `visit` looks at it."""
    settings = load_settings(**{"nats_url": "nats://127.0.0.1:1", "check_port": free_port(), **values})
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(serve(settings, stop))
        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.check_port}", timeout=10) as client:
                await until(lambda: _ready(client))
                await visit(client)
        finally:
            stop.set()


async def test_with_a_secret_the_data_need_a_token_that_allows_the_drift_subjects(
    setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str, nats_server: servers.Server
) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await setup()

    async def visit(client: httpx.AsyncClient) -> None:
        paths = ("/drift", "/drift/public.t", "/drift/public.t/rows", "/drift/public.t/blocks", "/history", "/history/lag", "/audits", "/audits/x")
        for path in paths:
            assert (await client.get(path)).status_code == 401, path
            assert (await client.get(path, headers=token("pg.shop.drift.>"))).status_code == 200 or path == "/audits/x"
            assert (await client.get(path, headers=token("pg.shop.drift.public.t", "pg.other.>"))).status_code == 403, path
            assert (await client.get(path, headers=token("pg.>", seconds=-5))).status_code == 401, path
            assert (await client.get(path, headers=token("pg.>", secret=SECRET + "!"))).status_code == 401, path
        assert (await client.post("/audits", json={})).status_code == 401
        assert (await client.post("/audits", json={}, headers=token("pg.>"))).status_code == 202
        assert (await client.get("/drift", headers={"Authorization": "Basic x"})).headers["www-authenticate"] == "Bearer"
        for path in ("/", "/healthz", "/readyz", "/metrics", "/docs", "/openapi.json"):
            assert (await client.get(path)).status_code == 200, path
        assert "securitySchemes" in (await client.get("/openapi.json")).json()["components"]

    await served(visit, database_url=source_url, replica_url=replica_url, source="shop", nats_url=nats_server.url, jwt_secret=SECRET)


async def test_a_revoked_token_reads_nothing_and_nobody_does_while_it_cannot_be_known(
    setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str, nats_server: servers.Server
) -> None:
    """As the gateway: NATS away from the start is 503; what was known when it went away goes on, and what was said meanwhile is learned."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await setup()
    stream = "TOCSIN_REVOKING"
    values = {"database_url": source_url, "replica_url": replica_url, "source": "revoking", "stream": stream, "jwt_secret": SECRET}
    first, second, third = (token("pg.>", jti=name) for name in ("first", "second", "third"))

    async def away(client: httpx.AsyncClient) -> None:
        answer = await client.get("/drift", headers=first)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "2"), answer.text
        assert (await client.get("/drift", headers=token("pg.>", secret=SECRET + "!"))).status_code == 401

    async def code(client: httpx.AsyncClient, bearer: dict[str, str]) -> int:
        return (await client.get("/drift", headers=bearer)).status_code

    async with broker.connect([nats_server.url], name="revoke") as link:

        async def visit(client: httpx.AsyncClient) -> None:
            assert [await code(client, bearer) for bearer in (first, second)] == [200, 200], "no stream: nothing was revoked yet"
            await revoke(link, stream, "revoking", Revocation(jti="first"))
            async with asyncio.timeout(1):
                while await code(client, first) != 401:
                    await asyncio.sleep(0.02)
            assert "the token was revoked" in (await client.get("/drift", headers=first)).text
            assert await code(client, second) == 200
            proxy.freeze()
            assert await code(client, second) == 200
            await revoke(link, stream, "revoking", Revocation(jti="second"))
            proxy.cut()
            proxy.thaw()
            async with asyncio.timeout(20):
                while await code(client, second) != 401:
                    await asyncio.sleep(0.05)

        async def later(client: httpx.AsyncClient) -> None:
            assert [await code(client, bearer) for bearer in (first, second, third)] == [401, 401, 200]

        async with TcpProxy(int(nats_server.url.rpartition(":")[2])) as proxy:
            await served(visit, nats_url=f"nats://127.0.0.1:{proxy.port}", **values)
        await served(later, nats_url=nats_server.url, **values)
        await broker.api(link.client, f"STREAM.DELETE.{stream_name(stream)}")
    await served(away, **values)


async def test_foreign_pages_are_refused_and_every_path_says_its_methods(setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await setup()

    async def visit(client: httpx.AsyncClient) -> None:
        for headers, code in (
            ({"Host": "evil.example"}, 403),
            ({"Origin": "https://evil.example"}, 403),
            ({"Origin": "null"}, 403),
            ({"Host": "localhost:1"}, 200),
            ({"Origin": "https://ok.example"}, 200),
        ):
            assert (await client.get("/drift", headers=headers)).status_code == code, headers
        assert (await client.post("/audits", json={}, headers={"Origin": "https://evil.example"})).status_code == 403
        assert (await client.delete("/audits")).headers["allow"] == "GET, POST"
        page = await client.get("/docs")
        assert "http://" not in page.text.replace("http://127.0.0.1", "")
        assert "https://" not in page.text
        assert page.headers["content-security-policy"].startswith("default-src 'none'")

    await served(visit, database_url=source_url, replica_url=replica_url, allowed_origins="https://ok.example")


async def test_without_a_secret_it_serves_on_loopback_only(source_url: str, replica_url: str) -> None:
    settings = load_settings(database_url=source_url, replica_url=replica_url, check_host="0.0.0.0", check_port=free_port())
    with pytest.raises(OperatorError, match=r"TOCSIN_CHECK_HOST='0\.0\.0\.0' is not a loopback address") as raised:
        await serve(settings, asyncio.Event())
    assert (raised.value.exit_code, "TOCSIN_INSECURE=1" in raised.value.fix) == (2, True)


async def test_the_history_and_the_map_of_blocks_survive_a_restart_of_the_checker(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t SELECT generate_series(1, 60000)")
    await setup()

    async def drifts(client: httpx.AsyncClient) -> None:
        blocks = (await client.get("/drift/public.t/blocks")).json()
        assert sum(block["rows"] for block in blocks) == 60_000
        assert {block["state"] for block in blocks} == {"clean"}

        async def seen(status: str) -> bool:
            return [s["status"] for s in (await client.get("/history?table=public.t")).json()][:1] == [status]

        await until(lambda: seen("in_sync"))
        await replica.execute("DELETE FROM t WHERE id = 59000")
        await client.post("/audits", json={})
        await until(lambda: seen("drift"))
        blocks = (await client.get("/drift/public.t/blocks")).json()
        assert [block["state"] for block in blocks if block["first"] <= 58_999 < block["first"] + block["rows"]] == ["drifted"]
        assert {block["state"] for block in blocks if block["first"] + block["rows"] < 58_999} == {"clean"}

        async def written() -> bool:
            return await replica.fetchval("SELECT count(*) FROM tocsin_check.history WHERE status = 'drift' AND missing = 1") == 1

        await until(written)
        assert all(point["lag_seconds"] is not None for point in (await client.get("/history/lag?minutes=1")).json()[-2:])
        assert 'tocsin_check_slot_retained_bytes{slot="tocsin_' in (await client.get("/metrics")).text

    await served(drifts, database_url=source_url, replica_url=replica_url)

    async def remembers(client: httpx.AsyncClient) -> None:
        async def whole() -> bool:
            return [s["status"] for s in (await client.get("/history?table=public.t")).json()][-2:] == ["drift", "in_sync"]

        await until(whole)

    await served(remembers, database_url=source_url, replica_url=replica_url)


async def test_tables_that_are_added_while_the_history_is_written_do_not_end_it(setup: Setup, source: asyncpg.Connection, replica_url: str) -> None:
    """With hundreds of tables a write takes so long that the next look comes in between."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY)")
    await setup()
    history = History(replica_url, lambda: Report(reason=None))

    def look(number: int) -> None:
        history.look(Report(reason=None, tables=[TableReport(table=f"public.t{i}", status="in_sync") for i in range(number)]), datetime.now(UTC))

    look(100)
    connection = await asyncpg.connect(replica_url)
    async with asyncio.TaskGroup() as group:
        writing = group.create_task(history._write(connection))
        number = 100
        while not writing.done():
            number += 1
            look(number)
            await asyncio.sleep(0)
    assert number > 110
    await history._write(connection)
    assert await connection.fetchval('SELECT count(DISTINCT "table") FROM tocsin_check.history') == number
    await connection.close()


def test_one_stretch_stands_for_as_long_as_nothing_changes() -> None:
    history = History("postgresql://nobody@127.0.0.1:1/x", lambda: Report(reason=None))
    start = datetime(2026, 1, 1, tzinfo=UTC)

    def table(second: int, **changes: object) -> Report:
        return Report(
            reason=None,
            tables=[
                TableReport.model_validate({"table": "public.t", "status": "in_sync", "verified_at": start + timedelta(seconds=second // 10 * 10), **changes})
            ],
        )

    for second in range(0, 60, 2):
        history.look(table(second, **({"status": "drift", "missing": 3} if 20 <= second < 40 else {})), start + timedelta(seconds=second))
    found = [(s.status, s.missing, (s.since - start).seconds, (s.until - start).seconds, s.audits) for s in history.stretches()]
    assert found == [("in_sync", 0, 40, 58, 2), ("drift", 3, 20, 38, 2), ("in_sync", 0, 0, 18, 2)]
    assert history.stretches("public.other") == []
