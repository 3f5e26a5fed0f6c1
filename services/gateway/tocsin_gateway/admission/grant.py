"""What a client may do, as its token's claims say. Pure.

| claim | what it says |
|---|---|
| `subscribe` | list of patterns; a subscription must lie within one of them |
| `deny` | list of patterns; a subscription that shares a subject with one of them is refused |
| `rows` | `{"public.orders": {"customer_id": {"eq": 42}}}`: which rows of a table are seen |
| `hidden` | `{"public.orders": ["note"]}`: columns that are never seen |
| `publish` | list of patterns below `pg.<source>.live`; a message must go to a subject of one of them |
| `presence` | `true`, or a list of patterns: who else is there may be asked, and told, for these |
| `sub`, `jti`, `iat` | whose token it is, which one, and from when: for limits and revocation |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from tocsin.subject import Pattern, SubjectError
from tocsin_gateway.protocol import ProtocolError
from tocsin_gateway.rows.visibility import Visibility, VisibilityError

MAX_PATTERNS: Final = 256


class ClaimError(ValueError):
    """A claim that is not well formed: the token is refused, never taken for less or more than it says."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a client may do, until `expires` (Unix time), or for as long as it is connected."""

    allowed: tuple[Pattern, ...]
    expires: float | None = None
    denied: tuple[Pattern, ...] = ()
    publish: tuple[Pattern, ...] = ()
    presence: tuple[Pattern, ...] = ()
    visibility: Visibility = field(default_factory=Visibility)
    user: str | None = None
    token_id: str | None = None
    issued: float = 0.0

    def check(self, pattern: Pattern, id: str | None) -> None:  # noqa: A002  # the field's name
        """Raises ProtocolError forbidden unless one allowed pattern contains all of this one, and no denied one any of it."""
        if not any(allowed.contains(pattern) for allowed in self.allowed):
            shown = ", ".join(allowed.text for allowed in self.allowed) or "nothing"
            raise ProtocolError("forbidden", f"{pattern.text!r} is not within what is allowed here: {shown}", id)
        denied = next((denied for denied in self.denied if denied.overlaps(pattern)), None)
        if denied is not None:
            # Leaving the denied part out would be a silent hole.
            raise ProtocolError("forbidden", f"{pattern.text!r} shares subjects with what is denied here: {denied.text}; ask for less", id)

    def check_publish(self, subject: Pattern, id: str | None) -> None:  # noqa: A002  # the field's name
        """Raises ProtocolError forbidden."""
        if not _within(subject, self.publish) or any(denied.overlaps(subject) for denied in self.denied):
            raise ProtocolError("forbidden", f"messages to {subject.text!r} are not allowed here; the token's claim `publish` lists where", id)

    def may_see_presence(self, subject: Pattern) -> bool:
        return _within(subject, self.presence)

    @property
    def expires_text(self) -> str | None:
        return None if self.expires is None else datetime.fromtimestamp(self.expires, UTC).isoformat().replace("+00:00", "Z")


def _within(subject: Pattern, allowed: Iterable[Pattern]) -> bool:
    return any(pattern.contains(subject) for pattern in allowed)


def grant_of(claims: Mapping[str, Any], everything: Pattern, live: Pattern) -> Grant:
    """The grant of verified claims, cut to `everything`; what may be published, to `live`. Raises ClaimError."""
    try:
        grant = Grant(
            allowed=_patterns(claims, "subscribe", everything, needed=True),
            expires=float(claims["exp"]),
            denied=_patterns(claims, "deny"),
            publish=_patterns(claims, "publish", live),
            presence=(everything,) if claims.get("presence") is True else _patterns(claims, "presence", everything),
            visibility=Visibility.from_claims(claims.get("rows", {}), claims.get("hidden", {})),
            user=_text(claims, "sub"),
            token_id=_text(claims, "jti"),
            issued=float(claims.get("iat", 0.0)),
        )
        grant.expires_text  # noqa: B018  # raises for a time that no calendar has
    except VisibilityError as error:
        raise ClaimError(str(error)) from None
    except (ValueError, OverflowError, TypeError, OSError) as error:
        raise error if isinstance(error, ClaimError) else ClaimError(f"a time in the token is not one: {type(error).__name__}") from None
    return grant


def _patterns(claims: Mapping[str, Any], name: str, within: Pattern | None = None, *, needed: bool = False) -> tuple[Pattern, ...]:
    claim = claims.get(name)
    if claim is None and not needed and name not in claims:
        return ()
    if not isinstance(claim, list) or not all(isinstance(text, str) for text in claim):
        raise ClaimError(f"the token's claim `{name}` must be a list of subject patterns")
    if len(claim) > MAX_PATTERNS:
        raise ClaimError(f"the token's claim `{name}` has {len(claim)} patterns; at most {MAX_PATTERNS} are allowed")
    try:
        patterns = [Pattern(text) for text in claim]
    except SubjectError as error:
        raise ClaimError(f"the token's claim `{name}`: {error}") from None
    return tuple(pattern for pattern in patterns if within is None or within.contains(pattern))


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    value = claims.get(name)
    if value is not None and (not isinstance(value, str) or len(value) > 256):
        raise ClaimError(f"the token's claim `{name}` must be a text of at most 256 characters")
    return value or None
