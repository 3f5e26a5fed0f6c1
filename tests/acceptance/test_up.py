"""`tocsin up`: everything starts with one command, an event goes all the way round, and nothing stays behind."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import msgspec
import pytest
from nats.aio.client import Client
from websockets.asyncio.client import connect

from tests.support import oracle
from tests.support.certificates import Authority
from tests.support.up import Place, place, up
from tocsin.stack.process import free_port

SERVICES = ("listener", "gateway", "check", "demo")


@contextlib.asynccontextmanager
async def database(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def until(condition: str, url: str, *, patience: float = 20) -> None:
    """Returns once the SQL condition holds."""
    async with asyncio.timeout(patience), database(url) as connection:
        while not await connection.fetchval(f"SELECT {condition}"):
            await asyncio.sleep(0.05)


async def test_a_commit_of_ones_own_reaches_a_websocket_client_nats_and_the_replica_and_sigterm_leaves_nothing() -> None:
    async with place() as here:
        async with up(here, "--no-demo") as running:
            # Without the demo there is no table of ours yet: this is the way of somebody who brings a table along.
            await running.until_line("ready")
            async with database(here.source_url) as source:
                await source.execute("CREATE TABLE notes (id int PRIMARY KEY, body text)")
            environment = {**here.environment, "TOCSIN_DATABASE_URL": here.source_url, "TOCSIN_REPLICA_URL": here.replica_url, "TOCSIN_NATS_URL": here.nats_url}
            for verb in ("watch", "replicate"):
                await tocsin(verb, "notes", environment=environment)
            nats = Client()
            await nats.connect(here.nats_url)
            heard = await nats.subscribe("pg.shop.change.public.notes.>")
            async with oracle.socket_client(f"ws://{here.gateway}/ws", "pg.shop.change.public.notes.*") as (seen, arrived):
                async with database(here.source_url) as source:
                    await source.execute("INSERT INTO notes VALUES (1, 'the bell rings')")
                await oracle.until_count(seen, arrived, 1)
            assert seen.values("body") == ["the bell rings"]
            message = await heard.next_msg(timeout=10)
            assert msgspec.json.decode(message.data)["data"]["new"] == {"id": 1, "body": "the bell rings"}
            await nats.close()
            await until("EXISTS (SELECT FROM notes WHERE body = 'the bell rings')", here.replica_url)
            assert await running.stop(signal.SIGTERM) == 0, running.text
        assert here.processes() == {}


async def tocsin(*arguments: str, environment: dict[str, str], expect: int = 0) -> str:
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tocsin.cli.main", *arguments), env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await child.communicate()
    assert child.returncode == expect, output.decode()
    return output.decode()


async def test_the_demo_trades_and_its_replica_follows_and_every_address_answers_and_doctor_is_content() -> None:
    async with place() as here, up(here) as running:
        await running.until_line("ready")
        async with oracle.socket_client(f"ws://{here.gateway}/ws", "pg.shop.change.public.>") as (seen, arrived):
            await oracle.until_count(seen, arrived, 10)
        await running.until_line("replica:")
        for port in ("GATEWAY_PORT", "LISTENER_PORT", "CHECK_PORT"):
            assert f"127.0.0.1:{here.port(port)}" in running.text, f"the banner does not name {port}"
        for url in (here.source_url, here.replica_url, here.nats_url):
            assert url in running.text, "the banner does not name it"
        async with httpx.AsyncClient(trust_env=False) as client, asyncio.timeout(20):
            for port, path in (("GATEWAY_PORT", "/"), ("CHECK_PORT", "/"), ("LISTENER_PORT", "/healthz")):
                assert (await client.get(f"http://127.0.0.1:{here.port(port)}{path}")).status_code == 200
            for port in ("GATEWAY_PORT", "CHECK_PORT", "LISTENER_PORT"):
                while (await client.get(f"http://127.0.0.1:{here.port(port)}/readyz")).status_code != 200:
                    await asyncio.sleep(0.05)
        told = await tocsin("doctor", environment=here.environment)
        assert "all is well" in told
        assert "public.orders is watched" in told
        async with database(here.source_url) as source:
            await source.execute("ALTER TABLE orders DISABLE TRIGGER USER")
        told = await tocsin("doctor", environment=here.environment, expect=1)
        assert "ENABLE TRIGGER" in told, told


async def test_the_data_and_the_positions_survive_a_stop() -> None:
    async with place() as here:
        async with up(here, "--no-demo") as running:
            await running.until_line("ready")
            async with database(here.source_url) as source:
                await source.execute("SELECT tocsin.emit('order.paid', '{\"id\": 1}')")
            position = await first_position(here, "start", "pg.shop.event.order.paid")
            assert await running.stop(signal.SIGINT) == 0, running.text
        await here.until_gone()
        async with up(here, "--no-demo") as running:
            await running.until_line("ready")
            async with database(here.source_url) as source:
                await source.execute("SELECT tocsin.emit('order.paid', '{\"id\": 2}')")
            assert await first_data(here, position, "pg.shop.event.order.paid") == {"id": 2}


async def first_frame(here: Place, since: str, subject: str) -> dict[str, object]:
    async with asyncio.timeout(20), connect(f"ws://{here.gateway}/ws", proxy=None) as socket:
        await socket.send(msgspec.json.encode({"op": "subscribe", "id": "a", "subject": subject, "since": since}).decode())
        async for text in socket:
            frame: dict[str, object] = msgspec.json.decode(text)
            if frame["op"] == "event":
                return frame
            assert frame.get("recovered") is not False, frame
    raise AssertionError("the gateway closed the connection")


async def first_position(here: Place, since: str, subject: str) -> str:
    return str((await first_frame(here, since, subject))["position"])


async def first_data(here: Place, since: str, subject: str) -> object:
    return (await first_frame(here, since, subject))["event"]["data"]  # type: ignore[index]


async def test_killed_with_9_its_children_go_too_and_the_next_one_recovers() -> None:
    async with place() as here:
        async with up(here, "--no-demo") as running:
            await running.until_line("ready")
            async with database(here.source_url) as source:
                await source.execute("SELECT tocsin.emit('before', '{}')")
            assert await running.stop(signal.SIGKILL) == -signal.SIGKILL
        async with up(here, "--no-demo") as running:
            # At once, while the children of the first one may still be going.
            await running.until_line("ready")
            assert (await first_frame(here, "start", "pg.shop.event.before"))["op"] == "event"
            assert await running.stop() == 0
        assert here.processes() == {}


async def test_everything_killed_with_9_at_once_recovers() -> None:
    async with place() as here:
        async with up(here, "--no-demo") as running:
            await running.until_line("ready")
            for pid in here.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            await here.until_gone()
        async with up(here, "--no-demo") as running:
            await running.until_line("ready")


async def test_a_part_that_dies_is_started_again() -> None:
    async with place() as here, up(here, "--no-demo") as running:
        await running.until_line("ready")
        for name in ("listener", "gateway", "nats"):
            os.kill(int((here.data / f"{name}.pid").read_text().split()[0]), signal.SIGKILL)
            await running.until_line(f"{name} ended with signal 9; starting it again")
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError, AssertionError, asyncpg.PostgresError):
                    async with oracle.socket_client(f"ws://{here.gateway}/ws", "pg.shop.event.again") as (seen, arrived):
                        async with database(here.source_url) as source:
                            await source.execute("SELECT tocsin.emit('again', '{}')")
                        await oracle.until_count(seen, arrived, 1, patience=5)
                        return


@pytest.mark.parametrize("setting", ["TOCSIN_GATEWAY_PORT", "TOCSIN_EMBEDDED_SOURCE_PORT", "TOCSIN_EMBEDDED_NATS_PORT"])
async def test_a_port_that_is_taken_is_named_with_its_setting_and_nothing_stays(setting: str) -> None:
    async with place() as here:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", int(here.environment[setting])))
            taken.listen()
            async with up(here) as running:
                assert await running.ended() == 1
        assert f"port {here.environment[setting]}" in running.text
        assert setting in running.text
        assert here.processes() == {}


async def test_a_second_one_on_the_same_data_says_so_and_leaves_the_first_alone() -> None:
    async with place() as here, up(here, "--no-demo") as first:
        await first.until_line("ready")
        async with up(here, "--no-demo") as second:
            assert await second.ended() == 1
        assert f"already runs on {here.data} (process {first.child.pid})" in second.text
        assert await first_frame(here, "start", "pg.shop.event.>")


async def test_two_with_free_ports_live_side_by_side() -> None:
    free = {f"TOCSIN_{name}": "0" for name in ("GATEWAY_PORT", "EMBEDDED_NATS_PORT", "EMBEDDED_SOURCE_PORT")}
    async with place() as one, place(**free) as other, up(one, "--no-demo") as first, up(other, "--no-demo") as second:
        await first.until_line("ready")
        await second.until_line("ready")


async def test_two_parts_with_one_port_are_told_apart() -> None:
    async with place() as here:
        async with up(here, settings={"TOCSIN_CHECK_PORT": here.environment["TOCSIN_GATEWAY_PORT"]}) as running:
            assert await running.ended() == 1
        assert "TOCSIN_CHECK_PORT" in running.text
        assert "TOCSIN_GATEWAY_PORT" in running.text


async def test_stopped_while_it_starts_it_leaves_nothing() -> None:
    async with place() as here:
        async with up(here) as running:
            await running.until_line("starting")
            async with asyncio.timeout(20):
                while not (here.data / "source.log").exists():
                    await asyncio.sleep(0.01)
            assert await running.stop() == 0, running.text
        assert here.processes() == {}
        async with up(here) as running:
            await running.until_line("ready")


async def test_bad_settings_end_with_2_and_name_the_setting() -> None:
    async with place() as here:
        async with up(here, settings={"TOCSIN_GATEWAY_PORT": "http"}) as running:
            assert await running.ended() == 2
        assert "TOCSIN_GATEWAY_PORT='http' is not valid" in running.text


async def test_a_data_folder_that_cannot_be_written_is_named() -> None:
    async with place() as here:
        (here.folder / "data").write_text("a file")
        async with up(here) as running:
            assert await running.ended() == 2
        assert str(here.data) in running.text
        assert "--data" in running.text


async def test_an_own_source_without_logical_wal_is_served_and_told_what_the_replica_needs() -> None:
    from tests.support.pipeline import pipeline

    async with pipeline(configuration={"wal_level": "replica"}) as own, place(TOCSIN_DATABASE_URL=own.source_url) as here, up(here) as running:
        await running.until_line("ready")
        await running.until_line("the replica and the checker are left out")
        assert "ALTER SYSTEM SET wal_level = 'logical'" in running.text
        assert not Path(here.data / "source").exists()
        async with database(own.source_url) as source:
            assert await source.fetchval("SELECT to_regclass('orders')") is None, "the demo's tables are not put into somebody's own database"


async def test_an_own_source_that_does_not_exist_is_named() -> None:
    async with place() as here:
        async with up(here, settings={"TOCSIN_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}) as running:
            assert await running.ended() == 1
        assert "TOCSIN_DATABASE_URL" in running.text
        assert here.processes() == {}


async def test_with_a_certificate_of_ones_own_everything_goes_by_https_and_who_does_not_trust_it_is_told_what_to_do() -> None:
    async with place() as here:
        authority = Authority(here.folder)
        certificate, key = authority.issue("gateway")
        here.environment.update(TOCSIN_GATEWAY_TLS_CERT=str(certificate), TOCSIN_GATEWAY_TLS_KEY=str(key))
        async with up(here, "--no-demo") as running:
            await running.until_line("ready")
            assert f"wss://{here.gateway}/ws" in running.text
            environment = {**here.environment, "TOCSIN_DATABASE_URL": here.source_url, "TOCSIN_NATS_URL": here.nats_url}
            subject = "pg.shop.event.tocsin.ready"
            shown = await tocsin("tail", subject, "--since", "start", "--count", "1", environment={**environment, "SSL_CERT_FILE": str(authority.ca)})
            assert "tocsin.ready" in shown
            assert "SSL_CERT_FILE=ca.pem tocsin why" in await tocsin("why", subject, environment=environment, expect=1)
            tail = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "tocsin.cli.main", "tail", subject), env=environment, stderr=asyncio.subprocess.PIPE
            )
            assert tail.stderr is not None
            async with asyncio.timeout(20):
                await tail.stderr.readline()
                assert b"SSL_CERT_FILE=ca.pem tocsin tail" in await tail.stderr.readline()
            tail.kill()
            await tail.wait()


async def test_servers_of_ones_own_that_do_not_answer_are_named_at_once() -> None:
    nobody = free_port()
    settings = {"TOCSIN_DATABASE_URL": f"postgresql://app:hush@127.0.0.1:{nobody}/shop", "TOCSIN_NATS_URL": f"nats://127.0.0.1:{nobody}"}
    async with place() as here, up(here, settings=settings) as running:
        assert await running.ended(patience=20) == 1
        assert "waiting for NATS: nobody answers at what TOCSIN_NATS_URL names" in running.text
        assert f"TOCSIN_DATABASE_URL: PostgreSQL at postgresql://app@127.0.0.1:{nobody}/shop does not answer" in running.text
        assert "Traceback" not in running.text
        assert "hush" not in running.text
