"""Which addresses a subnet has to give, and in which order a peer tries them.

The order starts at a hash of the peer ID, so that nodes which start together rarely want the same address. The first
try falls into the lower three quarters of the subnet: EdgeVPN nodes take the highest address plus one whatever that
is (spec/edgevpn.md 9), and need room above us.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Container, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from itertools import chain

from provider_kairos.errors import ConfigError
from provider_kairos.ledger.leader import fnv1a32

__all__ = ["Pool"]

BRIDGE_HOST = 254
"""``kairosctl bridge`` always uses this host number (spec/provider.md 3.5)."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses from ``first`` to the end of ``network``, without its own, the broadcast and the bridge's address."""

    network: IPv4Network
    first: IPv4Address

    @classmethod
    def parse(cls, text: str) -> Pool:
        """From EdgeVPN's ``--address`` notation: ``10.1.0.1/24`` hands out from .1 on.

        Raises:
            ConfigError: Not an IPv4 address with a prefix length between 8 and 30.
        """
        try:
            interface = ipaddress.IPv4Interface(text)
        except ValueError as error:
            raise ConfigError(
                f"address {text!r} is not an IPv4 address with prefix length", hint="such as 10.1.0.1/24"
            ) from error
        if not 8 <= interface.network.prefixlen <= 30:
            raise ConfigError(
                f"address {text!r}: a subnet of /{interface.network.prefixlen} cannot be leased from", hint="/8 to /30"
            )
        return cls(interface.network, max(interface.ip, interface.network.network_address + 1))

    @property
    def size(self) -> int:
        """How many addresses from ``first`` to the last, the bridge's among them."""
        return int(self.network.broadcast_address) - int(self.first)

    def __contains__(self, address: str) -> bool:
        try:
            ip = IPv4Address(address)
        except ValueError:
            return False
        return ip in self.network and self.first <= ip < self.network.broadcast_address and not self._is_bridge(ip)

    def _is_bridge(self, ip: IPv4Address) -> bool:
        return int(ip) - int(self.network.network_address) == BRIDGE_HOST

    def candidates(self, peer_id: str) -> Iterator[str]:
        """All addresses in the order in which this peer tries them."""
        size = self.size
        near = max(1, size * 3 // 4)
        start = fnv1a32(peer_id.encode()) % near
        # around within the lower part first, then upwards through the rest
        for offset in chain(range(start, near), range(start), range(near, size)):
            ip = self.first + offset
            if not self._is_bridge(ip):
                yield str(ip)

    def choose(self, peer_id: str, taken: Container[str], avoid: Container[str] = ()) -> str | None:
        """The first address that is free; one in ``avoid`` only when nothing else is; None when all are taken."""
        second_best = None
        for address in self.candidates(peer_id):
            if address in taken:
                continue
            if address not in avoid:
                return address
            second_best = second_best or address
        return second_best
