"""Binary multiaddresses: what peers send, what users write, and peer IDs of every kind."""

from __future__ import annotations

import pytest

from provider_kairos.errors import ConfigError
from provider_kairos.mesh import identify, multiaddr, parts
from provider_kairos.mesh.addresses import Endpoint, parse_endpoint

ED25519 = "12D3KooWAKuk1EwYpBe6QNjqdbHotCBd2yaWAg6UVN7pJQv4fqXf"
RSA = "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN"

DIALLED = [
    "/ip4/192.0.2.1/tcp/4001",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{RSA}",
    "/ip6/2001:db8::1/tcp/1",
    "/dns/node.example.org/tcp/65535",
    "/dns4/node.example.org/tcp/4001",
    f"/dns6/node.example.org/tcp/4001/p2p/{ED25519}",
]
PASSED_ON = [
    "/ip4/192.0.2.1/udp/4001/quic-v1",
    "/ip4/192.0.2.1/udp/4001/quic-v1/webtransport",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{RSA}/p2p-circuit",
    f"/ip4/192.0.2.1/tcp/4001/p2p/{RSA}/p2p-circuit/p2p/{ED25519}",
    "/ip4/192.0.2.1/tcp/4001/ws",
    "/dns4/node.example.org/tcp/443/tls/ws",
    f"/dnsaddr/bootstrap.example.org/p2p/{RSA}",
    "/ip4/0.0.0.0/tcp/4001",
    "/ip4/224.0.0.1/tcp/4001",
    "/ip4/192.0.2.1/tcp/0",
]


@pytest.mark.parametrize("text", [*DIALLED, *PASSED_ON])
def test_text_becomes_the_bytes_that_others_make_of_it(text):
    data = multiaddr.encode(text)
    assert data == parts.load().Multiaddr(text).to_bytes()
    assert multiaddr.split(data)


@pytest.mark.parametrize("text", DIALLED)
def test_what_tcp_dials_is_read(text):
    expected = parse_endpoint(text)
    assert expected is not None
    assert multiaddr.endpoint_of(multiaddr.encode(text)) == expected[0]
    assert multiaddr.encode_endpoint(expected[0]) == multiaddr.encode(text.partition("/p2p/")[0])


@pytest.mark.parametrize("text", PASSED_ON)
def test_what_tcp_does_not_dial_is_passed_on_and_never_dialled(text):
    assert multiaddr.endpoint_of(multiaddr.encode(text)) is None
    assert parse_endpoint(text) is None


def test_relayed_addresses_are_told_apart():
    assert [multiaddr.is_relayed(multiaddr.encode(text)) for text in PASSED_ON[:4]] == [False, False, True, True]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x04\x01\x02\x03",  # an address that is cut
        b"\x04" * 600,  # too long
        b"\x80",  # a code that is cut
        b"\xff\xff\xff\xff\xff\xff\x01\x00",  # a code without end
        b"\x35\xff\x7f" + b"a",  # a name that is cut
        b"\x06\x0f\xa1" * 17,  # too many parts
        b"\x63\x00",  # a protocol that nobody knows
    ],
)
def test_nonsense_is_no_address(data):
    assert multiaddr.split(data) is None
    assert multiaddr.endpoint_of(data) is None


@pytest.mark.parametrize("name", [b"", b"a/b", "ä".encode(), b"-a", b"a b", b"a\n", b"a" * 254])
def test_a_name_that_is_no_host_name_is_not_dialled(name):
    data = b"\x35" + bytes((len(name) & 0x7F | 0x80, len(name) >> 7)) + name + b"\x06\x0f\xa1"
    assert multiaddr.endpoint_of(data) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no multiaddress"),
        ("192.0.2.1:4001", "no multiaddress"),
        ("/ip4/192.0.2.1/tpc/4001", "'tpc' is no protocol"),
        ("/ip4/192.0.2/tcp/4001", "'192.0.2' is no value of /ip4"),
        ("/ip4/192.0.2.1/tcp/65536", "'65536' is no value of /tcp"),
        ("/ip4/192.0.2.1/tcp/٤", "is no value of /tcp"),
        ("/ip4/192.0.2.1/tcp", "'' is no value of /tcp"),
        ("/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW", "is no value of /p2p"),
        ("/dns4/-/tcp/1", "'-' is no value of /dns4"),
        ("/unix/run", "'run' is no value of /unix"),
        ("/ip4/192.0.2.1" + "/ws" * 200, "no multiaddress"),
    ],
)
def test_what_a_user_wrote_wrong_is_said(text, says):
    with pytest.raises(ConfigError, match=says):
        multiaddr.encode(text)


@pytest.mark.parametrize("text", [ED25519, RSA])
def test_peer_ids_go_both_ways(text):
    raw = multiaddr.peer_id_bytes(text)
    assert raw == parts.load().ID.from_base58(text).to_bytes()
    assert multiaddr.peer_id(raw) == text


@pytest.mark.parametrize(
    "raw", [b"", b"\x00\x00", b"\x12\x20" + b"x" * 31, b"\x00\x24" + b"x" * 35, b"\x00\x30" + b"x" * 48]
)
def test_what_is_no_peer_id_is_none(raw):
    assert multiaddr.peer_id(raw) is None


@pytest.mark.parametrize("text", ["", "0OIl", "abc", "1" * 65, ED25519[:-1]])
def test_text_that_is_no_peer_id_is_refused(text):
    with pytest.raises(ValueError, match=r"peer ID|base58|[Ii]nvalid"):
        multiaddr.peer_id_bytes(text)


def test_an_address_keeps_its_port_and_family():
    assert multiaddr.endpoint_of(b"\x04\xc0\x00\x02\x01\x06\x0f\xa1") == Endpoint("ip4", "192.0.2.1", 4001)


def test_addresses_through_relays_in_an_identify_message_are_passed_over():
    relayed = f"/ip4/192.0.2.1/tcp/4001/p2p/{RSA}/p2p-circuit"
    data = identify.encode(b"key", ["/ip4/192.0.2.2/tcp/4001", relayed, "/ip4/192.0.2.3/udp/1/quic-v1"], [], "x", None)
    read = identify.decode(data[2:] if data[0] & 0x80 else data[1:])
    assert [str(each) for each in read.endpoints] == ["/ip4/192.0.2.2/tcp/4001"]
