"""How many connections there are, from each address and of each user; who is one too many is refused. Pure but for the counters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

from tocsin_gateway.limits import Limits
from tocsin_gateway.protocol import ProtocolError


class Visit:
    """One connection's place in the census; `leave` gives it back."""

    def __init__(self, census: Census, address: str | None) -> None:
        self._census = census
        self._address = address
        self._user: str | None = None

    def belongs_to(self, user: str | None) -> None:
        """From now on it counts for this user. Raises ProtocolError limit where that would be one too many; then it counts as before."""
        if user != self._user:
            self._census.add_user(user)
            self._census.remove_user(self._user)
            self._user = user

    def leave(self) -> None:
        self._census.remove(self._address, self._user)


class Census:
    """Of one worker. `on_refused` is called with the limit's name. Connections of this machine itself have no limit for their address."""

    def __init__(self, limits: Limits, on_refused: Callable[[str], None]) -> None:
        self._limits = limits
        self._on_refused = on_refused
        self._all = 0
        self._addresses: Counter[str] = Counter()
        self._users: Counter[str] = Counter()

    def enter(self, address: str | None) -> Visit:
        """Raises ProtocolError: unavailable where the worker is full, limit where the address is."""
        if self._all >= self._limits.connections:
            self._on_refused("connections")
            raise ProtocolError("unavailable", "this gateway has as many connections as it may have; come again, or elsewhere")
        address = None if address is None or _is_local(address) else address
        if address is not None:
            if self._addresses[address] >= self._limits.connections_per_address:
                self._on_refused("connections_per_address")
                raise ProtocolError("limit", f"{self._limits.connections_per_address} connections from one address are allowed")
            self._addresses[address] += 1
        self._all += 1
        return Visit(self, address)

    def add_user(self, user: str | None) -> None:
        if user is None:
            return
        if self._users[user] >= self._limits.connections_per_user:
            self._on_refused("connections_per_user")
            raise ProtocolError("limit", f"{self._limits.connections_per_user} connections of one user are allowed")
        self._users[user] += 1

    def remove_user(self, user: str | None) -> None:
        _take(self._users, user)

    def remove(self, address: str | None, user: str | None) -> None:
        self._all -= 1
        _take(self._addresses, address)
        _take(self._users, user)


def _take(counts: Counter[str], key: str | None) -> None:
    if key is not None:
        counts[key] -= 1
        if counts[key] <= 0:
            del counts[key]


def _is_local(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
