"""Discovery over a DHT (spec/edgevpn.md 6.2, 12.3)."""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "DhtSettings"]


@dataclass(frozen=True, slots=True)
class DhtSettings:
    """Discovery over a DHT (spec/edgevpn.md 6.2, 12.3)."""


VARIABLES: tuple[Variable, ...] = ()

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = (
    WithoutEffect(
        "EDGEVPNDHTINTERVAL", "discovery over a DHT is not part of this version", flag="--discovery-interval"
    ),
    WithoutEffect(
        "EDGEVPNDHTANNOUNCEMADDRS", "discovery over a DHT is not part of this version", flag="--dht-announce-maddrs"
    ),
)
