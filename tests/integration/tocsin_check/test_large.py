"""Sizes beyond every limit of memory: a large table without a key, more drift than is kept by key, and keys with wide gaps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit
from tests.integration.tocsin_check.test_service import tocsin
from tocsin_check.auditing import audit as audit_module
from tocsin_check.auditing import outcome as outcome_module
from tocsin_check.watch import ledger as ledger_module

Setup = Callable[..., Awaitable[None]]


async def test_a_large_table_without_a_key_is_searched_in_parts(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts by hash; drift in the first, the last and in between, and an equal row that is there twice."""
    monkeypatch.setattr(audit_module, "LARGEST_BLOCK", 3_000)
    await source.execute("CREATE TABLE t (a int, b text); ALTER TABLE t REPLICA IDENTITY FULL")
    await source.execute("INSERT INTO t SELECT i, 'v' || i FROM generate_series(1, 40000) i; INSERT INTO t SELECT 0, 'same' FROM generate_series(1, 500)")
    await setup("t")
    assert (await audit())["public.t"].status == "in_sync"
    await replica.execute("UPDATE t SET b = b || 'x' WHERE a % 400 = 1; DELETE FROM t WHERE a % 401 = 2")
    await replica.execute("DELETE FROM t WHERE ctid IN (SELECT ctid FROM t WHERE a = 0 LIMIT 3); INSERT INTO t SELECT 7, 'v7' FROM generate_series(1, 2)")
    report = (await audit())["public.t"]
    assert (report.missing, report.extra) == (100 + 100 + 3, 100 + 2)


async def test_more_drift_than_is_kept_is_counted_and_repaired_to_the_end(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module, name in ((outcome_module, "CASES_KEPT"), (ledger_module, "ROWS_KEPT")):
        monkeypatch.setattr(module, name, 100)
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 2000) i")
    await setup("t")
    await replica.execute("UPDATE t SET v = 'w' WHERE id <= 300; DELETE FROM t WHERE id > 1950")
    checked = await audit()
    report = checked["public.t"]
    assert (report.different, report.missing) == (300, 50)
    page = checked.ledger.page("public.t", None, 1000)
    assert page is not None
    assert len(page.rows) == 100
    assert not checked.ledger.knows_all("public.t")
    code, out, err = await tocsin("drift", "--repair", "--apply", source_url=source_url, replica_url=replica_url)
    assert code == 0, out + err
    assert "350 rows repaired" in err


@pytest.mark.slow
async def test_more_than_a_hundred_thousand_drifts(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str
) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 130000) i")
    await setup("t")
    await replica.execute("UPDATE t SET v = 'w' WHERE id <= 110000")
    urls = {"source_url": source_url, "replica_url": replica_url}
    code, out, err = await tocsin("drift", "--json", **urls)
    assert (code, '"different": 110000' in out) == (1, True), out + err
    code, out, err = await tocsin("drift", "--repair", "--apply", **urls)
    assert code == 0, out + err
    assert await replica.fetchval("SELECT count(*) FROM t WHERE v = 'w'") == 0


async def test_keys_at_the_ends_of_bigint_and_far_apart(setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection) -> None:
    """Buckets are cut by arithmetic, which must not overflow."""
    ends = "(-9223372036854775808), (-9223372036854775807), (-1), (0), (1), (9223372036854775806), (9223372036854775807)"
    await source.execute(f"CREATE TABLE t (id bigint PRIMARY KEY, v int DEFAULT 0); INSERT INTO t (id) VALUES {ends}")
    await source.execute("INSERT INTO t SELECT i::bigint * 1000003 + 5, 0 FROM generate_series(1, 4000) i")
    await source.execute("CREATE TABLE s (id smallint PRIMARY KEY, v int); INSERT INTO s SELECT i, 0 FROM generate_series(-32768, 32767, 7) i")
    await setup()
    assert {t.status for t in (await audit()).values()} == {"in_sync"}
    await replica.execute("UPDATE t SET v = 1 WHERE id < -1 OR id > 9223372036854775000; DELETE FROM t WHERE id IN (0, 1000008); INSERT INTO t VALUES (77, 7)")
    await replica.execute("UPDATE s SET v = 1 WHERE id IN (-32768, 32767 - 65535 % 7); DELETE FROM s WHERE id = 0; INSERT INTO s VALUES (32767, 1)")
    reports = await audit()
    t, s = reports["public.t"], reports["public.s"]
    assert (t.different, t.missing, t.extra) == (4, 2, 1)
    planted = [await replica.fetchval(f"SELECT count(*) FROM s WHERE {where}") for where in ("v = 1 AND id <> 32767", "id = 32767")]
    assert s.different == planted[0]
    assert s.extra + s.different >= sum(planted)
