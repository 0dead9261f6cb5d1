"""Who may connect, how many, and by which fixed routes (spec/edgevpn.md 6.4, 8.1, 12.3)."""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "LimitSettings"]


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """Who may connect, how many, and by which fixed routes (spec/edgevpn.md 6.4, 8.1, 12.3)."""


VARIABLES: tuple[Variable, ...] = ()

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = (
    WithoutEffect("ROUTER", "routing to the outside is not part of this version", flag="--router"),
    WithoutEffect(
        "EDGEVPNSTATICPEERTABLE", "static peer tables are not part of this version", flag="--static-peertable"
    ),
    WithoutEffect("EDGEVPNMAXCONNS", "connections are bounded by the mesh itself", flag="--max-connections"),
    WithoutEffect(
        "EDGEVPN_CONNECTION_HIGH_WATER", "connections are bounded by the mesh itself", flag="--connection-high-water"
    ),
    WithoutEffect(
        "EDGEVPN_CONNECTION_LOW_WATER", "connections are bounded by the mesh itself", flag="--connection-low-water"
    ),
    WithoutEffect("EDGEVPNBLACKLIST", "peer block lists are not part of this version", flag="--blacklist"),
)
