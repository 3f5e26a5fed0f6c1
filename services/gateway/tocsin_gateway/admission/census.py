"""How many connections there are, from each address and of each user; who is one too many is refused. Pure but for the counters."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Final

from tocsin_gateway.admission.headcount import Headcount, OwnHeadcount
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
    """Of one worker, but addresses and users are counted where `headcount` does. `on_refused` is called with the limit's name.

    Connections of this machine itself have no limit for their address.
    """

    def __init__(self, limits: Limits, on_refused: Callable[[str], None], headcount: Headcount | None = None) -> None:
        self._limits = limits
        self._headcount = headcount or OwnHeadcount()
        self._on_refused = on_refused
        self._all = 0

    def enter(self, address: str | None) -> Visit:
        """Raises ProtocolError: unavailable where the worker is full, limit where the address is."""
        if self._all >= self._limits.connections:
            self._on_refused("connections")
            raise ProtocolError("unavailable", "this gateway has as many connections as it may have; come again, or elsewhere")
        address = None if address is None or _is_local(address) else address
        if address is not None:
            if self._headcount.of(_ADDRESS + address) >= self._limits.connections_per_address:
                self._on_refused("connections_per_address")
                raise ProtocolError("limit", f"{self._limits.connections_per_address} connections from one address are allowed")
            self._headcount.add(_ADDRESS + address)
        self._all += 1
        return Visit(self, address)

    def add_user(self, user: str | None) -> None:
        if user is None:
            return
        if self._headcount.of(_USER + user) >= self._limits.connections_per_user:
            self._on_refused("connections_per_user")
            raise ProtocolError("limit", f"{self._limits.connections_per_user} connections of one user are allowed")
        self._headcount.add(_USER + user)

    def remove_user(self, user: str | None) -> None:
        if user is not None:
            self._headcount.add(_USER + user, -1)

    def remove(self, address: str | None, user: str | None) -> None:
        self._all -= 1
        if address is not None:
            self._headcount.add(_ADDRESS + address, -1)
        self.remove_user(user)


_ADDRESS: Final = "address "
_USER: Final = "user "


def _is_local(address: str) -> bool:
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False
