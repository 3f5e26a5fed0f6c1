"""An identity provider's key endpoint in this process: keys that rotate, and an endpoint that can fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key with its id."""

    id: str
    algorithm: str
    private: Any

    @property
    def public(self) -> dict[str, Any]:
        """As it stands in the document."""
        kind = jwt.algorithms.RSAAlgorithm if self.algorithm == "RS256" else jwt.algorithms.ECAlgorithm
        shown: dict[str, Any] = kind.to_jwk(self.private.public_key(), as_dict=True)
        return {**shown, "kid": self.id, "use": "sig", "alg": self.algorithm}

    @property
    def pem(self) -> bytes:
        pem: bytes = self.private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        return pem

    def token(self, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Signed, and good for ten minutes unless the claims say otherwise."""
        now = int(time.time())
        return jwt.encode(
            {"exp": now + 600, "iat": now, "subscribe": ["pg.>"], **claims}, self.private, self.algorithm, headers={"kid": self.id, **(headers or {})}
        )


def rsa_key(id: str, bits: int = 2048) -> SigningKey:  # noqa: A002  # the field's name
    return SigningKey(id, "RS256", rsa.generate_private_key(65537, bits))


def ec_key(id: str) -> SigningKey:  # noqa: A002  # the field's name
    return SigningKey(id, "ES256", ec.generate_private_key(ec.SECP256R1()))


@dataclass(slots=True)
class KeyServer:
    """`keys` is what it answers; `asked` counts requests; `status` and `body` replace the answer; `pause` is in seconds before it; `down` cuts it off."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    asked: int = 0
    status: int = 200
    body: bytes | None = None
    pause: float = 0.0
    down: bool = False
    location: str = ""
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/.well-known/jwks.json"

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            self.asked += 1
            await asyncio.sleep(self.pause)
            if self.down:
                writer.transport.abort()
                return
            body = json.dumps({"keys": self.keys}).encode() if self.body is None else self.body
            more = f"Location: {self.location}\r\n" if self.location else ""
            writer.write(f"HTTP/1.1 {self.status} X\r\nContent-Length: {len(body)}\r\n{more}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def key_server(*keys: SigningKey) -> AsyncIterator[KeyServer]:
    running = KeyServer([key.public for key in keys])
    server = await asyncio.start_server(running.answer, "127.0.0.1", 0)
    running.port = server.sockets[0].getsockname()[1]
    async with server:
        yield running
