"""Addresses: what can be dialled, what is told to others."""

from __future__ import annotations

import ipaddress

import pytest

from provider_kairos.errors import ConfigError
from provider_kairos.mesh.addresses import (
    Endpoint,
    InterfaceAddress,
    Networks,
    advertised,
    interface_addresses,
    parse_endpoint,
    parse_listen,
)

PEER = "12D3KooWC4T1AXU2s2YBgGJ2FeaYVtsKoHZWJeubnWe9SnuSE7Zb"


@pytest.mark.parametrize(
    ("text", "endpoint", "peer"),
    [
        ("/ip4/192.0.2.1/tcp/4001", Endpoint("ip4", "192.0.2.1", 4001), None),
        (f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}", Endpoint("ip4", "192.0.2.1", 4001), PEER),
        ("/ip6/2001:DB8:0::1/tcp/1", Endpoint("ip6", "2001:db8::1", 1), None),
        ("/dns4/box.example/tcp/4001", Endpoint("dns4", "box.example", 4001), None),
    ],
)
def test_tcp_addresses_are_read(text, endpoint, peer):
    assert parse_endpoint(text) == (endpoint, peer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "192.0.2.1:4001",
        "/ip4/192.0.2.1/udp/4001/quic-v1",
        "/ip4/192.0.2.1/tcp/4001/ws",
        "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW/p2p-circuit",
        "/ip4/0.0.0.0/tcp/4001",
        "/ip6/::/tcp/4001",
        "/ip4/224.0.0.1/tcp/4001",
        "/ip4/192.0.2.1/tcp/0",
        "/ip4/192.0.2.1/tcp/65536",
        "/ip4/192.0.2.300/tcp/1",
        "/ip6/192.0.2.1/tcp/1",
    ],
)
def test_what_tcp_cannot_dial_is_none(text):
    assert parse_endpoint(text) is None


def test_listen_addresses_are_checked():
    assert parse_listen("/ip4/0.0.0.0/tcp/0") == ("0.0.0.0", 0)
    for wrong in ("/ip4/0.0.0.0/udp/0", "/dns4/box/tcp/1", "/ip4/1.2.3/tcp/1", "0.0.0.0"):
        with pytest.raises(ConfigError, match="listen address"):
            parse_listen(wrong)


def test_blocked_networks_hold_mapped_addresses_too():
    blocked = Networks(["10.1.0.0/24", "fd00:1::/64"])
    assert "10.1.0.77" in blocked
    assert "::ffff:10.1.0.77" in blocked
    assert "fd00:1::5" in blocked
    assert "10.1.1.1" not in blocked
    assert "box.example" not in blocked
    with pytest.raises(ConfigError, match="blocked network"):
        Networks(["10.1.0.0/99"])


def interface(name, address):
    return InterfaceAddress(name, ipaddress.ip_address(address), 24)


KNOWN = [
    interface("lo", "127.0.0.1"),
    interface("lo", "::1"),
    interface("eth0", "192.0.2.2"),
    interface("eth0", "2001:db8::2"),
    interface("eth1", "198.51.100.2"),
    interface("edgevpn0", "10.1.0.3"),
    interface("cni0", "10.42.0.1"),
    interface("flannel.1", "10.42.0.0"),
]
WILD = [("0.0.0.0", 4001), ("::", 4002)]


def test_wildcards_become_addresses_that_lead_here():
    assert advertised(WILD, Networks(["10.1.0.0/24"]), known=KNOWN) == [
        "/ip4/192.0.2.2/tcp/4001",
        "/ip4/198.51.100.2/tcp/4001",
        "/ip6/2001:db8::2/tcp/4002",
    ]


def test_interfaces_can_be_chosen():
    assert advertised(WILD, Networks([]), ["eth1"], KNOWN) == ["/ip4/198.51.100.2/tcp/4001"]


def test_loopback_and_odd_interfaces_serve_when_there_is_nothing_else():
    assert advertised(WILD, Networks([]), known=KNOWN[:2]) == ["/ip4/127.0.0.1/tcp/4001", "/ip6/::1/tcp/4002"]
    odd = [*KNOWN[:2], interface("veth3", "192.0.2.9"), interface("edgevpn0", "10.1.0.3")]
    assert advertised(WILD, Networks(["10.1.0.0/24"]), known=odd) == ["/ip4/192.0.2.9/tcp/4001"]


def test_a_bound_address_is_told_as_it_is_unless_it_is_blocked():
    bound = [("192.0.2.2", 1), ("10.1.0.3", 2)]
    assert advertised(bound, Networks(["10.1.0.0/24"]), known=KNOWN) == ["/ip4/192.0.2.2/tcp/1"]


def test_the_kernel_tells_the_addresses_of_this_machine():
    assert InterfaceAddress("lo", ipaddress.ip_address("127.0.0.1"), 8) in interface_addresses()
