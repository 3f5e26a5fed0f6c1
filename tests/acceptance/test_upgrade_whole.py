"""An upgrade as an operator does it: an earlier program at work, under load, then this one's `tocsin install` and listener; and back."""

from __future__ import annotations

import asyncio
import os
import subprocess
import tarfile
from io import BytesIO
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from nats.aio.client import Client

from tests.acceptance.test_whole import SCRIPT, assert_whole
from tests.support import oracle
from tests.support.pipeline import pipeline
from tocsin.stack.process import tail
from tocsin_listener.install import VERSION

ROOT = Path(__file__).parents[2]
OLD = {1: "65b8f02", 2: "85d60bb", 3: "0eefdbf", 4: "f4b7ccc"}
"""The last commit whose schema was of that version."""
READS_ON = 3
"""From this version on a listener that runs goes on over a newer schema; older ones have to be stopped first, and `tocsin install` says so."""


def unpacked(commit: str, folder: Path) -> str:
    """PYTHONPATH of the program at that commit."""
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    assert archive.returncode == 0, f"this test needs the repository's history: {archive.stderr.decode()}"
    with tarfile.open(fileobj=BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return os.pathsep.join(str(folder / part) for part in (".", "services/listener", "services/gateway", "services/replicator-check"))


def test_no_version_is_left_out() -> None:
    assert list(OLD) == list(range(1, VERSION))


@pytest.mark.slow
@pytest.mark.parametrize("version", OLD)
async def test_from_an_earlier_program_to_this_one_under_load_and_back_nothing_is_lost_or_repeated(tmp_path: Path, version: int) -> None:
    # Safe: else Python looks for modules in the folder that it runs in first, which is this program.
    old: dict[str, Any] = {"PYTHONPATH": unpacked(OLD[version], tmp_path), "PYTHONSAFEPATH": "1"}
    async with pipeline() as running:
        source = await asyncpg.connect(running.source_url)
        await source.execute("CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL DEFAULT 0)")
        await source.execute("CREATE TABLE ledger (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, account int NOT NULL, amount int NOT NULL)")
        await source.execute("INSERT INTO accounts SELECT generate_series(1, 50)")
        present, running.environment = running.environment, running.environment | old
        await running.tocsin("install")
        await running.tocsin("watch", "accounts", "ledger")
        running.environment = present
        assert await source.fetchval("SELECT version FROM tocsin.identity") == version
        await running.start("listener", **old)
        async with asyncio.TaskGroup() as group:
            load = group.create_task(running.pgbench(SCRIPT, writers=8, seconds=8))
            await asyncio.sleep(2)
            if version < READS_ON:
                assert "stop the listeners" in await running.tocsin("install", expect=1)
                await running.kill("listener")
            # A process that restarts by itself meets the new schema only after the install below; until then the old one goes on.
            await running.tocsin("install")
            await asyncio.sleep(1)
            if version >= READS_ON:
                assert running.services["listener"].returncode is None, f"the old listener goes on over it: {tail(running.folder / 'listener.log', 30)}"
                await running.kill("listener")
            refused = await running.start("listener", ready=False, name="old", **old)
            assert await refused.wait() == 1, "the old program, started anew, refuses the newer schema"
            running.services.pop("old")
            await running.start("listener")
        await running.start("gateway")
        async with oracle.socket_client(running.socket_url, "pg.shop.change.>", since="start") as (seen, arrived):
            assert await assert_whole(running, source, seen, arrived) == load.result()[0]
        # And back, as docs/operations/upgrades.md says.
        await running.stop("listener")
        await running.tocsin("uninstall")
        running.environment = present | old
        await running.tocsin("install")
        await running.tocsin("watch", "accounts", "ledger")
        running.environment = present
        await running.start("listener", **old)
        await source.execute("INSERT INTO ledger (account, amount) VALUES (1, 4711)")
        client = Client()
        await client.connect(running.nats.url)
        async with asyncio.timeout(15):
            while 4711 not in (again := await oracle.stream_events(client, "TOCSIN_SHOP")).values("amount"):
                await asyncio.sleep(0.05)
        await client.close()
        assert len(again.ids) == len(set(again.ids)), "no id is given twice"
        assert again.ids[: len(seen.ids)] == seen.ids, "what was there stays as it was"
        await source.close()
