"""Which patterns a subject belongs to: a trie of tokens, with the answers for recent subjects kept. Pure."""

from __future__ import annotations

from typing import Generic, TypeVar

from tocsin.subject import Pattern

T = TypeVar("T")

_REMEMBERED = 4096


class _Node(Generic[T]):
    __slots__ = ("children", "here", "rest")

    def __init__(self) -> None:
        self.children: dict[str, _Node[T]] = {}
        self.here: T | None = None
        self.rest: T | None = None


class Routes(Generic[T]):
    """Patterns with a value each. `match` costs the subject's length and the number of matches, not the number of patterns."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node()
        self._values: dict[Pattern, T] = {}
        self._recent: dict[str, tuple[T, ...]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def get(self, pattern: Pattern) -> T | None:
        return self._values.get(pattern)

    def patterns(self) -> tuple[Pattern, ...]:
        return tuple(self._values)

    def values(self) -> tuple[T, ...]:
        return tuple(self._values.values())

    def add(self, pattern: Pattern, value: T) -> None:
        """Put a value at a pattern that has none."""
        self._values[pattern] = value
        node, last = self._walk(pattern)
        if last:
            node.rest = value
        else:
            node.here = value
        self._recent.clear()

    def remove(self, pattern: Pattern) -> None:
        """Take the pattern out again, and the branches that only it needed."""
        del self._values[pattern]
        tokens = pattern.tokens[:-1] if pattern.tokens[-1] == ">" else pattern.tokens
        path = [self._root]
        for token in tokens:
            path.append(path[-1].children[token])
        if pattern.tokens[-1] == ">":
            path[-1].rest = None
        else:
            path[-1].here = None
        for node, token in zip(reversed(path[:-1]), reversed(tokens), strict=True):
            child = node.children[token]
            if child.children or child.here is not None or child.rest is not None:
                break
            del node.children[token]
        self._recent.clear()

    def match(self, subject: str) -> tuple[T, ...]:
        """The values of every pattern that the subject belongs to."""
        found = self._recent.get(subject)
        if found is None:
            if len(self._recent) >= _REMEMBERED:
                self._recent.clear()
            found = self._recent[subject] = tuple(self._search(subject.split(".")))
        return found

    def _walk(self, pattern: Pattern) -> tuple[_Node[T], bool]:
        node = self._root
        for token in pattern.tokens:
            if token == ">":
                return node, True
            node = node.children.setdefault(token, _Node())
        return node, False

    def _search(self, tokens: list[str]) -> list[T]:
        found: list[T] = []
        level = [self._root]
        for token in tokens:
            found += [node.rest for node in level if node.rest is not None]
            level = [child for node in level for child in (node.children.get(token), node.children.get("*")) if child is not None]
        return found + [node.here for node in level if node.here is not None]
