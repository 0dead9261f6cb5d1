"""The daemon's address, environment and unit (spec/provider.md 3.3, 3.5, 3.6)."""

from __future__ import annotations

import pytest

from provider_kairos.config import load
from provider_kairos.errors import ConfigError, HostError
from provider_kairos.provider.api_address import choose_address, listen_value
from provider_kairos.provider.daemon_unit import (
    ENV_FILE,
    DaemonProgram,
    daemon_environment,
    daemon_program,
    set_up_daemon,
)
from provider_kairos.provider.machine import FakeMachine
from provider_kairos.quoting import parse_env_file

SOCKET = "unix:///run/edgevpn-kairos.sock"
TCP = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("environ", "vpn_env", "env_file", "answering", "payload", "chosen"),
    [
        (
            {"EDGEVPN_API": "http://127.0.0.1:9"},
            {"APILISTEN": "x:1"},
            {"APILISTEN": "y:2"},
            True,
            TCP,
            "http://127.0.0.1:9",
        ),
        ({}, {"APILISTEN": "127.0.0.1:7"}, {"APILISTEN": "127.0.0.1:8"}, True, TCP, "http://127.0.0.1:7"),
        ({}, {}, {"APILISTEN": "127.0.0.1:8"}, True, TCP, "http://127.0.0.1:8"),
        ({}, {}, {"APILISTEN": SOCKET}, False, TCP, SOCKET),
        ({}, {}, {}, True, TCP, SOCKET),
        ({}, {}, {}, False, TCP, TCP),
        ({}, {}, {}, False, "", SOCKET),
        ({"EDGEVPN_API": ""}, {}, {"A": "b"}, False, "unix:///run/other.sock", "unix:///run/other.sock"),
    ],
)
def test_order_of_addresses(environ, vpn_env, env_file, answering, payload, chosen):  # noqa: PLR0917  # a table's columns
    found = choose_address(environ, vpn_env=vpn_env, env_file=env_file, payload=payload, probe=lambda _: answering)
    assert found == chosen


def test_listen_value_has_no_http():
    assert listen_value(TCP) == "127.0.0.1:8080"
    assert listen_value(SOCKET) == SOCKET


def settings(p2p, extra=""):
    return load(p2p(extra)).settings


def test_environment_of_the_vpn(p2p):
    made = daemon_environment(settings(p2p), SOCKET)
    assert made.pop("EDGEVPNTOKEN")
    assert made == {
        "API": "true",
        "APILISTEN": SOCKET,
        "APILISTENUNIXMODE": "0600",
        "DHCP": "true",
        "DHCPLEASEDIR": "/usr/local/.kairos/lease",
        "EDGEVPNOWNERSHIP": "enforce",
    }


def test_no_mode_for_tcp(p2p):
    assert "APILISTENUNIXMODE" not in daemon_environment(settings(p2p), TCP)


def test_api_only(p2p):
    made = daemon_environment(settings(p2p, "  vpn: {create: false}\n"), SOCKET)
    assert made["KAIROS_P2P_VPN"] == "false"
    assert "DHCP" not in made


def test_the_users_values_win(p2p):
    extra = "  dns: true\n  disable_dht: true\n  vpn: {env: {DNSFORWARD: 'false', EDGEVPNDHT: 'true', DHCP: false, ADDRESS: 10.1.0.9/24, APILISTENUNIXMODE: '0660'}}\n"
    made = daemon_environment(settings(p2p, extra), SOCKET)
    assert made["DNSFORWARD"] == "false"
    assert made["DNSADDRESS"] == "127.0.0.1:53"
    assert made["EDGEVPNDHT"] == "true"
    assert made["DHCP"] == "false"
    assert made["APILISTENUNIXMODE"] == "0660"


def test_no_token():
    with pytest.raises(ConfigError, match="no network token defined"):
        daemon_environment(load("p2p: {}").settings, SOCKET)


PROGRAM = DaemonProgram("/opt/100%/kairos-p2p")


def test_unit_and_environment_file(p2p):
    machine = FakeMachine()
    assert set_up_daemon(machine, settings(p2p), SOCKET, PROGRAM) is False
    unit = machine.files["/etc/systemd/system/edgevpn@.service"]
    assert "ExecStart=/opt/100%%/kairos-p2p daemon\n" in unit
    assert "EnvironmentFile=/etc/systemd/system.conf.d/edgevpn-%i.env\n" in unit
    assert "LimitNOFILE=49152\n" in unit
    assert "Restart=always\n" in unit
    assert machine.modes[ENV_FILE] == 0o600
    assert parse_env_file(machine.files[ENV_FILE])["APILISTEN"] == SOCKET
    assert machine.done[-3:] == ["daemon-reload", "start edgevpn@kairos", "enable edgevpn@kairos"]


def test_the_same_again_restarts_nothing(p2p):
    machine, same = FakeMachine(), settings(p2p)
    set_up_daemon(machine, same, SOCKET, PROGRAM)
    machine.done.clear()
    assert set_up_daemon(machine, same, SOCKET, PROGRAM) is False
    assert machine.done == ["start edgevpn@kairos", "enable edgevpn@kairos"]


def test_a_change_restarts_and_a_removed_value_goes(p2p):
    machine = FakeMachine()
    set_up_daemon(machine, settings(p2p, "  vpn: {env: {EDGEVPNMDNS: 'false'}}\n"), SOCKET, PROGRAM)
    machine.done.clear()
    assert set_up_daemon(machine, settings(p2p), SOCKET, PROGRAM) is True
    assert "restart edgevpn@kairos" in machine.done
    assert "EDGEVPNMDNS" not in machine.files[ENV_FILE]


def test_a_change_of_mode_retires_the_other_unit(p2p):
    machine = FakeMachine()
    set_up_daemon(machine, settings(p2p), SOCKET, PROGRAM)
    set_up_daemon(machine, settings(p2p, "  vpn: {create: false}\n"), SOCKET, PROGRAM)
    assert machine.active == machine.enabled == {"edgevpn"}
    assert "/etc/systemd/system/edgevpn@.service" not in machine.files
    assert "edgevpn-kairos.env\n" in machine.files["/etc/systemd/system/edgevpn.service"]
    set_up_daemon(machine, settings(p2p), SOCKET, PROGRAM)
    assert machine.active == machine.enabled == {"edgevpn@kairos"}


def test_openrc_script(p2p):
    machine = FakeMachine()
    machine.openrc = True
    set_up_daemon(machine, settings(p2p), SOCKET, DaemonProgram("/usr/bin/kairos-p2p"))
    script = machine.files["/etc/init.d/edgevpn@"]
    assert script.startswith("#!/sbin/openrc-run\n")
    assert 'command="/usr/bin/kairos-p2p"\ncommand_args="daemon"\n' in script
    assert f". {ENV_FILE}" in script


EDGEVPN = DaemonProgram("/usr/bin/edgevpn", edgevpn=True)


def test_an_edgevpn_that_the_fleet_keeps(p2p):
    machine = FakeMachine()
    set_up_daemon(machine, settings(p2p, "  disable_dht: true\n"), SOCKET, EDGEVPN)
    assert "ExecStart=/usr/bin/edgevpn\n" in machine.files["/etc/systemd/system/edgevpn@.service"]
    environment = parse_env_file(machine.files[ENV_FILE])
    assert environment["EDGEVPNPRIVKEYCACHE"] == "true", "a new identity at every boot would lose its records"
    assert environment["EDGEVPNAUTORELAY"] == "false", "without a DHT it would look for relays in a null pointer"


def test_an_edgevpn_for_the_ledger_alone_is_told_its_address(p2p):
    machine = FakeMachine()
    set_up_daemon(machine, settings(p2p, "  vpn: {create: false}\n"), SOCKET, EDGEVPN)
    unit = machine.files["/etc/systemd/system/edgevpn.service"]
    assert f"ExecStart=/usr/bin/edgevpn api --enable-healthchecks --listen {SOCKET}\n" in unit
    assert "KAIROS_P2P_VPN" not in machine.files[ENV_FILE]


def test_which_program(tmp_path):
    program = tmp_path / "edgevpn"
    with pytest.raises(HostError, match="is no program"):
        daemon_program({"KAIROS_P2P_DAEMON": str(program)})
    program.touch(0o755)
    assert daemon_program({"KAIROS_P2P_DAEMON": str(program)}) == DaemonProgram(str(program), edgevpn=True)
    assert daemon_program({"KAIROS_P2P_BIN": "/x/kairos-p2p"}) == DaemonProgram("/x/kairos-p2p")
