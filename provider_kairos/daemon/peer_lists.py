"""How the lists of peers and networks are read: static peer table, block list, exemptions (spec/edgevpn.md 12.3).

Every item is checked at start and a bad one is an error that names it. EdgeVPN takes what is no network for a peer ID
without decoding it, so that a blocked peer is never recognised (15.2 no. 3), and passes over exemptions that it cannot
read.
"""

from __future__ import annotations

import ipaddress
import re

from provider_kairos.daemon.environment import parse_list
from provider_kairos.errors import ConfigError, PeerError
from provider_kairos.ids import PeerId, parse_peer_id

__all__ = ["parse_blacklist", "parse_static_peers", "parse_whitelist"]

_ENTRY = re.compile(r"(?:\[([^\]]*)\]|([^:\[\]]*)):([^:]*)")
_EXEMPT = re.compile(r"/(ip4|ip6)/([^/]+)(?:/ipcidr/(\d{1,3}))?(?:/(?:tcp|udp)/\d{1,5})?(?:/p2p/([^/]+))?/?")


def parse_static_peers(name: str, text: str) -> tuple[tuple[str, PeerId], ...]:
    """``ADDRESS:PEERID`` items, an IPv6 address in brackets; address and peer in their usual spelling.

    Raises ConfigError: a bad item, or one address for two peers.
    """
    found: dict[str, PeerId] = {}
    for item in parse_list(name, text):
        match = _ENTRY.fullmatch(item)
        if match is None:
            raise ConfigError(
                f"{name}: {item!r} is not ADDRESS:PEERID",
                hint="for example 10.1.0.1:12D3KooW... or [fd00::1]:12D3KooW...",
            )
        address = _address(name, item, match[1] or match[2])
        peer = _peer(name, item, match[3])
        if found.setdefault(address, peer) != peer:
            raise ConfigError(f"{name} gives {address} to two peers")
    return tuple(found.items())


def parse_blacklist(name: str, text: str) -> tuple[str, ...]:
    """Networks (``10.0.0.0/8``, or an address alone) and peer IDs. Raises ConfigError."""
    found = []
    for item in parse_list(name, text):
        try:
            found.append(str(ipaddress.ip_network(item, strict=False)))
        except ValueError:
            if "/" in item or ":" in item or re.fullmatch(r"[\d.]+", item):
                raise ConfigError(f"{name}: {item!r} is no network", hint="for example 192.0.2.0/24") from None
            found.append(_peer(name, item, item))
    return tuple(dict.fromkeys(found))


def parse_whitelist(name: str, text: str) -> tuple[str, ...]:
    """Networks of multiaddresses, such as ``/ip4/192.0.2.7`` and ``/ip4/192.0.2.0/ipcidr/24``. Raises ConfigError.

    A peer ID at the end is checked and does not narrow it: who it is shows after the limits have been applied.
    """
    found = []
    for item in parse_list(name, text):
        match = _EXEMPT.fullmatch(item)
        try:
            if match is None:
                raise ValueError(item)
            address = (ipaddress.IPv4Address if match[1] == "ip4" else ipaddress.IPv6Address)(match[2])
            network = ipaddress.ip_network(f"{address}/{match[3] or address.max_prefixlen}", strict=False)
        except ValueError:
            raise ConfigError(
                f"{name}: {item!r} is no address or network",
                hint="multiaddresses: /ip4/192.0.2.7, or /ip4/192.0.2.0/ipcidr/24",
            ) from None
        if match[4]:
            _peer(name, item, match[4])
        found.append(str(network))
    return tuple(dict.fromkeys(found))


def _address(name: str, item: str, text: str) -> str:
    try:
        return str(ipaddress.ip_address(text.strip()))
    except ValueError:
        raise ConfigError(f"{name}: {item!r}: {text!r} is no address") from None


def _peer(name: str, item: str, text: str) -> PeerId:
    try:
        return parse_peer_id(text.strip())
    except PeerError as error:
        where = "" if item == text else f" in {item!r}"
        raise ConfigError(f"{name}: {error}{where}", hint="base58, as `kairos-p2p status` shows it") from None
