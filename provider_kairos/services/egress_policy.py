"""Where others may get to through this node's egress: not to what only this machine should reach.

An egress fetches what any member of the network asks for. Without a rule that would open to them what listens on this
machine alone: its loopback, its kubelet and API, a cloud's metadata service, the boxes of the VPN. What is refused is
an address, not a name, and the address that was judged is the one that is connected to. EdgeVPN's egress refuses
nothing (spec/edgevpn.md 15.2-44).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Collection, Iterable, Sequence

__all__ = ["Address", "EgressPolicy", "Network"]

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_THIS_HOST = ipaddress.IPv4Network("0.0.0.0/8")


class EgressPolicy:
    """``allowed`` networks win over every refusal; ``closed`` ones are refused beside those that always are.

    ``own_addresses`` tells the addresses of this machine at the moment.
    """

    def __init__(
        self,
        own_addresses: Callable[[], Collection[Address]],
        *,
        allowed: Sequence[Network] = (),
        closed: Sequence[Network] = (),
    ) -> None:
        self._own_addresses = own_addresses
        self._allowed = allowed
        self._closed = closed

    def refusal(self, address: Address) -> str:
        """Why an address is refused; empty when it may be connected to."""
        real = _embedded(address)
        if _in(self._allowed, (address, real)):
            return ""
        if real.is_loopback or real.is_unspecified or real in _THIS_HOST:
            return "it is this machine's loopback"
        if real.is_link_local:
            return "it is link-local, as metadata services are"
        if real.is_multicast or real == ipaddress.IPv4Address("255.255.255.255"):
            return "it is no address of one host"
        if real in self._own_addresses():
            return "it is this machine's own address"
        if _in(self._closed, (real,)):
            return "it is in the VPN"
        return ""

    def pick(self, addresses: Iterable[Address]) -> tuple[list[Address], str]:
        """Those that may be connected to, and why the first of the others may not."""
        good: list[Address] = []
        why = ""
        for address in addresses:
            if refusal := self.refusal(address):
                why = why or f"{address}: {refusal}"
            else:
                good.append(address)
        return good, why


def _in(networks: Sequence[Network], addresses: Iterable[Address]) -> bool:
    return any(address in network for network in networks for address in addresses)


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.sixtofour is not None:
            return address.sixtofour
    return address
