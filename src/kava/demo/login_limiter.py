"""A limit on how fast passwords can be guessed."""

import ipaddress
import secrets
import time
from array import array
from collections.abc import Callable
from hashlib import blake2b


class LoginLimiter:
    """Limits wrong passwords from each network address: some at once, then one in every interval.

    Memory is constant: addresses share `slots` counters, by a hash that clients cannot predict. An
    IPv6 address counts by its first 64 bits, since one client has the rest to itself.

    Args:
        burst: number of wrong passwords after which an address has to wait.
        seconds: length of the interval.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        burst: int = 5,
        seconds: float = 10.0,
        slots: int = 1024,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.seconds, self.clock = seconds, clock
        self.max_debt = (burst - 1) * seconds
        # The time at which a slot's whole burst is free again (the generic cell rate algorithm).
        self._free_at = array("d", [0.0]) * slots
        self._salt = secrets.token_bytes(16)

    def attempt(self, address: str) -> float:
        """Count an attempt before its password is checked; return the seconds to wait, or 0.

        An attempt that has to wait is not counted, and its password must not be checked.
        """
        slot, now = self._slot(address), self.clock()
        owed = max(0.0, self._free_at[slot] - now)
        if owed > self.max_debt:
            return owed - self.max_debt
        self._free_at[slot] = now + owed + self.seconds
        return 0.0

    def refund(self, address: str) -> None:
        """Do not count an attempt whose password was correct."""
        self._free_at[self._slot(address)] -= self.seconds

    def _slot(self, address: str) -> int:
        try:
            host = ipaddress.ip_address(address)
        except ValueError:
            network = address
        else:
            network = str(int(host) >> 64) if host.version == 6 else str(host)
        digest = blake2b(network.encode(), key=self._salt, digest_size=8).digest()
        return int.from_bytes(digest) % len(self._free_at)
