"""Addresses, names and records as people and EdgeVPN write them; one place for each limit."""

from __future__ import annotations

import socket
from datetime import UTC, datetime

import pytest

from provider_kairos.errors import ConfigError, HostError
from provider_kairos.ids import PeerId
from provider_kairos.services.endpoints import Endpoint, bind, parse_endpoint
from provider_kairos.services.limits import Gate, GateFullError
from provider_kairos.services.records import check_name, named_peer, named_value, user_value

PEER = PeerId("12D3KooWG9pwqZERRF4AfZ6TrgdEYipkuz17D4PZEoqCpCTCcCo2")


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("127.0.0.1:80", "127.0.0.1", 80), (":80", "", 80), ("[::1]:80", "::1", 80), ("box.lan:0", "box.lan", 0)],
)
def test_addresses(text, host, port):
    endpoint = parse_endpoint(text)
    assert endpoint == Endpoint(host, port)
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text", ["", "80", "host", "host:", "host:http", "::1:80", "host:65536", "a b:1", "a/b:1", "h:-1"]
)
def test_what_is_no_address(text):
    with pytest.raises(ConfigError):
        parse_endpoint(text)


def test_an_empty_host_is_every_address_and_one_port():
    listeners = bind(Endpoint("", 0))
    try:
        assert {listener.family for listener in listeners} >= {socket.AF_INET}
        assert len({listener.getsockname()[1] for listener in listeners}) == 1
    finally:
        for listener in listeners:
            listener.close()


def test_an_address_of_another_machine_cannot_be_listened_on():
    with pytest.raises(HostError, match=r"cannot listen on 192\.0\.2\.1:80"):
        bind(Endpoint("192.0.2.1", 80))


@pytest.mark.parametrize("name", ["", "x" * 256, "a\nb", "a\x00b", "\udce4"])
def test_names_that_no_key_should_have(name):
    with pytest.raises(ConfigError):
        check_name("service", name)


@pytest.mark.parametrize("name", ["web", "mein Dienst", "ä/ö", "x" * 255])
def test_names(name):
    assert check_name("service", name) == name
    assert named_peer({name: named_value(PEER, name)}, name) == PEER


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', "{}", '{"PeerID":3}', '{"PeerID":""}', "[" * 10_000])
def test_a_record_that_makes_no_sense_counts_as_absent(text):
    assert named_peer({"x": text}, "x") is None
    assert named_peer(None, "x") is None


def test_a_users_record_is_gos():
    unix = datetime(2026, 11, 23, 7, 11, 42, 595724, UTC).timestamp()
    assert user_value(PEER, unix) == (
        f'{{"PeerID":"{PEER}","Timestamp":"2026-11-23 07:11:42.595724000 +0000 UTC m=+0.000000001"}}'
    )


def test_a_gate_counts_all_and_each():
    gate = Gate(3, 2)
    one, two = PeerId("one"), PeerId("two")
    with gate.pass_through(one), gate.pass_through(one):
        with pytest.raises(GateFullError, match="of one peer"), gate.pass_through(one):
            pass
        with gate.pass_through(two):
            assert gate.open == 3
            with pytest.raises(GateFullError, match="3 streams"), gate.pass_through(two):
                pass
    assert gate.open == 0
