"""One event from PostgreSQL to a browser, and not one byte of it in clear text: verify-full, mutual TLS, HTTPS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import tempfile
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from websockets.asyncio.client import connect

from tests.integration.tocsin.test_postgres_tls import postgres_with, until_there
from tests.support.certificates import Authority
from tests.support.pipeline import Pipeline, pipeline

pytestmark = pytest.mark.containers


async def event_over_tls(running: Pipeline, trust: ssl.SSLContext, source: asyncpg.Connection) -> dict[str, object]:
    port = running.environment["TOCSIN_GATEWAY_PORT"]
    async with asyncio.timeout(60):
        async with httpx.AsyncClient(base_url=f"https://127.0.0.1:{port}", verify=trust, trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.ConnectError):
                    if (await client.get("/readyz")).is_success:
                        break
                await asyncio.sleep(0.1)
        async with connect(f"wss://127.0.0.1:{port}/ws?subject=pg.>", ssl=trust, proxy=None) as socket:
            while json.loads(await socket.recv())["op"] != "subscribed":
                pass
            await source.execute("INSERT INTO orders VALUES (7)")
            while (frame := json.loads(await socket.recv()))["op"] != "event":
                pass
    event: dict[str, object] = frame["event"]
    return event


async def test_every_link_is_encrypted_and_verified() -> None:
    with tempfile.TemporaryDirectory(prefix="tocsin-tls-") as name:
        folder = Path(name)
        authority = Authority(folder)
        authority.issue("good")
        nats_cert, nats_key = authority.issue("nats")
        our_cert, our_key = authority.issue("tocsin")
        https_cert, https_key = authority.issue("gateway")
        tls = f'tls {{ cert_file: "{nats_cert}", key_file: "{nats_key}", ca_file: "{authority.ca}", verify: true, handshake_first: true }}'
        settings: dict[str, Any] = {
            "TOCSIN_NATS_TLS_CA": str(authority.ca),
            "TOCSIN_NATS_TLS_CERT": str(our_cert),
            "TOCSIN_NATS_TLS_KEY": str(our_key),
            "TOCSIN_NATS_TLS_FIRST": "1",
            "TOCSIN_GATEWAY_TLS_CERT": str(https_cert),
            "TOCSIN_GATEWAY_TLS_KEY": str(https_key),
        }
        async with postgres_with(folder, "good") as url:
            verified = f"{url}?sslmode=verify-full&sslrootcert={authority.ca}"
            await until_there(verified)
            async with pipeline(nats_extra=tls, TOCSIN_DATABASE_URL=verified, TOCSIN_SOURCE="shop", **settings) as running:
                source = await asyncpg.connect(verified)
                await source.execute("CREATE TABLE orders (id int PRIMARY KEY)")
                await running.tocsin("install")
                await running.tocsin("watch", "orders")
                await running.start("listener")
                await running.start("gateway", ready=False)
                event = await event_over_tls(running, ssl.create_default_context(cafile=str(authority.ca)), source)
                assert event["data"]["key"] == {"id": 7}  # type: ignore[index]
                links = await source.fetch(
                    "SELECT a.application_name, s.ssl FROM pg_stat_activity a JOIN pg_stat_ssl s USING (pid) WHERE client_addr IS NOT NULL"
                )
                assert any(row["application_name"].startswith("tocsin") for row in links)
                assert all(row["ssl"] for row in links), links
                for verb in (("validate", "--no-replica"), ("doctor",)):
                    said = await running.tocsin(*verb, expect=1)
                    assert ("SSL_CERT_FILE=" in said) == (verb[0] == "validate"), said
                    assert "the gateway is ready (https://" in said or verb[0] != "doctor", said
                running.environment["SSL_CERT_FILE"] = str(authority.ca)
                assert "valid: " in await running.tocsin("validate", "--no-replica", "--patience", "10")
                await source.close()
