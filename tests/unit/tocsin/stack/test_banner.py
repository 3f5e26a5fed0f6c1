"""What `tocsin up` prints once everything runs: commands that work as printed, and no password."""

from __future__ import annotations

from pathlib import Path

from tocsin.settings import load_settings
from tocsin.stack.banner import banner
from tocsin.stack.plan import make_plan


def printed(**settings: object) -> str:
    return banner(make_plan(load_settings(**settings), Path("data")), demo=True)


def test_a_password_of_ones_own_servers_is_not_printed() -> None:
    text = printed(
        database_url="postgresql://app:hush@db:5432/shop",
        replica_url="postgresql://app:hush@copy:5432/shop",
        nats_url="nats://app:hush@nats-1:4222,nats://app:hush@nats-2:4222",
    )
    assert "hush" not in text
    assert "postgresql://app@db:5432/shop" in text
    assert "nats --server nats://nats-1:4222,nats://nats-2:4222 sub" in text


def test_ports_that_are_not_the_usual_ones_are_told_so_that_every_verb_finds_its_part() -> None:
    assert "export" not in printed()
    assert "    export TOCSIN_EMBEDDED_REPLICA_PORT=1234 TOCSIN_CHECK_PORT=1235\n" in printed(embedded_replica_port=1234, check_port=1235)


def test_where_a_token_is_asked_for_the_commands_bring_it() -> None:
    assert "TOCSIN_TOKEN" not in printed()
    text = printed(jwt_secret="hush" * 8)
    assert 'curl -N -H "Authorization: Bearer $TOCSIN_TOKEN" \'http://127.0.0.1:8080/sse' in text
    assert "hush" not in text


def test_with_a_certificate_every_address_of_the_gateway_is_https() -> None:
    text = printed(gateway_tls_cert=Path("cert.pem"), gateway_tls_key=Path("key.pem"))
    assert "http://127.0.0.1:8080" not in text
    assert "ws://127.0.0.1:8080/ws" not in text.replace("wss://", "")
    assert "wss://127.0.0.1:8080/ws" in text
