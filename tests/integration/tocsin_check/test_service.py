"""The checker as a process's worth of service: HTTP, findings in the journal, the terminal."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import httpx
import pytest_asyncio
from nats.aio.client import Client

from tests.support import servers
from tocsin.settings import load_settings
from tocsin.stack.process import free_port
from tocsin_check.__main__ import serve

Setup = Callable[..., Awaitable[None]]
Http = Callable[[], contextlib.AbstractAsyncContextManager[httpx.AsyncClient]]


@pytest_asyncio.fixture
async def http(source_url: str, replica_url: str, nats_server: servers.Server) -> AsyncIterator[Http]:
    """The service, running in this loop; a client for it, once it is ready."""

    @contextlib.asynccontextmanager
    async def running() -> AsyncIterator[httpx.AsyncClient]:
        settings = load_settings(database_url=source_url, replica_url=replica_url, nats_url=nats_server.url, check_port=free_port())
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as group:
            group.create_task(serve(settings, stop))
            try:
                async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{settings.check_port}", timeout=10) as client:
                    await until(lambda: _ready(client))
                    yield client
            finally:
                stop.set()

    yield running


async def _ready(client: httpx.AsyncClient) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return (await client.get("/readyz")).status_code == 200
    return False


async def until(condition: Callable[[], Awaitable[bool]], patience: float = 30) -> None:
    async with asyncio.timeout(patience):
        while not await condition():
            await asyncio.sleep(0.05)


async def audit(client: httpx.AsyncClient, *tables: str) -> dict[str, object]:
    """POST /audits, and wait until it is done."""
    answer = await client.post("/audits", json={"tables": list(tables)} if tables else {})
    assert answer.status_code == 202, answer.text
    progress = answer.json()

    async def done() -> bool:
        nonlocal progress
        progress = (await client.get(f"/audits/{progress['id']}")).json()
        return progress["status"] in ("done", "failed")

    await until(done)
    return progress


async def test_the_report_its_pages_and_an_audit_on_demand(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, http: Http, nats: Client
) -> None:
    await source.execute(
        "CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT i, 'x' FROM generate_series(1, 300) i; CREATE TABLE b (id int PRIMARY KEY)"
    )
    await setup()
    async with http() as client:
        report = (await client.get("/drift")).json()
        assert report["status"] == "in_sync"
        assert [(t["table"], t["status"], t["rows"]) for t in report["tables"]] == [("public.a", "in_sync", 300), ("public.b", "in_sync", 0)]
        assert report["replication"]["uncovered"] == []
        assert report["replication"]["slot"]["active"] is True
        assert report["lag_seconds"] < 5
        await replica.execute("DELETE FROM a WHERE id <= 7; UPDATE a SET v = 'y' WHERE id = 9; INSERT INTO b VALUES (1)")
        progress = await audit(client, "public.a")
        assert (progress["status"], progress["done"], progress["total"], progress["rows"]) == ("done", 1, 1, 300)
        table = (await client.get("/drift/public.a")).json()
        assert (table["status"], table["missing"], table["different"]) == ("drift", 7, 1)
        rows, after = [], None
        while True:
            page = (await client.get("/drift/public.a/rows", params={"limit": 3, "after": after or ""})).json()
            rows += page["rows"]
            after = page["next"]
            if after is None:
                break
        assert sorted(row["key"]["id"] for row in rows) == [1, 2, 3, 4, 5, 6, 7, 9]
        assert {"key": {"id": 9}, "state": "different", "columns": ["v"]} in rows
        assert (await client.get("/drift")).json()["status"] == "drift"
        metrics = (await client.get("/metrics")).text
        assert 'tocsin_check_drifted_rows{state="missing",table="public.a"} 7.0' in metrics
        for path, code in (
            ("/drift/public.nothing", 404),
            ("/drift/public.a/rows?after=x", 422),
            ("/drift/public.a/rows?limit=0", 422),
            ("/audits/x", 404),
            ("/docs", 200),
            ("/healthz", 200),
        ):
            assert (await client.get(path)).status_code == code, path
        assert (await client.post("/audits", json={"tables": ["public.nothing"]})).status_code == 404
        assert (await client.post("/audits", json={"table": "public.a"})).status_code == 422
        page = await client.get("/")
        assert "script-src 'sha256-" in page.headers["content-security-policy"]
        answer = await nats.request("tocsin-check.status", b"", timeout=5)
        assert json.loads(answer.data)["status"] == "drift"
        await source.execute("UPDATE a SET v = v")  # restores every row that is still there
        await replica.execute("INSERT INTO a SELECT i, 'x' FROM generate_series(1, 7) i ON CONFLICT DO NOTHING; DELETE FROM b")
        await audit(client)
        assert (await client.get("/drift")).json()["status"] == "in_sync"


async def test_findings_enter_the_journal_when_drift_is_found_and_when_it_is_gone(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, http: Http
) -> None:
    from tocsin_listener.install import install

    await source.execute("CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1), (2)")
    await install(source)
    await setup("a")
    async with http() as client:
        await replica.execute("DELETE FROM a WHERE id = 2")
        await audit(client)
        await audit(client)
        await replica.execute("INSERT INTO a VALUES (2)")
        await audit(client)
        found = [json.loads(row["data"]) for row in await source.fetch("SELECT data FROM tocsin.journal WHERE subject = 'drift.public.a' ORDER BY seq")]
        assert [(f["status"], f["previous"], f["missing"]) for f in found] == [("drift", "in_sync", 1), ("in_sync", "drift", 0)]
        assert found[0]["sample"] == [{"key": {"id": 2}, "state": "missing", "columns": []}]


async def test_published_but_not_subscribed_is_uncovered_and_never_in_sync(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, http: Http
) -> None:
    """No lag, no error, and no rows: only the coverage check sees it."""
    await source.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE late (id int PRIMARY KEY); INSERT INTO late VALUES (1)")
    await setup("a")
    await replica.execute("CREATE TABLE late (id int PRIMARY KEY)")
    await source.execute("ALTER PUBLICATION tocsin ADD TABLE late")
    async with http() as client:
        report = (await client.get("/drift")).json()
        assert report["replication"]["uncovered"] == ["public.late"]
        assert report["status"] == "unauditable"
        assert [(t["table"], t["status"]) for t in report["tables"]] == [("public.a", "in_sync"), ("public.late", "unauditable")]
        [finding] = [f for f in report["replication"]["findings"] if f["code"] == "uncovered"]
        assert (finding["severity"], finding["fix"]) == ("error", "tocsin replicate public.late")
        await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")

        async def told() -> bool:
            now = (await client.get("/drift")).json()
            return {f["code"] for f in now["replication"]["findings"]} >= {"disabled"} and now["lag_seconds"] > 5 and now["tables"][0]["status"] == "lagging"

        await until(told)
        await replica.execute("ALTER SUBSCRIPTION tocsin ENABLE")

        async def better() -> bool:
            return (await client.get("/drift/public.a")).json()["status"] == "in_sync"

        await until(better)


async def tocsin(*arguments: str, source_url: str, replica_url: str) -> tuple[int | None, str, str]:
    """Run the command; its exit code and both outputs."""
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("TOCSIN_")}, "TOCSIN_DATABASE_URL": source_url, "TOCSIN_REPLICA_URL": replica_url}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tocsin.cli.main", *arguments, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await child.communicate()
    return child.returncode, out.decode(), err.decode()


async def test_the_verbs_replicate_and_drift_in_the_terminal(
    source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, own_url: str
) -> None:
    await source.execute("CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a VALUES (1, 'x'), (2, 'y')")
    urls = {"source_url": source_url, "replica_url": replica_url}
    code, out, err = await tocsin("drift", **urls)
    assert code == 2, out + err
    assert "tocsin replicate" in out
    code, out, err = await tocsin("replicate", "a", "--source-url-from-replica", own_url, **urls)
    assert (code, "public.a" in out) == (0, True), out + err
    code, out, err = await tocsin("drift", **urls)
    assert (code, "in_sync" in out) == (0, True), out + err
    await replica.execute("UPDATE a SET v = 'z' WHERE id = 2")
    code, out, err = await tocsin("drift", "a", "--json", **urls)
    report = json.loads(out)
    assert (code, report["status"], report["tables"][0]["sample"]) == (1, "drift", [{"key": {"id": 2}, "state": "different", "columns": ["v"]}])
    code, out, err = await tocsin("drift", "nowhere", **urls)
    assert (code, "no table nowhere is replicated; there are: public.a" in err) == (2, True), out + err
    async with replica.transaction():
        await replica.execute("LOCK TABLE a IN SHARE ROW EXCLUSIVE MODE")
        await source.execute("INSERT INTO a VALUES (3, 'w')")
        code, out, err = await tocsin("drift", **urls)
        assert (code, "lagging" in out) == (3, True), out + err
    code, out, err = await tocsin("drift", source_url=source_url + "_not", replica_url=replica_url)
    assert (code, "does not exist" in err) == (2, True), out + err
