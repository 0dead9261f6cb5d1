"""``bridge``: which address and interface it takes, what it refuses, and that it takes EdgeVPN's flags."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from provider_kairos.cli import bridge, main, own_node
from provider_kairos.daemon.settings import read_settings
from provider_kairos.errors import ConfigError, ExitCode, PermissionHostError, UsageError
from provider_kairos.token.codec import encode, generate
from provider_kairos.vpn.pool import Pool
from provider_kairos.vpn.records import LeaseNote, LeaseState, machine_record

TOKEN = encode(generate())
OF_A_DAEMON = {
    "EDGEVPNTOKEN": TOKEN,
    "DHCP": "true",
    "ADDRESS": "10.2.0.1/24",
    "IFACE": "edgevpn0",
    "ROUTER": "10.2.0.9",
    "APILISTEN": "unix:///run/edgevpn-kairos.sock",
    "EDGEVPNMTU": "1300",
}


def settings(options: bridge.Options, network=None):
    return read_settings(bridge.variables_of(options, network or {"EDGEVPNTOKEN": TOKEN}))


def test_without_options_it_is_what_kairosctl_bridge_is():
    made = settings(bridge.Options())
    assert str(made.address) == "10.1.0.254/24"
    assert (made.interface, made.dhcp, made.api_listen) == ("kairos0", False, "127.0.0.1:8080")
    assert str(made.address.ip) not in Pool.parse("10.1.0.1/24"), "no node of ours leases it"


def test_of_a_daemons_variables_it_takes_the_network_and_not_the_machine():
    made = settings(bridge.Options(), OF_A_DAEMON)
    assert str(made.address) == "10.2.0.254/24"
    assert (made.interface, made.dhcp, made.mtu, made.limits.router) == ("kairos0", False, 1300, "")
    assert made.api_listen == "127.0.0.1:8080"


def test_a_lease_comes_from_the_networks_pool():
    assert str(settings(bridge.Options(dhcp=True), OF_A_DAEMON).address) == "10.2.0.1/24"
    assert str(settings(bridge.Options(dhcp=True, address="10.3.0.1/24"), OF_A_DAEMON).address) == "10.3.0.1/24"
    assert settings(bridge.Options(dhcp=True), OF_A_DAEMON).dhcp


def test_an_address_of_its_own_is_checked_as_a_nodes():
    assert str(settings(bridge.Options(address="10.1.0.77/24")).address) == "10.1.0.77/24"
    with pytest.raises(ConfigError, match="no prefix length"):
        settings(bridge.Options(address="10.1.0.77"))
    with pytest.raises(ConfigError, match="MTU"):
        settings(bridge.Options(address="fd00::77/64"))


@pytest.mark.parametrize(
    ("network", "address"),
    [
        ("10.1.0.1/24", "10.1.0.254/24"),
        ("10.1.0.1/16", "10.1.0.254/16"),
        ("10.1.0.1/28", "10.1.0.14/28"),
        ("fd00::1/64", "fd00::fe/64"),
    ],
)
def test_the_default_address_is_one_of_the_network(network, address):
    assert bridge.default_address(network) == address


@pytest.mark.parametrize("network", ["10.1.0.1/32", "10.1.0.0/31", "nonsense"])
def test_a_network_without_room_is_said(network):
    with pytest.raises(ConfigError, match="ADDRESS"):
        bridge.default_address(network)


def test_it_says_that_it_needs_root_before_anything_else(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(bridge, "CAP_NET_ADMIN", 63)  # a right that nobody has
    monkeypatch.setattr(own_node, "run", lambda *_, **__: pytest.fail("started"))
    with pytest.raises(PermissionHostError, match="needs root"):
        bridge.run(bridge.Options(), {})


def test_a_user_with_the_right_to_make_interfaces_need_not_be_root(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(bridge, "CAP_NET_ADMIN", 0)
    if os.getuid():
        pytest.skip("this user has no right at all")
    seen: list[dict[str, Any]] = []

    def run(_work, **options):
        seen.append(options)
        return 130

    monkeypatch.setattr(own_node, "run", run)
    assert bridge.run(bridge.Options(api=""), {"EDGEVPNTOKEN": TOKEN}) == ExitCode.OK
    assert (seen[0]["vpn"], seen[0]["api"]) == (True, False)
    adapted = seen[0]["adapt"](read_settings(seen[0]["environ"]))
    assert not adapted.persistent_interface, "the interface goes with the command"


@pytest.mark.parametrize("flag", [["--qr-code-image", "x.png"], ["--qr-code-snapshot"]])
def test_recovery_is_refused_by_name(flag, capsys):
    assert main.run(["bridge", *flag]) == ExitCode.USAGE
    assert "recovery by QR code" in capsys.readouterr().err


def test_it_takes_edgevpns_flags_and_refuses_the_token(monkeypatch, capsys):
    seen: list[bridge.Options] = []

    def run(options):
        seen.append(options)
        return 0

    monkeypatch.setattr(bridge, "run", run)
    for name in ("EDGEVPNDHT", "EDGEVPNMTU"):
        monkeypatch.setenv(name, "")
    arguments = "bridge --dht=false --address 10.1.0.7/24 -mtu 1300 --dhcp=false --interface br7 --api= --network-id x"
    assert main.run(arguments.split()) == 0
    assert seen == [
        bridge.Options(address="10.1.0.7/24", interface="br7", api="", network_id="x"),
    ]
    assert (os.environ["EDGEVPNDHT"], os.environ["EDGEVPNMTU"]) == ("false", "1300")
    assert main.run(["bridge", "--token", "b3Rw"]) == ExitCode.USAGE
    assert "EDGEVPNTOKEN" in capsys.readouterr().err


def test_a_qr_code_is_no_way_in():
    with pytest.raises(UsageError):
        bridge.run(bridge.Options(recovery=True), {})


def daemon(machines, notes=None, room=()):
    buckets = {"machines": machines, "kairos-p2p.lease": notes or {}}
    ledger = SimpleNamespace(bucket=buckets.get)
    mesh = SimpleNamespace(peer_id="me", on_chain=lambda: set(room))
    made: Any = SimpleNamespace(ledger=SimpleNamespace(ledger=ledger), mesh=mesh)
    return made


def machine(peer, address):
    return {address: machine_record(peer, "box", "amd64", address, "")}


def test_edgevpn_nodes_would_lease_above_a_bridge():
    held = {"ours": LeaseNote(LeaseState.HELD, "10.1.0.1", 1).text(), "me": LeaseNote(LeaseState.HELD, "x").text()}
    mine = machine("me", "10.1.0.254")
    ours = machine("ours", "10.1.0.1")
    assert not bridge._is_highest(daemon({**mine, **ours}, held), "10.1.0.254/24"), "our own nodes keep clear of it"
    assert bridge._is_highest(daemon({**mine, **machine("go", "10.1.0.2")}, held), "10.1.0.254/24")
    assert bridge._is_highest(daemon(mine, held, room={"go"}), "10.1.0.254/24"), "one that has no address yet"
    assert not bridge._is_highest(daemon({**machine("me", "10.1.0.9"), **machine("go", "10.1.0.20")}), "10.1.0.9/24")
