"""The name server (spec/edgevpn.md 10, 12.2)."""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.daemon.environment import Variable, WithoutEffect

__all__ = ["VARIABLES", "WITHOUT_EFFECT", "DnsSettings"]


@dataclass(frozen=True, slots=True)
class DnsSettings:
    """The name server (spec/edgevpn.md 10, 12.2)."""


VARIABLES: tuple[Variable, ...] = ()

WITHOUT_EFFECT: tuple[WithoutEffect, ...] = (
    WithoutEffect("DNSADDRESS", "the name server is not part of this version", flag="--dns"),
    WithoutEffect("DNSFORWARD", "the name server is not part of this version", flag="--dns-forwarder"),
    WithoutEffect("DNSFORWARDSERVER", "the name server is not part of this version", flag="--dns-forward-server"),
    WithoutEffect("DNSCACHESIZE", "the name server is not part of this version", flag="--dns-cache-size"),
)
