"""The HTTP egress (spec/edgevpn.md 8.5, 12.2)."""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "EgressSettings"]


@dataclass(frozen=True, slots=True)
class EgressSettings:
    """The HTTP egress (spec/edgevpn.md 8.5, 12.2)."""


VARIABLES: tuple[Variable, ...] = ()

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = (
    WithoutEffect("EGRESS", "HTTP egress is not part of this version", flag="--egress"),
)
