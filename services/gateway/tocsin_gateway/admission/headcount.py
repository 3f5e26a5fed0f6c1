"""How many connections an address or a user has: in one process, or in all workers of a gateway together.

Workers share a file in memory. Each adds in rows of its own, so that nobody waits for a lock, and reads everybody's. A key stands for a place in each of
four rows; its count is the least of the four sums. So it is never too low, and too high only where others share all four places, which a secret draws.
"""

from __future__ import annotations

import hashlib
import mmap
import secrets
import struct
from collections import Counter
from pathlib import Path
from typing import Final, Protocol

ROWS: Final = 4
PLACES: Final = 1 << 16
SECRET_BYTES: Final = 16
_WORKER_BYTES: Final = ROWS * PLACES * 4


class Headcount(Protocol):
    """`add` counts one more, or with -1 one less."""

    def of(self, key: str) -> int: ...
    def add(self, key: str, number: int = 1) -> None: ...


class OwnHeadcount:
    """Of one process."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()

    def of(self, key: str) -> int:
        return self._counts[key]

    def add(self, key: str, number: int = 1) -> None:
        self._counts[key] += number
        if self._counts[key] <= 0:
            del self._counts[key]


class SharedHeadcount:
    """Of all workers that share the file at `path`, as the worker `number` of `count`. Two that add in the same moment may not see each other."""

    def __init__(self, path: Path, number: int, count: int) -> None:
        with path.open("r+b") as file:
            self._memory: Final = mmap.mmap(file.fileno(), SECRET_BYTES + count * _WORKER_BYTES)
        self._secret = self._memory[:SECRET_BYTES]
        self._cells = memoryview(self._memory)[SECRET_BYTES:].cast("I")
        self._own = number * ROWS * PLACES
        self._count = count

    @staticmethod
    def create(path: Path, count: int) -> None:
        """An empty file for so many workers; what nobody touches takes no memory."""
        with path.open("xb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
            file.truncate(SECRET_BYTES + count * _WORKER_BYTES)

    def of(self, key: str) -> int:
        return min(sum(self._cells[place + worker * ROWS * PLACES] for worker in range(self._count)) for place in self._places(key))

    def add(self, key: str, number: int = 1) -> None:
        for place in self._places(key):
            self._cells[self._own + place] += number

    def forget(self, number: int) -> None:
        """A worker has ended, and its connections with it."""
        begin = SECRET_BYTES + number * _WORKER_BYTES
        self._memory[begin : begin + _WORKER_BYTES] = bytes(_WORKER_BYTES)

    def _places(self, key: str) -> tuple[int, ...]:
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=2 * ROWS, key=self._secret).digest()
        return tuple(row * PLACES + place for row, place in enumerate(struct.unpack(f"{ROWS}H", digest)))
