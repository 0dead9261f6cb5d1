"""This program under EdgeVPN's name, as units and scripts of a fleet call it."""

from __future__ import annotations

import pytest

from provider_kairos.cli.edgevpn import is_edgevpn, translate

LEDGER_ALONE = {"KAIROS_P2P_VPN": "false", "API": "true"}


@pytest.mark.parametrize(
    ("arguments", "ours", "variables"),
    [
        ([], ["daemon"], {}),
        (["--dhcp", "--mtu", "1300"], ["daemon", "--dhcp", "--mtu", "1300"], {}),
        (["api", "--enable-healthchecks"], ["daemon"], LEDGER_ALONE),
        (
            ["api", "--enable-healthchecks=true", "--listen", "unix:///run/x.sock", "--dht=false"],
            ["daemon", "--api-listen", "unix:///run/x.sock", "--dht=false"],
            LEDGER_ALONE,
        ),
        (["api", "-listen=127.0.0.1:1"], ["daemon", "--api-listen=127.0.0.1:1"], LEDGER_ALONE),
        (["start", "--dht=false"], ["daemon", "--dht=false"], {"KAIROS_P2P_VPN": "false", "API": "false"}),
        (["service-add", "ssh", "127.0.0.1:22"], ["service-add", "ssh", "127.0.0.1:22"], {}),
    ],
)
def test_arguments(arguments, ours, variables):
    assert translate(arguments) == (ours, variables)


def test_only_under_that_name():
    assert is_edgevpn("/usr/bin/edgevpn")
    assert not is_edgevpn("/usr/bin/kairos-p2p")
    assert not is_edgevpn("")
