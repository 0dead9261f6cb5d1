"""Which packets may pass between the TUN device and a peer.

A member of the network could send packets in another member's name; here a source address inside the VPN has to
belong to the peer that sent the packet. EdgeVPN checks only that the peer is a member at all (spec/edgevpn.md 8.1), so
this asks nothing of Go nodes that they do not do anyway. Packets that a peer merely forwards (a router's, a pod's;
their source is outside of the VPN's subnet) pass if that is allowed.

Groups and broadcasts have no receiver on this VPN and are dropped on both ways.
"""

from __future__ import annotations

from collections import Counter
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from provider_kairos.ids import PeerId
from provider_kairos.vpn.packets import Header, parse
from provider_kairos.vpn.routes import RouteTable

__all__ = ["Guard", "Verdict"]


class Verdict(Enum):
    """What the guard says; only the first two let a packet pass."""

    PASS = "pass"  # noqa: S105
    """from or to a member, in its own name"""
    FORWARDED = "forwarded"
    """a source outside of the VPN"""
    MALFORMED = "malformed"
    """no IP packet, or not of the length that it names"""
    GROUP = "group"
    """to a group, a broadcast or nobody"""
    SPOOFED = "spoofed"
    """a source that belongs to another member, to us, or to nobody who can send"""
    UNKNOWN = "unknown"
    """a source inside of the VPN that nobody has (the ledger may be behind)"""
    STRANGER = "stranger"
    """the peer is no member"""
    NOT_FORWARDING = "not-forwarding"
    """a source outside of the VPN, which is not allowed"""

    @property
    def passes(self) -> bool:
        """Whether the packet goes on."""
        return self in {Verdict.PASS, Verdict.FORWARDED}


class Guard:
    """Judges packets by the route table.

    Args:
        routes: Who has which address.
        network: The VPN's subnet.
        forward: Let packets pass whose source is outside of the subnet, as EdgeVPN does.
    """

    def __init__(self, routes: RouteTable, network: IPv4Network | IPv6Network, *, forward: bool = True) -> None:
        self._counts: tuple[Counter[Verdict], Counter[Verdict]] = (Counter(), Counter())
        self._routes = routes
        self._forward = forward
        self._version = network.version
        size = len(network.network_address.packed)
        self._mask = int(network.netmask)
        self._prefix = int(network.network_address)
        self._size = size
        self._broadcast = network.broadcast_address.packed

    @property
    def counters(self) -> dict[str, int]:
        """How often each verdict fell, such as ``in-spoofed``."""
        pairs = zip(("in", "out"), self._counts, strict=True)
        return {f"{way}-{verdict.value}": count for way, counts in pairs for verdict, count in counts.items()}

    def inbound(self, peer: PeerId, packet: bytes | memoryview) -> Verdict:
        """May a packet from ``peer`` go to the TUN device?"""
        header = parse(packet)
        verdict = Verdict.MALFORMED if header is None else self._inbound(peer, header)
        self._counts[0][verdict] += 1
        return verdict

    def _inbound(self, peer: PeerId, header: Header) -> Verdict:
        if self._is_group(header.destination):
            return Verdict.GROUP
        owner = self._routes.owner(header.source)
        if owner == peer and peer != self._routes.peer_id:
            return Verdict.PASS
        if owner is not None or self._never_a_source(header.source):
            return Verdict.SPOOFED
        if self._is_inside(header.source):
            return Verdict.UNKNOWN
        if not self._routes.is_member(peer):
            return Verdict.STRANGER
        return Verdict.FORWARDED if self._forward else Verdict.NOT_FORWARDING

    def outbound(self, packet: bytes | memoryview) -> tuple[Verdict, Header | None]:
        """May a packet from the TUN device go to a peer? Its header comes along, for the route."""
        header = parse(packet)
        verdict = Verdict.MALFORMED if header is None else self._outbound(header)
        self._counts[1][verdict] += 1
        return verdict, header

    def _outbound(self, header: Header) -> Verdict:
        if self._is_group(header.destination):
            return Verdict.GROUP
        if header.source in self._routes.own:
            return Verdict.PASS
        if self._never_a_source(header.source) or self._is_inside(header.source):
            return Verdict.SPOOFED  # the other side would have to drop it
        return Verdict.FORWARDED if self._forward else Verdict.NOT_FORWARDING

    def _is_inside(self, address: bytes) -> bool:
        return len(address) == self._size and int.from_bytes(address, "big") & self._mask == self._prefix

    def _is_group(self, address: bytes) -> bool:
        """Multicast, broadcast, unspecified."""
        if len(address) == 4:
            return address[0] >= 224 or address[0] == 0 or address == self._broadcast
        return address[0] == 0xFF or not any(address)

    @staticmethod
    def _never_a_source(address: bytes) -> bool:
        """Loopback, groups, unspecified; link-local addresses mean nothing beyond their link."""
        if len(address) == 4:
            return address[0] in {0, 127} or address[0] >= 224 or address[:2] == b"\xa9\xfe"
        return address[0] == 0xFF or not any(address[:15]) or (address[0] == 0xFE and address[1] & 0xC0 == 0x80)
