"""How a part shows NATS who it is, and knows that it is NATS: credentials, an NKEY, and TLS, all from files.

Files are read at each connection, so that a rotated one holds from the next. nats-py signs only with one more package;
Ed25519 is in `cryptography`, which the tokens' signatures bring anyway.
"""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from nats.aio.client import Client

from tocsin.errors import OperatorError

_SECTION: Final = re.compile(r"-{3,}BEGIN ([A-Z ]+)-{3,}\s+(\S+)\s+-{3,}END")
_SEED_PREFIX: Final = 18 << 3


@dataclass(frozen=True, slots=True)
class NatsLogin:
    """Files, each None where it is not used. `tls_first` begins with TLS, so that nothing is said in clear text before it."""

    creds: Path | None = None
    nkey_seed: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_first: bool = False

    def options_for(self, client: Client) -> dict[str, Any]:
        """What `client.connect` takes. Raises OperatorError that names the setting whose file is missing or wrong."""
        options: dict[str, Any] = {}
        context = self._context()
        if context is not None:
            options |= {"tls": context, "tls_handshake_first": self.tls_first}
        if self.creds is not None:
            path = self.creds
            sections(path)  # a wrong file ends the start, not the first connection
            options |= {
                "user_jwt_cb": lambda: _jwt(path),
                "signature_cb": lambda nonce: _sign(sections(path)["USER NKEY SEED"], nonce, "TOCSIN_NATS_CREDS", path),
            }
        elif self.nkey_seed is not None:
            path = self.nkey_seed
            # nats-py takes the public key only together with a seed that it reads by the other package.
            client._public_nkey = public_nkey(_read(path, "TOCSIN_NATS_NKEY_SEED").strip(), "TOCSIN_NATS_NKEY_SEED", path)  # noqa: SLF001
            options["signature_cb"] = lambda nonce: _sign(_read(path, "TOCSIN_NATS_NKEY_SEED").strip(), nonce, "TOCSIN_NATS_NKEY_SEED", path)
        return options

    def _context(self) -> ssl.SSLContext | None:
        if self.tls_ca is None and self.tls_cert is None and not self.tls_first:
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert is not None:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            raise OperatorError(
                f"TOCSIN_NATS_TLS_CA={self.tls_ca}, TOCSIN_NATS_TLS_CERT={self.tls_cert}, TOCSIN_NATS_TLS_KEY={self.tls_key}: {error}",
                "name PEM files that this user may read; the key belongs to the certificate, and has no passphrase",
                exit_code=2,
            ) from error
        return context


def sections(path: Path) -> dict[str, str]:
    """The sections of a credentials file by their titles. Raises OperatorError where one of the two is missing."""
    found = dict(_SECTION.findall(_read(path, "TOCSIN_NATS_CREDS")))
    if not {"NATS USER JWT", "USER NKEY SEED"} <= found.keys():
        raise OperatorError(f"TOCSIN_NATS_CREDS={path} is no credentials file", "write one: nsc generate creds --account NAME --name USER > FILE", exit_code=2)
    return found


def public_nkey(seed: str, setting: str, path: Path) -> str:
    """The public NKEY of a seed (`U…` of `SU…`). Raises OperatorError for what is no seed; it never shows it."""
    kind, key = _key(seed, setting, path)
    raw = bytes([kind]) + key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    return base64.b32encode(raw + binascii.crc_hqx(raw, 0).to_bytes(2, "little")).decode().rstrip("=")


def _jwt(path: Path) -> bytes:
    return sections(path)["NATS USER JWT"].encode()


def _sign(seed: str, nonce: str, setting: str, path: Path) -> bytes:
    return base64.b64encode(_key(seed, setting, path)[1].sign(nonce.encode()))


def _key(seed: str, setting: str, path: Path) -> tuple[int, Ed25519PrivateKey]:
    """(the prefix of the public key, the key): a seed is base32 of 2 prefix bytes, 32 of the key, 2 of CRC-16."""
    try:
        raw = base64.b32decode(seed + "=" * (-len(seed) % 8))
        whole = len(raw) == 36 and raw[0] & 248 == _SEED_PREFIX and binascii.crc_hqx(raw[:-2], 0).to_bytes(2, "little") == raw[-2:]
    except ValueError:
        whole = False
    if not whole:
        raise OperatorError(f"{setting}={path} holds no NKEY seed", "it is one line that begins with SU: nk -gen user > FILE", exit_code=2)
    return (raw[0] & 7) << 5 | raw[1] >> 3, Ed25519PrivateKey.from_private_bytes(raw[2:34])


def _read(path: Path, setting: str) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise OperatorError(f"{setting}={path}: {error}", "name a text file that this user may read", exit_code=2) from error
