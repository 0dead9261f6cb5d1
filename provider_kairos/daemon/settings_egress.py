"""The HTTP egress (spec/edgevpn.md 8.5, 12.1, 12.2)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect, parse_bool, parse_number
from provider_kairos.errors import ConfigError

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "EgressSettings"]

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class EgressSettings:
    """The HTTP egress: whether other nodes may get out through this one, and what is open beside the usual."""

    serve: bool = False
    allow: tuple[Network, ...] = ()


def _networks(name: str, text: str) -> tuple[Network, ...]:
    found: list[Network] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        try:
            found.append(ipaddress.ip_network(item, strict=False))
        except ValueError:
            raise ConfigError(f"{name}: {item!r} is no network", hint="for example 127.0.0.1/32,10.1.0.0/24") from None
    return tuple(found)


VARIABLES: tuple[Variable, ...] = (
    Variable("EGRESS", "serve", parse_bool, "let other nodes send HTTP requests out through this one", flag="--egress"),
    Variable(
        "KAIROS_P2P_EGRESS_ALLOW",
        "allow",
        _networks,
        "networks, with commas, that they may reach although the egress is closed to them: this machine, its loopback, "
        "link-local addresses (metadata services), the VPN (ours)",
    ),
)

_OF_THE_PROXY = "the daemon has no proxy; `kairos-p2p egress` reads it"

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = (
    WithoutEffect(
        "EGRESSANNOUNCE",
        "the record is announced at once, and again as soon as somebody changes it",
        "--egress-announce-time",
        parse_number,
    ),
    WithoutEffect("PROXYLISTEN", _OF_THE_PROXY),
    WithoutEffect("PROXYINTERVAL", _OF_THE_PROXY),
    WithoutEffect("PROXYDEADINTERVAL", _OF_THE_PROXY),
)
