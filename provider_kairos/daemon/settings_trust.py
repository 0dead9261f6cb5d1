"""The trust zone (spec/edgevpn.md 13, 12.3)."""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "TrustSettings"]


@dataclass(frozen=True, slots=True)
class TrustSettings:
    """The trust zone (spec/edgevpn.md 13, 12.3)."""


VARIABLES: tuple[Variable, ...] = ()

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = (
    WithoutEffect("PEERGUARD", "the trust zone is not part of this version", flag="--peerguard"),
    WithoutEffect("PEERGATE", "the trust zone is not part of this version", flag="--peergate"),
)
