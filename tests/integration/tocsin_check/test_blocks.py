"""Blocks that are bounded and read in one pass: they cover every key once, up to the ends of the type, and a block that differs is searched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit
from tocsin_check import audit as audit_module

Setup = Callable[..., Awaitable[None]]


@pytest.mark.parametrize("kind", ["integer", "bigint"])
async def test_every_drifted_row_is_found_at_the_edges_of_blocks_too(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The last block is full and ends with the greatest key that the type has. Rows drift at many places, the ends among them."""
    monkeypatch.setattr(audit_module, "FIRST_BLOCK", 500)
    monkeypatch.setattr(audit_module, "LARGEST_BLOCK", 100)
    pieces: list[int] = []
    read_piece = audit_module.TableAudit._read_piece

    async def counted(self: audit_module.TableAudit, low: tuple[str, ...] | None) -> audit_module.Block:
        block = await read_piece(self, low)
        pieces.append(block.rows)
        return block

    monkeypatch.setattr(audit_module.TableAudit, "_read_piece", counted)
    greatest = audit_module.GREATEST[kind]
    await source.execute(f"CREATE TABLE t (id {kind} PRIMARY KEY, v text)")
    await source.execute(f"INSERT INTO t SELECT i, 'v' FROM generate_series(-2000, 1998) i; INSERT INTO t VALUES ({greatest}, 'last'); ANALYZE t")
    await setup("t")
    report = (await audit())["public.t"]
    assert (report.status, report.rows) == ("in_sync", 4000)
    assert len(pieces) == 35
    assert set(pieces) == {100}
    await replica.execute(f"UPDATE t SET v = 'drift' WHERE id IN (-2000, 1998, {greatest}) OR id % 500 = 0")
    await replica.execute("DELETE FROM t WHERE id % 100 = 2; INSERT INTO t SELECT 3000 + i, 'extra' FROM generate_series(1, 15) i")
    different = await replica.fetchval("SELECT count(*) FROM t WHERE v = 'drift'")
    missing = 4000 + 15 - await replica.fetchval("SELECT count(*) FROM t")
    report = (await audit())["public.t"]
    assert (report.different, report.missing, report.extra) == (different, missing, 15)
