"""Who may read the report over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from tocsin.access import TokenRefused, TokenRules, host_allowed, origin_allowed, token_rules
from tocsin.errors import Unavailable
from tocsin.revocation import Identity, identity_of
from tocsin.settings import Settings
from tocsin.subject import Pattern, SubjectError, encode_token

_BEARER: Final = HTTPBearer(
    auto_error=False, description="A JWT; its claim `subscribe` allows the drift subjects. Only where TOCSIN_JWT_SECRET or TOCSIN_JWKS_URL is set"
)
REFUSALS: Final[dict[int | str, dict[str, Any]]] = {
    401: {"description": "No token, or one that is refused (only where TOCSIN_JWT_SECRET is set)"},
    403: {"description": "The token does not allow the drift subjects, or the request comes by a foreign page"},
    503: {"description": "Which tokens were revoked, or the keys that sign them, are not known at the moment (only where a token is needed)"},
}


@dataclass(frozen=True, slots=True)
class Guard:
    """Without `rules` everybody who reaches the address may read; a browser's foreign pages may not.

    `check_revoked` raises TokenRefused for a token that was taken back, and Unavailable while that can't be known.
    """

    subject: Pattern
    rules: TokenRules | None = None
    origins: Sequence[str] = ()
    trusts_names: bool = False
    check_revoked: Callable[[Identity], Awaitable[None]] | None = None

    def dependencies(self) -> list[Any]:
        """For FastAPI; the interface's description asks for a token only where one is needed."""
        return [Depends(self.check_page), *([Depends(self.check_token)] if self.rules is not None else [])]

    def check_page(self, request: Request) -> None:
        """Raises 403 for what a foreign page in a browser asks."""
        host = request.headers.get("host")
        if not origin_allowed(request.headers.get("origin"), host, self.origins):
            raise HTTPException(403, "pages of this origin may not ask here; TOCSIN_ALLOWED_ORIGINS lists those that may")
        if self.rules is None and not self.trusts_names and not host_allowed(host, self.origins):
            raise HTTPException(403, "without TOCSIN_JWT_SECRET only an address or localhost may be asked; TOCSIN_ALLOWED_ORIGINS adds names")

    async def check_token(self, bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]) -> None:
        """Raises 401 without a valid token, 403 where it does not allow the drift subjects, 503 while it can't be known whether it was revoked."""
        assert self.rules is not None
        if bearer is None:
            raise HTTPException(401, "a token is needed: Authorization: Bearer …", headers={"WWW-Authenticate": "Bearer"})
        try:
            claims = await self.rules.claims(bearer.credentials)
            if self.check_revoked is not None:
                await self.check_revoked(identity_of(claims))
        except TokenRefused as refused:
            raise HTTPException(401, str(refused), headers={"WWW-Authenticate": 'Bearer error="invalid_token"'}) from None
        except Unavailable as error:
            raise HTTPException(503, str(error), headers={"Retry-After": "2"}) from None
        if not any(pattern.contains(self.subject) for pattern in _patterns(claims.get("subscribe"))):
            raise HTTPException(403, f"the token's claim `subscribe` does not allow {self.subject.text}")


def _patterns(claim: object) -> list[Pattern]:
    patterns = []
    for text in claim if isinstance(claim, list) else []:
        try:
            patterns.append(Pattern(text))
        except (SubjectError, TypeError, AttributeError):
            continue
    return patterns


def guard(settings: Settings) -> Guard:
    """Who may read the report has the right to the drift events, which say the same."""
    subject = Pattern(f"{settings.subject_prefix}.{encode_token(settings.source_name)}.drift.>")
    return Guard(subject, token_rules(settings), settings.allowed_origins, trusts_names=settings.insecure)
