"""The egress of a daemon (``EGRESS``): what is closed to others is what belongs to this machine and its VPN."""

from __future__ import annotations

import ipaddress
import logging

from provider_kairos.daemon.parts import Parts
from provider_kairos.mesh.addresses import interface_addresses
from provider_kairos.services.egress import EgressServer
from provider_kairos.services.egress_policy import Address, EgressPolicy

__all__ = ["egress_server"]

log = logging.getLogger(__name__)


def egress_server(parts: Parts) -> EgressServer:
    """The service, with the policy of the settings."""
    settings = parts.settings
    policy = EgressPolicy(
        _own_addresses,
        allowed=settings.egress.allow,
        closed=[settings.address.network] if settings.vpn else [],
    )
    return EgressServer(parts.ledger, parts.mesh, parts.clock, policy)


def _own_addresses() -> set[Address]:
    """Of this moment; loopback and link-local ones are refused by their kind."""
    return {ipaddress.ip_address(str(each.address)) for each in interface_addresses()}
