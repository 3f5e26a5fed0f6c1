"""Blocks that are bounded and read in one pass: they cover every key once, up to the ends of the type, and a block that differs is searched."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit
from tocsin_check import audit as audit_module
from tocsin_check.checker import Checker
from tocsin_check.outcome import Outcome
from tocsin_check.sides import open_sides
from tocsin_check.table import Comparable

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


async def test_what_drifted_in_several_blocks_is_judged_at_once_and_counted_where_it_is(
    setup: Setup, source: asyncpg.Connection, replica: asyncpg.Connection, source_url: str, replica_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each block is told in its order, with its own drift; and what is searched costs far fewer fences than one a block."""
    monkeypatch.setattr(audit_module, "FIRST_BLOCK", 500)
    monkeypatch.setattr(audit_module, "LARGEST_BLOCK", 100)
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 4000) i; ANALYZE t")
    await setup("t")
    wrong = [1, *range(650, 2000, 100), 2001, 3999]
    await replica.execute("UPDATE t SET v = 'drift' WHERE id = ANY ($1::int[])", wrong)
    told: list[tuple[int, int]] = []

    async def on_block(outcome: Outcome) -> None:
        told.append((int(outcome.reached[0]) if outcome.reached is not None else 4001, len(outcome.drifted)))

    async with open_sides(source_url, replica_url) as sides:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        outcome = await audit_module.TableAudit(sides, table, on_block=on_block).run()
        marks = (await sides.fence.mark()).number - 1
    assert [int(case.key[0]) for case in outcome.drifted] == wrong
    assert told == [(end, sum(key < end for key in wrong)) for end, _ in told]
    assert (len(told), told[-1]) == (outcome.blocks, (4001, len(wrong)))
    assert marks - outcome.blocks <= len(wrong) / 2
