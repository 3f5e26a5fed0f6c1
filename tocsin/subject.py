"""NATS subjects of Tocsin: tokens, subjects and patterns. Pure.

A PostgreSQL name or value becomes exactly one token: every UTF-8 byte other than ASCII letters, digits, `_` and `-` is
`%XX` (upper case), NULL is `%N`, the empty string is `%E`, and a token that would be longer than 128 bytes is `%H` and
the first 32 hex digits (lower case) of the value's SHA-256. All but the last can be decoded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

MAX_TOKEN: Final = 128
MAX_PATTERN: Final = 1024
MAX_TOKENS: Final = 32
OPS: Final = ("insert", "update", "delete", "truncate", "read")

_PLAIN: Final = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-")
_ENCODED: Final = tuple(chr(b) if b in _PLAIN else f"%{b:02X}" for b in range(256))


class SubjectError(ValueError):
    """A subject or pattern that is not well formed; the message says where and what is allowed."""


def encode_token(value: str | None) -> str:
    """The token of one name or value; None is SQL's NULL."""
    if value is None:
        return "%N"
    if value == "":
        return "%E"
    raw = value.encode()
    token = "".join(_ENCODED[b] for b in raw)
    if len(token) > MAX_TOKEN:
        return "%H" + hashlib.sha256(raw).hexdigest()[:32]
    return token


def decode_token(token: str) -> str | None:
    """The name or value of a token. Raises SubjectError for a hashed (`%H…`) or malformed one."""
    if token == "%N":
        return None
    if token == "%E":
        return ""
    if token.startswith("%H"):
        raise SubjectError(f"token {token!r} is a hash of a long value and can't be decoded")
    raw = bytearray()
    i = 0
    while i < len(token):
        if token[i] != "%":
            raw += token[i].encode()
            i += 1
            continue
        try:
            raw.append(int(token[i + 1 : i + 3], 16))
        except ValueError:
            raise SubjectError(f"token {token!r}: {token[i : i + 3]!r} is not a %XX escape") from None
        i += 3
    return raw.decode()


def change_subject(prefix: str, source: str, schema: str, table: str, op: str, route: Iterable[str | None] = ()) -> str:
    """`pg.shop.change.public.orders.insert.42`; prefix is taken as it is, everything else is encoded."""
    names = (encode_token(source), "change", encode_token(schema), encode_token(table), op)
    return ".".join((prefix, *names, *map(encode_token, route)))


def stream_subjects(prefix: str, source: str) -> tuple[str, ...]:
    """The subjects that a source's stream binds: all of its kinds but the ephemeral `live`, and the canary."""
    root = f"{prefix}.{encode_token(source)}"
    kinds = ("change", "event", "schema", "drift", "notify")
    return (*(f"{root}.{kind}.>" for kind in kinds), canary_subject(source))


def canary_subject(source: str) -> str:
    """Outside `pg.>`, so that nobody who subscribes to everything sees it."""
    return f"_tocsin.{encode_token(source)}.canary"


class Pattern:
    """A subscription pattern: literal tokens, `*` for exactly one token, a last `>` for one or more.

    Raises SubjectError with the reason; `text` is the pattern as given, `tokens` its parts.
    """

    __slots__ = ("text", "tokens")

    def __init__(self, text: str) -> None:
        self.text: Final = text
        self.tokens: Final = _checked_tokens(text)

    @property
    def is_literal(self) -> bool:
        return "*" not in self.tokens and ">" not in self.tokens

    def matches(self, subject: str) -> bool:
        """Whether a literal subject is one of this pattern's."""
        tokens = subject.split(".")
        for i, token in enumerate(self.tokens):
            if token == ">":
                return i < len(tokens)
            if i >= len(tokens) or token not in ("*", tokens[i]):
                return False
        return len(tokens) == len(self.tokens)

    def contains(self, other: Pattern) -> bool:
        """Whether every subject of `other` is one of this pattern's."""
        mine, theirs = self.tokens, other.tokens
        for i, token in enumerate(mine):
            if i >= len(theirs):
                return False
            if token == ">":
                return True
            if theirs[i] == ">" or token not in ("*", theirs[i]):
                return False
        return len(theirs) == len(mine)

    def overlaps(self, other: Pattern) -> bool:
        """Whether some subject belongs to both."""
        mine, theirs = self.tokens, other.tokens
        for a, b in zip(mine, theirs, strict=False):
            if ">" in (a, b):
                return True
            if a != b and "*" not in (a, b):
                return False
        return len(mine) == len(theirs)

    def union(self, other: Pattern) -> Pattern:
        """The narrowest pattern that contains both: differing tokens become `*`, differing lengths end in `>`."""
        joined: list[str] = []
        for a, b in zip(self.tokens, other.tokens, strict=False):
            if ">" in (a, b):
                return Pattern(".".join((*joined, ">")))
            joined.append(a if a == b else "*")
        if len(self.tokens) != len(other.tokens):
            # The shorter one ends here, so `>` has to stand in the place of its last token.
            joined[-1] = ">"
        return Pattern(".".join(joined))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pattern) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Pattern({self.text!r})"


def cover(patterns: Iterable[Pattern]) -> tuple[Pattern, ...]:
    """Patterns of which no two overlap and which together contain all the given ones, sorted by text.

    NATS refuses a consumer whose filters overlap; where two overlap and neither contains the other, their union takes
    the place of both. Its time grows with the number of patterns, but for those with `*` where others differ.
    """
    pending = sorted(set(patterns), key=lambda p: p.text)
    result = _Branch()
    while pending:
        pattern = pending.pop()
        clash = result.clash(pattern.tokens)
        if clash is None:
            result.put(pattern)
        elif not clash.contains(pattern):
            result.take(clash)
            pending.append(pattern if pattern.contains(clash) else clash.union(pattern))
    return tuple(sorted(result.all(), key=lambda p: p.text))


class _Branch:
    """Patterns that begin alike, of which no two overlap."""

    __slots__ = ("branches", "here", "rest")

    def __init__(self) -> None:
        self.branches: dict[str, _Branch] = {}
        self.here: Pattern | None = None
        self.rest: Pattern | None = None

    def all(self) -> Iterator[Pattern]:
        yield from (pattern for pattern in (self.here, self.rest) if pattern is not None)
        for branch in self.branches.values():
            yield from branch.all()

    def clash(self, tokens: Sequence[str], at: int = 0) -> Pattern | None:
        """One that overlaps a pattern of these tokens."""
        if at == len(tokens):
            return self.here
        if self.rest is not None:
            return self.rest
        token = tokens[at]
        if token == ">":
            return next((pattern for branch in self.branches.values() for pattern in branch.all()), None)
        nexts = self.branches.values() if token == "*" else filter(None, map(self.branches.get, (token, "*")))
        return next((found for branch in nexts if (found := branch.clash(tokens, at + 1)) is not None), None)

    def put(self, pattern: Pattern, at: int = 0) -> None:
        if at == len(pattern.tokens):
            self.here = pattern
        elif pattern.tokens[at] == ">":
            self.rest = pattern
        else:
            self.branches.setdefault(pattern.tokens[at], _Branch()).put(pattern, at + 1)

    def take(self, pattern: Pattern, at: int = 0) -> bool:
        """Without the pattern, and the branches that only it needed; whether anything is left here."""
        if at == len(pattern.tokens):
            self.here = None
        elif pattern.tokens[at] == ">":
            self.rest = None
        elif not self.branches[pattern.tokens[at]].take(pattern, at + 1):
            del self.branches[pattern.tokens[at]]
        return bool(self.branches) or self.here is not None or self.rest is not None


def _checked_tokens(text: str) -> tuple[str, ...]:
    if not text:
        raise SubjectError("the subject is empty; give one such as pg.shop.change.public.orders.*")
    if len(text) > MAX_PATTERN:
        raise SubjectError(f"the subject has {len(text)} characters; at most {MAX_PATTERN} are allowed")
    bad = next((c for c in text if c <= " " or c == "\x7f" or not c.isprintable()), None)
    if bad is not None:
        raise SubjectError(f"{text!r}: {bad!r} is not allowed in a subject; a name's other characters are written %XX")
    tokens = tuple(text.split("."))
    if len(tokens) > MAX_TOKENS:
        raise SubjectError(f"{text!r} has {len(tokens)} tokens; at most {MAX_TOKENS} are allowed")
    _check_wildcards(text, tokens)
    return tokens


def _check_wildcards(text: str, tokens: Sequence[str]) -> None:
    for i, token in enumerate(tokens):
        if not token:
            raise SubjectError(f"{text!r} has an empty token; dots separate tokens and stand neither first, last nor doubled")
        if token == ">" and i != len(tokens) - 1:
            raise SubjectError(f"{text!r}: '>' is allowed only as the last token")
        if len(token) > 1 and ("*" in token or ">" in token):
            raise SubjectError(f"{text!r}: {token!r} mixes a wildcard with other characters; '*' and '>' stand alone in a token")
