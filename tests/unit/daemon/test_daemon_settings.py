from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from provider_kairos.daemon.environment import parse_bool, parse_duration, parse_list
from provider_kairos.daemon.settings import all_refused, all_variables, all_without_effect, read_settings
from provider_kairos.errors import ConfigError, TokenError
from provider_kairos.ledger.policy import OwnershipMode
from provider_kairos.token.codec import encode, generate, to_yaml

TOKEN = encode(generate())
PEER = "12D3KooWAKuk1EwYpBe6QNjqdbHotCBd2yaWAg6UVN7pJQv4fqXf"


def read(**variables: str):
    return read_settings({"EDGEVPNTOKEN": TOKEN, **variables})


def test_defaults_are_those_of_a_kairos_box():
    settings = read()
    assert settings.interface == "edgevpn0"
    assert settings.mtu == 1200
    assert settings.address == ipaddress.IPv4Interface("10.1.0.1/24")
    assert settings.ownership is OwnershipMode.ENFORCE
    assert settings.api_listen == "unix:///run/edgevpn-kairos.sock"
    assert settings.liveness_window == 480
    assert settings.heartbeat_interval <= 45, "v0.35.3 peers stop routing to slower ones"


def test_what_the_provider_writes_is_read():
    settings = read(
        API="true",
        APILISTEN="unix:///run/x.sock",
        APILISTENUNIXMODE="0600",
        DHCP="true",
        DHCPLEASEDIR="/usr/local/.kairos/lease",
        EDGEVPNDHT="false",
        EDGEVPNBOOTSTRAPPEERS=f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}, /ip4/192.0.2.2/tcp/1/p2p/{PEER}",
        EDGEVPNOWNERSHIP="Observe ",
    )
    assert settings.dhcp
    assert not settings.dht
    assert settings.lease_dir == Path("/usr/local/.kairos/lease")
    assert settings.bootstrap_peers == (
        f"/ip4/192.0.2.1/tcp/1/p2p/{PEER}",
        f"/ip4/192.0.2.2/tcp/1/p2p/{PEER}",
    )
    assert settings.ownership is OwnershipMode.OBSERVE


def test_an_empty_variable_counts_as_unset():
    assert read(ADDRESS="", EDGEVPNMTU="").mtu == 1200


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DHCP", "yes please"),
        ("ADDRESS", "10.1.0.300/24"),
        ("ADDRESS", "10.1.0.3"),
        ("ADDRESS", "fd00::1"),
        ("ADDRESS", "fd00::1/64"),
        ("ADDRESS", "fe80::1/64"),
        ("ADDRESS", "ff02::1/64"),
        ("ADDRESS", "224.0.0.1/24"),
        ("EDGEVPNMTU", "twelve"),
        ("EDGEVPNMTU", "12"),
        ("EDGEVPNMTU", "-1"),
        ("EDGEVPNOWNERSHIP", "sometimes"),
        ("IFACE", "a name with spaces"),
        ("IFACE", "x" * 16),
        ("HEALTHCHECKINTERVAL", "0"),
        ("EDGEVPNOWNERSHIPTTL", "5 parsecs"),
        ("EDGEVPNTIMEOUT", "abc"),
        ("EDGEVPNTIMEOUT", "0s"),
        ("EDGEVPNCHANNELBUFFERSIZE", "-1"),
    ],
)
def test_a_value_that_cannot_be_read_is_named(name, text):
    with pytest.raises(ConfigError, match=name):
        read(**{name: text})


def test_no_token_names_both_variables():
    with pytest.raises(ConfigError, match="neither EDGEVPNTOKEN nor EDGEVPNCONFIG"):
        read_settings({})


def test_a_broken_token_keeps_its_secrets():
    with pytest.raises(TokenError) as caught:
        read_settings({"EDGEVPNTOKEN": TOKEN[:-30]})
    assert TOKEN[:20] not in str(caught.value)


def test_the_configuration_file_replaces_the_token(tmp_path):
    other = generate()
    path = tmp_path / "network.yaml"
    path.write_text(to_yaml(other))
    assert read(EDGEVPNCONFIG=str(path)).token == other


def test_a_missing_configuration_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match="EDGEVPNCONFIG"):
        read(EDGEVPNCONFIG=str(tmp_path / "nowhere.yaml"))


def test_settings_without_effect_are_listed_not_ignored():
    row = next(row for row in all_without_effect() if row.name == "EDGEVPNLOWPROFILE")
    assert dict(read(EDGEVPNLOWPROFILE="true").not_acted_on) == {row.name: row.why}


def test_every_variable_and_flag_has_one_row():
    rows = [row for _, row in all_variables()] + list(all_without_effect()) + list(all_refused())
    for each in ([row.name for row in rows if row.name], [row.flag for row in rows if row.flag]):
        assert len(each) == len(set(each))


def test_the_token_is_not_in_the_text_of_the_settings():
    assert read().token.room not in repr(read())


@pytest.mark.parametrize(("text", "seconds"), [("15s", 15), ("1m30s", 90), ("500ms", 0.5), ("20", 20), ("1.5h", 5400)])
def test_durations_as_go_writes_them(text, seconds):
    assert parse_duration("X", text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "s", "5x", "5s5", "-5s", "5 s"])
def test_other_durations_are_refused(text):
    with pytest.raises(ConfigError):
        parse_duration("X", text)


@pytest.mark.parametrize(("text", "value"), [("1", True), ("T", True), ("TRUE", True), ("0", False), ("f", False)])
def test_booleans_as_go_reads_them(text, value):
    assert parse_bool("X", text) is value


def test_lists_lose_empty_items():
    assert parse_list("X", " a,,b , ") == ("a", "b")


def test_marks_and_limits_of_connections():
    usual = read().limits.connections
    assert (usual.low, usual.high, usual.grace, usual.most) == (160, 192, 60, 512)
    marked = read(EDGEVPN_CONNECTION_LOW_WATER="20", EDGEVPN_CONNECTION_HIGH_WATER="30").limits.connections
    assert (marked.low, marked.high, marked.grace, marked.most) == (20, 30, 80, 512)
    few = read(EDGEVPNMAXCONNS="100").limits.connections
    assert (few.low, few.high, few.most) == (100, 100, 100)
    many = read(EDGEVPN_CONNECTION_LOW_WATER="900", EDGEVPN_CONNECTION_HIGH_WATER="1000").limits.connections
    assert many.most == 1000
    assert read(EDGEVPNMAXCONNS="-1").limits.connections.most > 10_000
    assert read(EDGEVPNWHITELIST="/ip4/192.0.2.0/ipcidr/24").limits.connections.exempt == ("192.0.2.0/24",)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"EDGEVPN_CONNECTION_LOW_WATER": "20"}, "only one of EDGEVPN_CONNECTION_LOW_WATER"),
        ({"EDGEVPN_CONNECTION_HIGH_WATER": "20"}, "only one of EDGEVPN_CONNECTION_LOW_WATER"),
        ({"EDGEVPN_CONNECTION_HIGH_WATER": "20", "EDGEVPN_CONNECTION_LOW_WATER": "30"}, "LOW_WATER=30 is above"),
        ({"EDGEVPNMAXCONNS": "-2"}, "EDGEVPNMAXCONNS='-2' is negative"),
        ({"ROUTER": "10.1.0.7/24"}, "ROUTER='10.1.0.7/24' is no address"),
        ({"ROUTER": "gateway"}, "ROUTER='gateway' is no address"),
    ],
)
def test_limits_that_make_no_sense_are_named(variables, words):
    with pytest.raises(ConfigError, match=words):
        read(**variables)


def test_a_router_is_written_as_the_ledger_writes_it():
    assert read(ROUTER=" FD00:0::7 ").limits.router == "fd00::7"


def test_a_fixed_ipv6_address_with_its_mtu():
    settings = read(ADDRESS="FD00:0::1/64", EDGEVPNMTU="1280", DHCP="false")
    assert str(settings.address) == "fd00::1/64"


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({"EDGEVPNMTU": "1279"}, r"needs an MTU of 1280 or more, EDGEVPNMTU is 1279 .*every node"),
        ({}, r"EDGEVPNMTU is 1200 \(set EDGEVPNMTU=1280"),
        ({"EDGEVPNMTU": "1500", "DHCP": "true"}, "only IPv4 addresses are leased"),
    ],
)
def test_an_ipv6_address_that_cannot_work_is_refused(variables, words):
    with pytest.raises(ConfigError, match=words):
        read(ADDRESS="fd00::1/64", **variables)


def test_without_a_vpn_the_address_does_not_matter():
    assert not read(ADDRESS="fd00::1/64", KAIROS_P2P_VPN="false").vpn


def test_only_tcp_is_listened_on_and_the_rest_is_told_of():
    settings = read(EDGEVPNLISTENMADDRS="/ip4/0.0.0.0/udp/4001/quic-v1,/ip4/0.0.0.0/tcp/4001,/ip4/0.0.0.0/tcp/4002/ws")
    assert settings.listen == ("/ip4/0.0.0.0/tcp/4001",)
    assert [name for name, _ in settings.not_acted_on] == [
        "EDGEVPNLISTENMADDRS=/ip4/0.0.0.0/udp/4001/quic-v1",
        "EDGEVPNLISTENMADDRS=/ip4/0.0.0.0/tcp/4002/ws",
    ]


@pytest.mark.parametrize("text", ["notamaddr", "/ip4/0.0.0.0/udp/4001/quic-v1", "/ip4/300.0.0.1/tcp/1", "/ip4/0.0.0.0"])
def test_a_listen_address_that_cannot_be_is_named(text):
    with pytest.raises(ConfigError, match="EDGEVPNLISTENMADDRS"):
        read(EDGEVPNLISTENMADDRS=text)
