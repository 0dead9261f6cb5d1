"""Who may connect, how many, and by which fixed routes (spec/edgevpn.md 6.4, 8.1, 12.3)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect, parse_number
from provider_kairos.daemon.peer_lists import parse_blacklist, parse_static_peers, parse_whitelist
from provider_kairos.errors import ConfigError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.connection_limits import ConnectionLimits

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "LimitSettings"]

MARKED_GRACE = 80.0
"""Seconds without being closed that EdgeVPN gives a connection once marks are set; without them 60."""

UNLIMITED = 16_384
"""What ``-1`` stands for: the daemon's unit allows three times as many open files."""


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Who may connect, how many, and by which fixed routes (spec/edgevpn.md 6.4, 8.1, 12.3).

    ``static_peers`` are pairs of address and peer; ``blacklist`` holds networks and peer IDs, ``whitelist`` networks.
    ``router`` is a virtual IP, empty for none. Marks and ``max_connections`` are 0 where they are not set.
    """

    router: str = ""
    low_water: int = 0
    high_water: int = 0
    max_connections: int = 0
    static_peers: tuple[tuple[str, PeerId], ...] = ()
    blacklist: tuple[str, ...] = ()
    whitelist: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if bool(self.low_water) != bool(self.high_water):
            raise ConfigError(
                "only one of EDGEVPN_CONNECTION_LOW_WATER and EDGEVPN_CONNECTION_HIGH_WATER is set",
                hint="set both, such as 160 and 192, or none",
            )
        if self.low_water > self.high_water:
            raise ConfigError(
                f"EDGEVPN_CONNECTION_LOW_WATER={self.low_water} is above "
                f"EDGEVPN_CONNECTION_HIGH_WATER={self.high_water}",
                hint="connections are closed above the high mark, down to the low one",
            )

    @property
    def connections(self) -> ConnectionLimits:
        """How many connections the mesh holds."""
        usual = ConnectionLimits()
        most = UNLIMITED if self.max_connections < 0 else self.max_connections or max(usual.most, self.high_water)
        return ConnectionLimits(
            low=min(self.low_water or usual.low, most),
            high=min(self.high_water or usual.high, most),
            grace=MARKED_GRACE if self.high_water else usual.grace,
            most=most,
            exempt=self.whitelist,
        )

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


def _router(name: str, text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ConfigError(
            f"{name}={text!r} is no address", hint="a virtual IP without prefix, such as 10.1.0.7"
        ) from None


def _most(name: str, text: str) -> int:
    return -1 if text.strip() == "-1" else parse_number(name, text)


VARIABLES: tuple[Variable, ...] = (
    Variable(
        "ROUTER",
        "router",
        _router,
        "a virtual IP: the node that gets what this machine sends to addresses that no node has",
        flag="--router",
    ),
    Variable(
        "EDGEVPNMAXCONNS",
        "max_connections",
        _most,
        "connections at most; 0: 512, -1: no limit; in EdgeVPN only together with `LIMITENABLE`",
        flag="--max-connections",
    ),
    Variable(
        "EDGEVPN_CONNECTION_HIGH_WATER",
        "high_water",
        parse_number,
        "above so many connections those of strangers are closed; 0: 192",
        flag="--connection-high-water",
    ),
    Variable(
        "EDGEVPN_CONNECTION_LOW_WATER",
        "low_water",
        parse_number,
        "down to so many; 0: 160",
        flag="--connection-low-water",
    ),
    Variable(
        "EDGEVPNSTATICPEERTABLE",
        "static_peers",
        parse_static_peers,
        "`ADDRESS:PEERID` items with commas, IPv6 in brackets; packets go by these alone, and nobody else is heard",
        flag="--static-peertable",
    ),
    Variable(
        "EDGEVPNBLACKLIST",
        "blacklist",
        parse_blacklist,
        "networks and peer IDs, with commas: never dialled, never accepted",
        flag="--blacklist",
    ),
    Variable(
        "EDGEVPNWHITELIST",
        "whitelist",
        parse_whitelist,
        "multiaddresses with commas (`/ip4/192.0.2.0/ipcidr/24`) that the limits on connections do not hold for",
        flag="--whitelist",
    ),
)

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = ()
