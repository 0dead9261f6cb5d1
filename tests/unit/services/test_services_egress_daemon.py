"""A daemon with EGRESS lets others out, closed towards its own machine and VPN unless it is told otherwise."""

from __future__ import annotations

import ipaddress
import random
from dataclasses import replace
from typing import Any

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.daemon import egress_service
from provider_kairos.daemon.parts import Parts, configured
from provider_kairos.daemon.settings import read_settings
from provider_kairos.errors import ConfigError
from provider_kairos.services.egress import EgressServer
from provider_kairos.services.egress_policy import EgressPolicy
from provider_kairos.services.testing import MemoryLedger
from provider_kairos.token import codec

ENVIRON = {"EDGEVPNTOKEN": codec.encode(codec.generate())}


class Mesh:
    peer_id = "us"


def services(**environ):
    settings = replace(read_settings({**ENVIRON, **environ}), mdns=False)
    ledger: Any = MemoryLedger()
    mesh: Any = Mesh()
    return configured(Parts(settings, ledger, mesh, ManualClock(), random.Random(1)))


def policy_of(monkeypatch, **environ):
    monkeypatch.setattr(egress_service, "interface_addresses", list)
    (service,) = (each for each in services(EGRESS="true", **environ) if isinstance(each, EgressServer))
    return service._policy


@pytest.mark.parametrize("text", ["", "false", "0"])
def test_nobody_gets_out_unless_it_is_asked_for(text):
    assert not any(isinstance(each, EgressServer) for each in services(EGRESS=text))


def test_the_vpn_is_closed_where_there_is_one(monkeypatch):
    inside = ipaddress.ip_address("10.1.0.9")
    assert policy_of(monkeypatch).refusal(inside)
    assert policy_of(monkeypatch, KAIROS_P2P_VPN="false").refusal(inside) == ""
    assert policy_of(monkeypatch, KAIROS_P2P_EGRESS_ALLOW="10.1.0.0/24, 192.0.2.1").refusal(inside) == ""


def test_the_machines_own_addresses_are_closed():
    policy = EgressPolicy(egress_service._own_addresses)
    for address in egress_service._own_addresses():
        assert policy.refusal(address)


def test_a_network_that_is_none_is_an_error_with_the_variables_name():
    with pytest.raises(ConfigError, match="KAIROS_P2P_EGRESS_ALLOW"):
        read_settings({**ENVIRON, "KAIROS_P2P_EGRESS_ALLOW": "10.1.0.0/24,nowhere"})


def test_the_proxys_variables_are_named_as_not_the_daemons():
    settings = read_settings({**ENVIRON, "PROXYLISTEN": ":8080", "EGRESSANNOUNCE": "100"})
    assert {name for name, _ in settings.not_acted_on} >= {"PROXYLISTEN", "EGRESSANNOUNCE"}
