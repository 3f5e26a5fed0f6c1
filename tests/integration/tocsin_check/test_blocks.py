"""Blocks that are bounded and read in one pass, or read on both sides at once: they cover every key once, up to the ends of the type, and a block
that differs is searched.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

import asyncpg
import pytest

from tests.integration.tocsin_check.conftest import Audit
from tocsin_check.auditing import audit as audit_module
from tocsin_check.auditing.blocks import GREATEST, Block, Blocks
from tocsin_check.auditing.outcome import Outcome
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.fence import Lagging
from tocsin_check.fencing.sides import Sides, open_sides
from tocsin_check.watch.checker import Checker

Setup = Callable[..., Awaitable[None]]


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("kind", ["integer", "bigint"])
async def test_every_drifted_row_is_found_at_the_edges_of_blocks_too(
    setup: Setup, audit: Audit, source: asyncpg.Connection, replica: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, kind: str, dense: bool
) -> None:
    """The last block is full and ends with the greatest key that the type has. Rows drift at many places, the ends among them."""
    if not dense:
        monkeypatch.setattr(audit_module, "LEAST_DENSE", 2)
    monkeypatch.setattr(audit_module, "FIRST_BLOCK", 500)
    monkeypatch.setattr(audit_module, "LARGEST_BLOCK", 100)
    pieces: list[int] = []
    read_piece = Blocks._piece

    async def counted(self: Blocks, low: tuple[str, ...] | None, limit: int, shift: int | None) -> Block:
        block = await read_piece(self, low, limit, shift)
        pieces.append(block.rows)
        return block

    monkeypatch.setattr(Blocks, "_piece", counted)
    greatest = GREATEST[kind]
    await source.execute(f"CREATE TABLE t (id {kind} PRIMARY KEY, v text)")
    await source.execute(f"INSERT INTO t SELECT i, 'v' FROM generate_series(-2000, 1998) i; INSERT INTO t VALUES ({greatest}, 'last'); ANALYZE t")
    await setup("t")
    report = (await audit())["public.t"]
    assert (report.status, report.rows) == ("in_sync", 4000)
    assert dense or pieces == [100] * 34
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


@pytest.fixture
async def dense(setup: Setup, source: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table `t` of 4,000 rows without gaps, and blocks of 100."""
    monkeypatch.setattr(audit_module, "FIRST_BLOCK", 100)
    monkeypatch.setattr(audit_module, "LARGEST_BLOCK", 100)
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 4000) i")
    await setup("t")


@contextlib.asynccontextmanager
async def opened(source_url: str, replica_url: str) -> AsyncIterator[tuple[Sides, Comparable]]:
    async with open_sides(source_url, replica_url) as sides:
        [table] = [t for t in await Checker(source_url, replica_url).take_stock(sides) if isinstance(t, Comparable)]
        yield sides, table


@pytest.mark.usefixtures("dense")
async def test_blocks_that_are_equal_need_no_fence_but_the_table_s_end_does(source_url: str, replica_url: str, replica: asyncpg.Connection) -> None:
    async with opened(source_url, replica_url) as (sides, table):
        outcome = await audit_module.TableAudit(sides, table).run()
        assert (outcome.rows, outcome.drifted, outcome.reached) == (4000, [], None)
        assert outcome.blocks > 30
        assert (await sides.fence.mark()).number == 2
        await replica.execute("ALTER SUBSCRIPTION tocsin DISABLE")
        with pytest.raises(Lagging):
            await audit_module.TableAudit(sides, table, patience=0.3).run()


@pytest.mark.usefixtures("dense")
async def test_what_is_on_its_way_while_both_sides_are_read_at_once_is_awaited(
    source_url: str, replica_url: str, source: asyncpg.Connection, replica: asyncpg.Connection
) -> None:
    """The apply worker stands before a locked row until the audit asks for its first marker: the block that has it differs, and is equal then."""
    async with opened(source_url, replica_url) as (sides, table):
        await replica.execute("BEGIN; SELECT FROM t WHERE id = 2000 FOR UPDATE")
        await source.execute("UPDATE t SET v = 'new' WHERE id >= 2000")
        reached: list[int] = []

        async def on_block(outcome: Outcome) -> None:
            reached.append(outcome.rows)

        async with asyncio.TaskGroup() as group:
            audit = group.create_task(audit_module.TableAudit(sides, table, on_block=on_block).run())
            while await source.fetchval("SELECT count(*) FROM tocsin_check.marker") == 0:
                await asyncio.sleep(0.005)
            assert reached[-1] < 2000
            await replica.execute("COMMIT")
        outcome = audit.result()
    assert (outcome.rows, outcome.drifted, outcome.pending) == (4000, [], [])


@pytest.mark.usefixtures("dense")
async def test_rows_that_only_the_replica_has_before_the_first_and_behind_the_last_are_found(
    source_url: str, replica_url: str, replica: asyncpg.Connection
) -> None:
    await replica.execute("INSERT INTO t VALUES (-2147483648, 'x'), (0, 'x'), (4001, 'x'), (9000, 'x'), (2147483647, 'x')")
    async with opened(source_url, replica_url) as (sides, table):
        outcome = await audit_module.TableAudit(sides, table).run()
    assert sorted(int(case.key[0]) for case in outcome.drifted) == [-2147483648, 0, 4001, 9000, 2147483647]


async def test_a_small_table_is_one_block(setup: Setup, source: asyncpg.Connection, source_url: str, replica_url: str) -> None:
    await source.execute("CREATE TABLE t (id int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'v' FROM generate_series(1, 900) i")
    await setup("t")
    async with opened(source_url, replica_url) as (sides, table):
        outcome = await audit_module.TableAudit(sides, table).run()
    assert (outcome.blocks, outcome.rows) == (1, 900)
