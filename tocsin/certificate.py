"""A server's own certificate for HTTPS: two PEM files, read again when they are renewed, without closing a connection."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path
from typing import Final

import structlog

from tocsin.errors import OperatorError

log = structlog.get_logger("tocsin.certificate")

RELOAD_EVERY: Final = 30.0


class Certificate:
    """`context` is for every connection to come; `keep_fresh` belongs into the service's TaskGroup."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises OperatorError where the files can't be used."""
        self._files = (certificate, key)
        self._loaded = self._versions()
        try:
            self.context = self._context()
        except (OSError, ssl.SSLError) as error:
            raise OperatorError(
                f"TOCSIN_GATEWAY_TLS_CERT={certificate} with TOCSIN_GATEWAY_TLS_KEY={key} can't be used: {error}",
                "name two PEM files that this user may read: the certificate with its chain, and its key without a passphrase",
                exit_code=2,
            ) from error

    async def keep_fresh(self) -> None:
        """Load what was renewed; what can't be used is told, and the certificate from before goes on."""
        while True:
            await asyncio.sleep(RELOAD_EVERY)
            versions = self._versions()
            if versions == self._loaded:
                continue
            self._loaded = versions
            try:
                # In a context of its own first: a new certificate beside its old key must not get into the one that serves.
                self._context()
                self._load(self.context)
            except (OSError, ssl.SSLError) as error:
                log.warning("the renewed certificate can't be used; the one from before goes on", file=str(self._files[0]), reason=str(error))
            else:
                log.info("certificate renewed", file=str(self._files[0]))

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # No HTTP/2: a WebSocket begins with HTTP/1.1.
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        # A key with a passphrase would ask for it on the terminal.
        context.load_cert_chain(*self._files, password="")

    def _versions(self) -> tuple[tuple[int, int] | None, ...]:
        """What changes when a file does; a file that is renamed into its place too."""
        return tuple(_version(file) for file in self._files)


def certificate(cert: Path | None, key: Path | None) -> Certificate | None:
    """None where neither is set. Raises OperatorError where one is missing."""
    if cert is None and key is None:
        return None
    if cert is None or key is None:
        missing = "TOCSIN_GATEWAY_TLS_CERT" if cert is None else "TOCSIN_GATEWAY_TLS_KEY"
        raise OperatorError(f"{missing} is not set: HTTPS takes a certificate and its key", f"export {missing}=/path/to/file.pem", exit_code=2)
    return Certificate(cert, key)


def _version(file: Path) -> tuple[int, int] | None:
    try:
        told = file.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_ino
