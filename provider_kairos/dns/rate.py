"""How many answers one asker gets over UDP: a name server that answers everybody can be used to flood a third."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict

__all__ = ["Allowance"]

MAX_ASKERS = 4096


class Allowance:
    """``per_second`` answers for each asker, ``burst`` at once; this machine's own programs are not counted.

    An asker is an IPv4 address or an IPv6 /64.
    """

    def __init__(self, per_second: float = 200.0, burst: float = 400.0) -> None:
        self._rate = per_second
        self._burst = burst
        self._askers: OrderedDict[int, tuple[float, float]] = OrderedDict()  # what is left, and when that was

    def allows(self, host: str, now: float) -> bool:
        """Take one answer from the asker's allowance."""
        address = ipaddress.ip_address(host.partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if address.is_loopback:
            return True
        asker = int(address) if address.version == 4 else int(address) >> 64
        left, since = self._askers.pop(asker, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        allowed = left >= 1
        self._askers[asker] = (left - allowed, now)
        if len(self._askers) > MAX_ASKERS:
            self._askers.popitem(last=False)
        return allowed
