"""The checker as its service: what it says of one table, and an audit now."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from typing import Any, Final
from urllib.parse import quote

import msgspec

from tocsin.cli.validation.report import Broken

_PAUSE: Final = 0.1
_REFUSED: Final = "tocsin validate --token TOKEN, whose claim `subscribe` allows the drift subjects, or let it see TOCSIN_JWT_SECRET"


class Auditor:
    """`url` is the checker's; `token` a JWT, where it asks for one. Each call raises Broken or OSError."""

    def __init__(self, url: str, token: str | None) -> None:
        self.url = url.rstrip("/")
        self._token = token

    async def report(self) -> dict[str, Any]:
        """The whole report. Raises Broken where it is none or refused."""
        return await self._ask("/drift") or {}

    async def table(self, name: str) -> dict[str, Any] | None:
        """One table's report, None while the checker does not know the table."""
        return await self._ask(f"/drift/{quote(name)}")

    async def audit(self, name: str) -> dict[str, Any]:
        """Audit a table now, wait for the end, and read its report. Raises TimeoutError only by the caller's own time-out."""
        begun = await self._ask("/audits", {"tables": [name]})
        if begun is None:
            return {}
        while begun["status"] in ("queued", "running"):
            await asyncio.sleep(_PAUSE)
            begun = await self._ask(f"/audits/{begun['id']}")
            if begun is None:
                raise Broken("the checker has forgotten the audit: it was started again meanwhile", "run this again")
        return await self.table(name) or {}

    async def _ask(self, path: str, body: Any = None) -> dict[str, Any] | None:
        return await asyncio.to_thread(self._fetch, path, body)

    def _fetch(self, path: str, body: Any) -> dict[str, Any] | None:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
        request = urllib.request.Request(self.url + path, None if body is None else msgspec.json.encode(body), headers)  # noqa: S310  # an operator's own URL
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=10) as answer:
                found: dict[str, Any] = msgspec.json.decode(answer.read())
                return found
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            fix = _REFUSED if error.code in (401, 403) else "the checker's log says more"
            raise Broken(f"{self.url}{path} answers {error.code}: {error.read().decode(errors='replace')[:300]}", fix) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise Broken(f"the checker does not answer at {self.url}: {reason}", "tocsin check   # or say where it is with --check-url") from None
