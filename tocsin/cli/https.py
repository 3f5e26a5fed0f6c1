"""What to say where a gateway's certificate is not trusted here."""

from __future__ import annotations

import ssl


def certificate_fix(error: BaseException | None, verb: str) -> str | None:
    """The fix, where the certificate is what `error` is about; else None."""
    if not isinstance(error, ssl.SSLError):
        return None
    return f"say the name that its certificate has, --url https://NAME; with a CA of your own: SSL_CERT_FILE=ca.pem tocsin {verb} …"
