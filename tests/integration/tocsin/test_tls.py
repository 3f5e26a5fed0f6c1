"""TLS, NKEYs and credentials against real servers: what they let in, and what is refused on either side."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.certificates import Authority
from tocsin import broker
from tocsin.errors import OperatorError
from tocsin.nats_login import NatsLogin, public_nkey
from tocsin.stack import process
from tocsin.stack.nats_server import NatsServer


@pytest.fixture
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="tocsin-tls-", ignore_cleanup_errors=True) as name:
        Path(name).chmod(0o755)
        yield Path(name)


async def answers(server: NatsServer, login: NatsLogin, *, patience: float = 10) -> bool:
    """Whether a round trip works within `patience`; the link itself would try for ever."""
    try:
        async with asyncio.timeout(patience), broker.connect([server.url], name="test", login=login) as link:
            await link.client.flush()
            return True
    except TimeoutError:
        return False


async def test_nats_is_reached_by_mutual_tls_alone(folder: Path) -> None:
    ours, stranger = Authority(folder), Authority(folder, "stranger")
    certificate, key = ours.issue("nats")
    mine, my_key = ours.issue("tocsin")
    tls = f'tls {{ cert_file: "{certificate}", key_file: "{key}", ca_file: "{ours.ca}", verify: true }}'
    server = NatsServer(folder / "nats", process.free_port(), extra=tls)
    await server.start()
    try:
        assert await answers(server, NatsLogin(tls_ca=ours.ca, tls_cert=mine, tls_key=my_key))
        assert not await answers(server, NatsLogin(tls_ca=ours.ca), patience=1), "no certificate of our own"
        assert not await answers(server, NatsLogin(tls_ca=stranger.ca, tls_cert=mine, tls_key=my_key), patience=1), "NATS of another authority"
    finally:
        await server.stop()


async def test_a_server_without_tls_gets_no_word_where_tls_comes_first(folder: Path) -> None:
    server = NatsServer(folder / "nats", process.free_port())
    await server.start()
    try:
        assert not await answers(server, NatsLogin(tls_ca=Authority(folder).ca, tls_first=True), patience=1)
    finally:
        await server.stop()


async def test_tls_comes_first_where_both_say_so(folder: Path) -> None:
    ours = Authority(folder)
    certificate, key = ours.issue("nats")
    server = NatsServer(folder / "nats", process.free_port(), extra=f'tls {{ cert_file: "{certificate}", key_file: "{key}", handshake_first: true }}')
    await server.start()
    try:
        assert await answers(server, NatsLogin(tls_ca=ours.ca, tls_first=True))
    finally:
        await server.stop()


def seed(kind: int) -> str:
    """A fresh seed; `kind` is 20 for a user, 0 for an account, 14 for an operator."""
    secret = Ed25519PrivateKey.generate().private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
    raw = bytes([18 << 3 | kind >> 2, (kind << 3 & 31) << 3]) + secret
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def public(of: str) -> str:
    return public_nkey(of, "seed", Path("seed"))


def token(signer: str, subject: str, name: str, claims: dict[str, object]) -> str:
    """A JWT as NATS has it."""
    body = {"jti": name, "iat": 1, "iss": public(signer), "sub": subject, "name": name, "nats": {"version": 2, **claims}}
    parts = [base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, body)]
    raw = base64.b32decode(signer + "=" * (-len(signer) % 8))
    signature = Ed25519PrivateKey.from_private_bytes(raw[2:34]).sign(b".".join(parts))
    return b".".join((*parts, base64.urlsafe_b64encode(signature).rstrip(b"="))).decode()


async def test_an_nkey_is_let_in_and_another_is_not(folder: Path) -> None:
    mine, other = folder / "mine", folder / "other"
    mine.write_text(seed(20) + "\n")
    other.write_text(seed(20))
    server = NatsServer(folder / "nats", process.free_port(), extra=f"authorization {{ users: [{{ nkey: {public(mine.read_text().strip())} }}] }}")
    await server.start()
    try:
        assert await answers(server, NatsLogin(nkey_seed=mine))
        assert not await answers(server, NatsLogin(nkey_seed=other), patience=1)
    finally:
        await server.stop()


async def test_credentials_of_an_operators_account_are_let_in(folder: Path) -> None:
    operator, account, system, user, stranger = seed(14), seed(0), seed(0), seed(20), seed(0)
    no_limits = {"subs": -1, "data": -1, "payload": -1}
    account_limits = {**no_limits, "imports": -1, "exports": -1, "conn": -1, "leaf": -1, "wildcards": True}
    described: dict[str, object] = {"type": "account", "limits": account_limits, "default_permissions": {"pub": {}, "sub": {}}}
    accounts = "\n".join(f"{public(each)}: {token(operator, public(each), 'account', described)}" for each in (account, system))
    operator_jwt = token(operator, public(operator), "operator", {"type": "operator"})
    extra = f"operator: {operator_jwt}\nsystem_account: {public(system)}\nresolver: MEMORY\nresolver_preload: {{\n{accounts}\n}}"
    server = NatsServer(folder / "nats", process.free_port(), extra=extra)
    for name, signer in (("good", account), ("forged", stranger)):
        jwt = token(signer, public(user), "gateway", {"type": "user", **no_limits, "pub": {}, "sub": {}})
        (folder / name).write_text(
            f"-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n*** IMPORTANT ***\n\n"
            f"-----BEGIN USER NKEY SEED-----\n{user}\n------END USER NKEY SEED------\n"
        )
    await server.start()
    try:
        assert await answers(server, NatsLogin(creds=folder / "good"))
        assert not await answers(server, NatsLogin(creds=folder / "forged"), patience=1)
    finally:
        await server.stop()


@pytest.mark.parametrize(
    ("login", "setting"),
    [
        (NatsLogin(creds=Path("/nowhere")), "TOCSIN_NATS_CREDS"),
        (NatsLogin(nkey_seed=Path("/nowhere")), "TOCSIN_NATS_NKEY_SEED"),
        (NatsLogin(nkey_seed=Path(__file__)), "TOCSIN_NATS_NKEY_SEED"),
        (NatsLogin(creds=Path(__file__)), "TOCSIN_NATS_CREDS"),
        (NatsLogin(tls_ca=Path("/nowhere")), "TOCSIN_NATS_TLS_CA"),
    ],
)
async def test_a_wrong_file_ends_the_start_with_its_name(login: NatsLogin, setting: str) -> None:
    with pytest.raises(OperatorError, match=setting):
        async with broker.connect(["nats://127.0.0.1:1"], name="test", login=login):
            pass
