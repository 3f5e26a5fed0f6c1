"""`tocsin drift` in the terminal: values only when asked for, progress, interruption and resumption."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg

from tests.integration.tocsin_check.test_service import tocsin
from tests.support.servers import as_user

Setup = Callable[..., Awaitable[None]]


async def test_values_are_shown_only_when_asked_for(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    urls = {"source_url": source_url, "replica_url": replica_url}
    await source.execute(
        "CREATE TABLE a (id int, r text, v text, w text, PRIMARY KEY (id, r)); INSERT INTO a VALUES (1, 'x', 'hushhush', NULL), (2, 'y', 'b', 'c ')"
    )
    await setup()
    await replica.execute("UPDATE a SET v = 'altered', w = '' WHERE id = 1; UPDATE a SET w = 'c' WHERE id = 2")
    code, out, err = await tocsin("drift", **urls)
    assert (code, "v, w" in out, "hushhush" in out + err, "altered" in out + err) == (1, True, False, False), out + err
    code, out, err = await tocsin("drift", "--json", **urls)
    assert "hushhush" not in out
    code, out, err = await tocsin("drift", "--show-values", **urls)
    assert "v: source 'hushhush', replica 'altered'" in out
    assert "w: source NULL, replica ''" in out
    assert "w: source 'c ', replica 'c'" in out
    code, out, err = await tocsin("drift", "--json", "--show-values", **urls)
    sample = {row["key"]["id"]: row["values"] for row in json.loads(out)["tables"][0]["sample"]}
    assert sample == {
        1: {"v": {"source": "hushhush", "replica": "altered"}, "w": {"source": None, "replica": ""}},
        2: {"w": {"source": "c ", "replica": "c"}},
    }


async def _interrupted(source_url: str, replica_url: str, state: Path, *arguments: str) -> str:
    """A run that gets Ctrl-C once it has written its state; what it says."""
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("TOCSIN_")}, "TOCSIN_DATABASE_URL": source_url, "TOCSIN_REPLICA_URL": replica_url}
    command = [sys.executable, "-m", "tocsin.cli.main", "drift", "--state", str(state), *arguments]
    child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        while not state.exists():
            await asyncio.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = await child.communicate()
    assert child.returncode == 130, err.decode()
    return err.decode()


async def test_an_interrupted_run_goes_on_with_the_tables_that_are_left(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, tmp_path: Path
) -> None:
    """The second table's partition is locked, so that the run stands there; after Ctrl-C the first one is not read again."""
    await source.execute("""
        CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1), (2);
        CREATE TABLE b (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE b1 PARTITION OF b DEFAULT; INSERT INTO b VALUES (1)""")
    await setup()
    await replica.execute("DELETE FROM a WHERE id = 2")
    state = tmp_path / "state.json"
    async with source.transaction():
        await source.execute("LOCK TABLE b1 IN ACCESS EXCLUSIVE MODE")
        err = await _interrupted(source_url, replica_url, state)
    assert "public.a drift" in err
    assert "1 table left; go on with the same command" in err
    assert state.stat().st_mode & 0o077 == 0
    await replica.execute("INSERT INTO a VALUES (2)")  # mended, which only a new look at the table could see
    code, out, err2 = await tocsin("drift", "--json", "--state", str(state), source_url=source_url, replica_url=replica_url)
    assert (code, [(t["table"], t["status"]) for t in json.loads(out)["tables"]]) == (1, [("public.a", "drift"), ("public.b", "in_sync")]), err2
    assert not state.exists(), "a run that came to its end begins anew the next time"
    code, out, _ = await tocsin("drift", "--state", str(state), source_url=source_url, replica_url=replica_url)
    assert (code, "in_sync" in out) == (0, True)
    state.write_text("nonsense")
    code, _, err2 = await tocsin("drift", "--state", str(state), source_url=source_url, replica_url=replica_url)
    assert (code, "is no state of tocsin drift" in err2) == (2, True)
    state.write_text('{"pair": ["elsewhere", "there"], "tables": {}}')
    code, _, err2 = await tocsin("drift", "--state", str(state), source_url=source_url, replica_url=replica_url)
    assert (code, "is of other databases: elsewhere, there" in err2) == (2, True)


async def test_a_table_that_was_interrupted_goes_on_where_it_was(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, tmp_path: Path
) -> None:
    """What was read before is not read again: a row that was mended there meanwhile still counts, and one that drifts there now does not."""
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v int); INSERT INTO t SELECT i, i FROM generate_series(1, 260000) i")
    await setup()
    await replica.execute("UPDATE t SET v = -1 WHERE id IN (7, 259999)")
    state, urls = tmp_path / "state.json", {"source_url": source_url, "replica_url": replica_url}
    await _interrupted(source_url, replica_url, state, "--max-rows", "100000")
    begun = json.loads(state.read_text())["begun"]["public.t"]
    assert 0 < begun["rows"] < 260_000
    assert [case["key"] for case in begun["cases"]] == [["7"]]
    await replica.execute("UPDATE t SET v = id WHERE id = 7; UPDATE t SET v = -1 WHERE id = 8")
    kept = state.read_text()
    code, _, err = await tocsin("drift", "--exact", "--state", str(state), **urls)
    assert (code, "is of a run without --exact" in err) == (2, True), err
    code, out, err = await tocsin("drift", "--json", "--state", str(state), **urls)
    [table] = json.loads(out)["tables"]
    assert (code, table["rows"], [row["key"]["id"] for row in table["sample"]]) == (1, 260_000, [7, 259_999]), err
    assert table["verified_lsn"] == begun["position"], "no more is proven than from where it began"
    for connection in (source, replica):
        await connection.execute("ALTER TABLE t ADD COLUMN w int")
    state.write_text(kept)
    code, out, err = await tocsin("drift", "--json", "--state", str(state), **urls)
    assert [row["key"]["id"] for row in json.loads(out)["tables"][0]["sample"]] == [8, 259_999], "another shape is read from its beginning"


async def test_what_can_not_be_checked_or_written_is_said_at_once(source_url: str, replica_url: str, tmp_path: Path) -> None:
    urls = {"source_url": source_url, "replica_url": replica_url}
    for arguments, said in (
        (("--state", str(tmp_path)), "is a folder"),
        (("--state", str(tmp_path / "no" / "state")), "there is no folder"),
        (("--repair", "--output", str(tmp_path / "no" / "sql")), "there is no folder"),
    ):
        code, out, err = await tocsin("drift", *arguments, **urls)
        assert (code, out, said in err, "Traceback" in err) == (2, "", True, False), err
    code, out, err = await tocsin("drift", source_url=source_url, replica_url="postgresql://postgres@127.0.0.1:1/none")
    assert (code, "does not answer" in err, "Traceback" in err) == (2, True, False), err
    code, out, err = await tocsin("drift", source_url=source_url, replica_url=source_url)
    assert (code, "are the same database" in err, "fix: point TOCSIN_REPLICA_URL at the copy" in err) == (2, True, True), err


async def test_a_user_without_rights_is_told_so(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE ROLE tocsin_test_stranger LOGIN; CREATE TABLE a (id int PRIMARY KEY)")
    await setup()
    code, _, err = await tocsin("drift", source_url=as_user(source_url, "tocsin_test_stranger"), replica_url=replica_url)
    assert (code, "does not let this user" in err, "fix: GRANT" in err, "Traceback" in err) == (2, True, True, False), err
    await source.execute("DROP ROLE tocsin_test_stranger")
