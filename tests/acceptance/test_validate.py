"""`tocsin validate`: a whole installation passes, a broken part is named with its fix, and nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import sys
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import jwt
import pytest
import pytest_asyncio

from tests.support.pipeline import Pipeline, pipeline
from tests.support.up import place, up

NAMES = r"SELECT n.nspname || '.' || c.relname FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.relname ~ 'tocsin_validate_'"


async def validate(environment: dict[str, str], *flags: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tocsin.cli.main", "validate", "--json", *flags),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await child.communicate()
    assert output, errors.decode()
    assert child.returncode is not None
    return child.returncode, json.loads(output)


def failures(report: dict[str, Any]) -> dict[str, str]:
    """The parts that failed, each with its fix."""
    return {step["part"]: step["fix"] for step in report["steps"] if not step["ok"]}


async def left_behind(source_url: str, replica_url: str | None) -> dict[str, list[str]]:
    """What is still there of any validation, on both sides: tables, watches, publication, subscription, slots, advisory locks."""
    found: dict[str, list[str]] = {}
    for side, url in (("source", source_url), ("replica", replica_url)):
        if url is None:
            continue
        connection = await asyncpg.connect(url)
        questions = {
            "tables": NAMES,
            "published": "SELECT tablename FROM pg_publication_tables WHERE tablename ~ 'tocsin_validate_'",
            "subscribed": "SELECT srrelid::regclass::text FROM pg_subscription_rel WHERE srrelid::regclass::text ~ 'tocsin_validate_'"
            " OR NOT EXISTS (SELECT FROM pg_class WHERE oid = srrelid)",
            "slots": "SELECT slot_name FROM pg_replication_slots WHERE slot_name LIKE 'pg\\_%\\_sync\\_%'",
        }
        if side == "source":
            questions["watched"] = (
                "SELECT relation::text FROM tocsin.watched WHERE relation::text ~ 'tocsin_validate_' OR NOT EXISTS (SELECT FROM pg_class WHERE oid = relation)"
            )
            questions["functions"] = "SELECT proname FROM pg_proc WHERE prosrc ~ 'tocsin_validate_'"
        for what, question in questions.items():
            rows = [str(row[0]) for row in await connection.fetch(question)]
            if rows:
                found[f"{side} {what}"] = rows
        await connection.close()
    return found


@pytest_asyncio.fixture(scope="module")
async def installation() -> AsyncIterator[Pipeline]:
    """Every service a process of its own, nobody to start it again; a table of the application is watched and replicated."""
    async with pipeline(replica=True) as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute("CREATE TABLE orders (id int PRIMARY KEY, note text); INSERT INTO orders SELECT n, 'order' FROM generate_series(1, 100) AS n")
        await source.close()
        await running.tocsin("install")
        await running.tocsin("watch", "orders")
        await running.tocsin("replicate", "orders")
        for service in ("listener", "gateway", "check"):
            await running.start(service)
        yield running


@contextlib.asynccontextmanager
async def without(running: Pipeline, service: str) -> AsyncIterator[None]:
    await running.kill(service)
    try:
        yield
    finally:
        await running.start(service)


async def test_tocsin_up_is_valid_with_nothing_set_up_before_and_nothing_left_after() -> None:
    """No table, no replication yet: both are made for the round and removed after."""
    async with place() as here, up(here, "--no-demo") as running:
        await running.until_line("replica:")
        code, report = await validate(here.environment)
        assert code == 0, report
        assert report["ok"]
        assert {step["part"] for step in report["steps"]} == {"source", "replica", "checker", "NATS", "gateway", "listener"}
        assert all(step["seconds"] >= 0 for step in report["steps"])
        assert await left_behind(here.source_url, here.replica_url) == {}
        replica = await asyncpg.connect(here.replica_url)
        assert await replica.fetchval("SELECT count(*) FROM pg_subscription") == 0, "there was no replication before"
        await replica.close()
        source = await asyncpg.connect(here.source_url)
        assert await source.fetchval("SELECT count(*) FROM pg_replication_slots") == 0
        assert await source.fetchval("SELECT count(*) FROM pg_publication") == 0
        await source.close()


async def test_a_running_installation_is_valid_and_its_own_replication_stays_as_it_is(installation: Pipeline) -> None:
    replica = await asyncpg.connect(installation.replica_url)
    facts = "SELECT subname, subconninfo, subslotname, subpublications, subenabled FROM pg_subscription"
    before = await replica.fetch(facts)
    code, report = await validate(installation.environment)
    assert code == 0, report
    assert await replica.fetch(facts) == before
    assert [row[0] for row in await replica.fetch("SELECT srrelid::regclass::text FROM pg_subscription_rel ORDER BY 1")] == ["orders", "tocsin_check.marker"]
    assert await replica.fetchval("SELECT count(*) FROM orders") == 100
    await replica.close()
    assert await left_behind(installation.source_url, installation.replica_url) == {}
    seen = next(step for step in report["steps"] if step["what"].startswith("insert:"))
    assert set(seen["figures"]) == {"WebSocket ms", "NATS ms"}


@pytest.mark.parametrize(
    ("service", "part", "fix"), [("listener", "listener", "tocsin listener"), ("gateway", "gateway", "tocsin gateway"), ("check", "checker", "tocsin check")]
)
async def test_a_service_that_is_down_is_named_with_its_fix_and_nothing_is_left(installation: Pipeline, service: str, part: str, fix: str) -> None:
    async with without(installation, service):
        code, report = await validate(installation.environment, "--patience", "2")
    assert code == 1
    assert list(failures(report)) == [part], report
    assert failures(report)[part].startswith(fix)
    assert await left_behind(installation.source_url, installation.replica_url) == {}


async def test_a_disabled_subscription_is_named_with_its_fix_and_nothing_is_made(installation: Pipeline) -> None:
    replica = await asyncpg.connect(installation.replica_url)
    await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")
    try:
        code, report = await validate(installation.environment)
    finally:
        await replica.execute("ALTER SUBSCRIPTION tocsin ENABLE")
    assert code == 1
    assert list(failures(report)) == ["replica"], report
    assert "ALTER SUBSCRIPTION tocsin ENABLE" in failures(report)["replica"]
    assert await left_behind(installation.source_url, installation.replica_url) == {}
    await replica.close()


@pytest.mark.slow
async def test_a_subscription_disabled_in_the_middle_is_named_and_goes_on_afterwards_and_the_next_run_removes_what_had_to_stay(installation: Pipeline) -> None:
    """The replica still has to write into the trial's table: dropping it there would stop the replication of every table."""
    child = await begun(installation, "--json", "--patience", "2")
    replica = await asyncpg.connect(installation.replica_url)
    # Once its copy is done PostgreSQL itself lets the table be dropped, and the changes are still to come.
    async with asyncio.timeout(20):
        while not await replica.fetchval(
            "SELECT EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid::regclass::text ~ 'tocsin_validate_' AND srsubstate = 'r')"
        ):
            await asyncio.sleep(0.002)
    name = await replica.fetchval("SELECT srrelid::regclass::text FROM pg_subscription_rel WHERE srrelid::regclass::text ~ 'tocsin_validate_'")
    async with replica.transaction():
        await replica.execute(f"LOCK TABLE {name} IN SHARE MODE")
        other = await asyncpg.connect(installation.replica_url)
        await other.execute("ALTER SUBSCRIPTION tocsin DISABLE")
        await other.close()
    output, _ = await child.communicate()
    report = json.loads(output)
    assert child.returncode == 1
    assert list(failures(report)) == ["replica"], report
    assert len(report["left"]) == 1
    assert "DROP TABLE" in report["left"][0]
    assert "replica tables" in await left_behind(installation.source_url, installation.replica_url)
    source = await asyncpg.connect(installation.source_url)
    await source.execute("INSERT INTO orders VALUES (1000, 'while it was disabled')")
    await replica.execute("ALTER SUBSCRIPTION tocsin ENABLE")
    async with asyncio.timeout(20):
        while not await replica.fetchval("SELECT EXISTS (SELECT FROM orders WHERE id = 1000)"):
            await asyncio.sleep(0.05)
    await source.execute("DELETE FROM orders WHERE id = 1000")
    await source.close()
    await replica.close()
    code, report = await validate(installation.environment)
    assert code == 0, report
    assert await left_behind(installation.source_url, installation.replica_url) == {}


async def test_a_user_who_may_only_read_is_told_what_is_missing_and_nothing_is_made(installation: Pipeline) -> None:
    source = await asyncpg.connect(installation.source_url)
    await source.execute("CREATE ROLE only_reads LOGIN; GRANT pg_read_all_data TO only_reads")
    reader = {**installation.environment, "TOCSIN_DATABASE_URL": installation.source_url.replace("postgres@", "only_reads@")}
    try:
        code, report = await validate(reader)
        assert code == 1
        assert list(failures(report)) == ["source"], report
        assert "grant this user that right" in failures(report)["source"]
        await source.execute("GRANT CREATE ON SCHEMA public TO only_reads; ALTER ROLE only_reads SET default_transaction_read_only = on")
        code, report = await validate(reader)
        assert code == 1
        assert "default_transaction_read_only" in failures(report)["source"], report
        # It may make the table now, and not watch it.
        await source.execute("ALTER ROLE only_reads RESET default_transaction_read_only")
        code, report = await validate(reader)
        assert code == 1
        assert "grant this user that right" in failures(report)["source"], report
        assert await left_behind(installation.source_url, installation.replica_url) == {}
    finally:
        await source.execute("DROP OWNED BY only_reads; DROP ROLE only_reads")
        await source.close()


async def test_everything_that_is_down_is_named_at_once(installation: Pipeline) -> None:
    nowhere = {"TOCSIN_NATS_URL": "nats://127.0.0.1:1", "TOCSIN_REPLICA_URL": "postgresql://postgres@127.0.0.1:1/shop", "TOCSIN_GATEWAY_PORT": "1"}
    code, report = await validate({**installation.environment, **nowhere}, "--patience", "2")
    assert code == 1
    assert list(failures(report)) == ["replica", "NATS", "gateway"], report


@pytest.mark.slow
async def test_a_listener_that_dies_in_the_middle_is_named_and_nothing_is_left(installation: Pipeline) -> None:
    """Its process is stopped, so that it leads no more, when the table is already there."""
    source = await asyncpg.connect(installation.source_url)

    async def kill_in_the_middle() -> None:
        while not await source.fetchval("SELECT EXISTS (SELECT FROM tocsin.watched WHERE relation::text ~ 'tocsin_validate_')"):
            await asyncio.sleep(0.002)
        await installation.kill("listener")

    try:
        async with asyncio.TaskGroup() as group:
            killing = group.create_task(kill_in_the_middle())
            code, report = await validate(installation.environment, "--patience", "2")
            killing.cancel()
    finally:
        await installation.start("listener")
        await source.close()
    assert code == 1, report
    assert list(failures(report)) == ["listener"], report
    assert await left_behind(installation.source_url, installation.replica_url) == {}


async def begun(installation: Pipeline, *flags: str) -> asyncio.subprocess.Process:
    """A validation whose table is there and replicated."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tocsin.cli.main", "validate", *flags),
        env=installation.environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    replica = await asyncpg.connect(installation.replica_url)
    async with asyncio.timeout(30):
        while not await replica.fetchval("SELECT EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid::regclass::text ~ 'tocsin_validate_')"):
            await asyncio.sleep(0.005)
    await replica.close()
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_interrupted_it_leaves_nothing(installation: Pipeline, number: signal.Signals) -> None:
    child = await begun(installation)
    child.send_signal(number)
    output, _ = await child.communicate()
    assert child.returncode == 130, output.decode()
    assert b"all that was made is removed" in output
    assert await left_behind(installation.source_url, installation.replica_url) == {}


@pytest.mark.slow
async def test_what_a_killed_one_left_is_removed_by_the_next_and_a_running_one_is_left_alone(installation: Pipeline) -> None:
    child = await begun(installation)
    child.send_signal(signal.SIGSTOP)
    code, _report = await validate(installation.environment, "--no-replica")
    assert code == 0
    assert "replica tables" in await left_behind(installation.source_url, installation.replica_url), "the one that runs still needs its table"
    child.kill()
    await child.communicate()
    assert await left_behind(installation.source_url, installation.replica_url) != {}
    code, report = await validate(installation.environment)
    assert code == 0, report
    assert await left_behind(installation.source_url, installation.replica_url) == {}


@pytest.mark.slow
async def test_where_tokens_are_asked_for_it_makes_its_own_from_the_secret_and_else_says_so(installation: Pipeline) -> None:
    secret: dict[str, Any] = {"TOCSIN_JWT_SECRET": "a secret of more than thirty-two bytes"}
    for service in ("gateway", "check"):
        await installation.kill(service)
        await installation.start(service, **secret)
    try:
        code, report = await validate(installation.environment)
        assert code == 1
        assert set(failures(report)) == {"gateway", "checker"}, report
        assert all("--token" in fix for fix in failures(report).values())
        code, report = await validate({**installation.environment, **secret}, "--no-replica")
        assert code == 0, report
        token = jwt.encode({"exp": 4_000_000_000, "subscribe": ["pg.other.>"]}, secret["TOCSIN_JWT_SECRET"], "HS256")
        code, report = await validate(installation.environment, "--token", token, "--no-replica")
        assert "forbidden" in next(step["detail"] for step in report["steps"] if not step["ok"])
    finally:
        for service in ("gateway", "check"):
            await installation.kill(service)
            await installation.start(service)
