"""Who may connect, how many, and by which fixed routes (spec/edgevpn.md 6.4, 8.1, 12.3)."""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect
from provider_kairos.daemon.peer_lists import parse_blacklist, parse_static_peers, parse_whitelist
from provider_kairos.ids import PeerId

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "LimitSettings"]


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Who may connect, how many, and by which fixed routes (spec/edgevpn.md 6.4, 8.1, 12.3).

    ``static_peers`` are pairs of address and peer; ``blacklist`` holds networks and peer IDs, ``whitelist`` networks.
    """

    static_peers: tuple[tuple[str, PeerId], ...] = ()
    blacklist: tuple[str, ...] = ()
    whitelist: tuple[str, ...] = ()

    @property
    def blocked_networks(self) -> tuple[str, ...]:
        """What of the block list is a network."""
        return tuple(item for item in self.blacklist if "/" in item)

    @property
    def blocked_peers(self) -> frozenset[PeerId]:
        """What of the block list is a peer."""
        return frozenset(PeerId(item) for item in self.blacklist if "/" not in item)

    @property
    def only_peers(self) -> frozenset[PeerId]:
        """Whose gossip and packets are taken; empty: everybody's."""
        return frozenset(peer for _, peer in self.static_peers)


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "EDGEVPNSTATICPEERTABLE",
        "static_peers",
        parse_static_peers,
        "`ADDRESS:PEERID` items with commas, IPv6 in brackets; packets go by these alone, and nobody else is heard",
        flag="--static-peertable",
        many=True,
    ),
    Variable(
        "EDGEVPNBLACKLIST",
        "blacklist",
        parse_blacklist,
        "networks and peer IDs, with commas: never dialled, never accepted",
        flag="--blacklist",
        many=True,
    ),
    Variable(
        "EDGEVPNWHITELIST",
        "whitelist",
        parse_whitelist,
        "multiaddresses with commas (`/ip4/192.0.2.0/ipcidr/24`) that the limits on connections do not hold for",
        flag="--whitelist",
        many=True,
    ),
)

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = (
    WithoutEffect("ROUTER", "routing to the outside is not part of this version", flag="--router"),
    WithoutEffect("EDGEVPNMAXCONNS", "connections are bounded by the mesh itself", flag="--max-connections"),
    WithoutEffect(
        "EDGEVPN_CONNECTION_HIGH_WATER", "connections are bounded by the mesh itself", flag="--connection-high-water"
    ),
    WithoutEffect(
        "EDGEVPN_CONNECTION_LOW_WATER", "connections are bounded by the mesh itself", flag="--connection-low-water"
    ),
)
