"""`tocsin install`, `watch`, `watched`, `unwatch`, `uninstall`: what they print, and that every mistake has its fix."""

from __future__ import annotations

import asyncio
import sys

import asyncpg
import msgspec
import pytest
from typer.testing import CliRunner

from tests.support.servers import as_user
from tocsin.cli.main import app
from tocsin.errors import OperatorError
from tocsin_listener.install import install
from tocsin_listener.watch import watch


async def run(url: str, *arguments: str) -> str:
    result = await asyncio.to_thread(CliRunner().invoke, app, [*arguments, "--database-url", url])
    if result.exception is not None:
        raise result.exception
    return result.output


async def test_from_install_to_uninstall(source: asyncpg.Connection, source_url: str) -> None:
    await source.execute("CREATE TABLE orders (id int PRIMARY KEY, customer int, status text); CREATE TABLE log (line text)")
    assert "tocsin watch TABLE" in await run(source_url, "install")
    assert "up to date" in await run(source_url, "install")
    assert "no table is watched" in await run(source_url, "watched")
    out = await run(source_url, "watch", "orders", "--route", "customer", "--when", "status <> 'draft'", "--old", "full")
    assert "change.public.orders." in out
    out = await run(source_url, "watch", "log")
    assert "no primary key" in out
    assert "ALTER TABLE log ADD PRIMARY KEY" in out
    found = msgspec.json.decode(await run(source_url, "watched", "--json"))
    assert [(e["relation"], e["route"], e["when"], e["old"]) for e in found] == [
        ("log", [], None, "changed"),
        ("orders", ["customer"], "status <> 'draft'", "full"),
    ]
    assert "orders" in await run(source_url, "watched")
    assert "no longer watching log" in await run(source_url, "unwatch", "log")
    assert "nothing of Tocsin is left" in await run(source_url, "uninstall")
    assert "there was nothing" in await run(source_url, "uninstall")


@pytest.mark.parametrize(
    ("table", "options", "message", "fix"),
    [
        ("order", {}, "there is no table order", "did you mean orders"),
        ("nothing_like_it_at_all", {}, "there is no table", "the database has: orders"),
        ("'; DROP TABLE orders", {}, "there is no table", ""),
        ("v", {}, "is a view", "watch the tables"),
        ("pg_class", {}, "can't be watched", ""),
        ("tocsin.journal", {}, "can't be watched", ""),
        ("orders", {"ops": ["insert", "upsert"]}, "'upsert' is not an operation", "insert, update, delete, truncate"),
        ("orders", {"columns": ["statsu"]}, "has no column statsu", "did you mean status"),
        ("orders", {"route": ["nope"]}, "has no column nope", "its columns are id, status"),
        ("orders", {"when": "stat = 1"}, "is not a condition", "as in WHERE"),
        ("orders", {"when": "status"}, "is not a condition", "as in WHERE"),
        ("orders", {"route": ["id"] * 9}, "too many", "fewer"),
    ],
)
async def test_a_mistake_is_named_with_its_fix(source: asyncpg.Connection, table: str, options: dict[str, list[str]], message: str, fix: str) -> None:
    await source.execute("CREATE TABLE orders (id int PRIMARY KEY, status text); CREATE VIEW v AS SELECT 1")
    await install(source)
    with pytest.raises(OperatorError) as raised:
        await watch(source, [table], **options)  # type: ignore[arg-type]
    assert message in str(raised.value)
    assert fix in raised.value.fix
    assert await source.fetchval("SELECT count(*) FROM tocsin.watched") == 0, "all or nothing"
    assert await source.fetchval("SELECT to_regclass('orders') IS NOT NULL")


async def test_without_the_schema_the_fix_is_to_install(source: asyncpg.Connection) -> None:
    with pytest.raises(OperatorError, match="not installed") as raised:
        await watch(source, ["orders"])
    assert raised.value.fix == "tocsin install"


async def test_missing_privileges_are_named_with_the_grant(source: asyncpg.Connection) -> None:
    database = await source.fetchval("SELECT current_database()")
    await source.execute("DROP ROLE IF EXISTS tocsin_test_installer; CREATE ROLE tocsin_test_installer; CREATE TABLE orders (id int PRIMARY KEY)")
    await source.execute("SET ROLE tocsin_test_installer")
    with pytest.raises(OperatorError) as raised:
        await install(source)
    await source.execute("RESET ROLE; " + raised.value.fix.removeprefix("as a superuser: ") + "; SET ROLE tocsin_test_installer")
    await install(source)
    with pytest.raises(OperatorError) as raised:
        await watch(source, ["orders"])
    assert raised.value.fix == "as its owner: GRANT TRIGGER ON orders TO tocsin_test_installer"
    await source.execute("RESET ROLE; " + raised.value.fix.removeprefix("as its owner: ") + "; SET ROLE tocsin_test_installer")
    await watch(source, ["orders"])
    await source.execute("RESET ROLE; INSERT INTO orders VALUES (1)")
    assert await source.fetchval("SELECT count(*) FROM tocsin.journal") == 1
    await source.execute(f"DROP OWNED BY tocsin_test_installer CASCADE; REVOKE ALL ON DATABASE {database} FROM tocsin_test_installer")
    await source.execute("DROP ROLE tocsin_test_installer")


async def test_a_locked_table_is_given_up_before_writers_queue(source: asyncpg.Connection, source_url: str) -> None:
    await source.execute("CREATE TABLE orders (id int PRIMARY KEY)")
    await install(source)
    other = await asyncpg.connect(source_url)
    async with other.transaction():
        await other.execute("INSERT INTO orders VALUES (1)")
        with pytest.raises(OperatorError, match="locked by another transaction"):
            await watch(source, ["orders"], patience=0.1)
    await other.close()
    await watch(source, ["orders"])


async def test_whoever_may_do_nothing_is_told_who_may(source: asyncpg.Connection, source_url: str) -> None:
    """Never in a traceback: also where PostgreSQL's refusal comes in the middle of a transaction."""
    await source.execute("CREATE ROLE tocsin_test_nobody LOGIN; CREATE TABLE orders (id int PRIMARY KEY)")
    await install(source)
    await watch(source, ["orders"])
    owner = await source.fetchval("SELECT current_user")
    url = as_user(source_url, "tocsin_test_nobody")
    for verb in (["uninstall"], ["watch", "orders"], ["unwatch", "orders"], ["watched"], ["install"]):
        child = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tocsin.cli.main", *verb, "--database-url", url), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        said, _ = await child.communicate()
        assert (child.returncode, b"Traceback" in said, b"fix: " in said) == (1, False, True), said.decode()
        assert verb == ["install"] or owner in said.decode(), said.decode()
    await source.execute("DROP ROLE tocsin_test_nobody")
