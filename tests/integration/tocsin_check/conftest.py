"""A replicated pair: two real servers, tables made by the test, replication set up by Tocsin."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio

from tests.support import servers
from tocsin_check.catalog.table import Comparable
from tocsin_check.fencing.pace import Pace
from tocsin_check.fencing.sides import open_sides
from tocsin_check.replication.replicate import replicate
from tocsin_check.watch.checker import Checker
from tocsin_check.watch.ledger import Ledger
from tocsin_check.watch.report import TableReport


@pytest.fixture
def own_url(source_url: str, source_server: servers.Server) -> str:
    """The source database as the replica's server reaches it."""
    return source_url.replace(source_server.url.rpartition("/")[0], source_server.own_url.rpartition("/")[0])


@pytest_asyncio.fixture
async def setup(source_url: str, replica_url: str, own_url: str) -> AsyncIterator[Callable[..., Awaitable[None]]]:
    """Replicate the tables that exist by now."""

    async def call(*tables: str) -> None:
        await replicate(source_url=source_url, replica_url=replica_url, tables=tables, source_url_from_replica=own_url, patience=60)

    yield call


class Audited(dict[str, TableReport]):
    """The reports by table, and the ledger behind them."""

    ledger: Ledger


Audit = Callable[[], Awaitable[Audited]]


@pytest.fixture
def audit(source_url: str, replica_url: str) -> Audit:
    """Audit every replicated table once, as the service does; the reports by table."""

    async def call() -> Audited:
        checker = Checker(source_url, replica_url, pace=Pace())
        async with open_sides(source_url, replica_url) as sides:
            for table in await checker.take_stock(sides):
                if isinstance(table, Comparable):
                    await checker.auditor.audit_table(sides, table)
        audited = Audited({table.table: table for table in checker.report().tables})
        audited.ledger = checker.ledger
        return audited

    return call
