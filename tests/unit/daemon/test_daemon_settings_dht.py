"""What users write about the DHT and its bootstrap peers: read, or refused by the variable's name."""

from __future__ import annotations

import pytest

from provider_kairos.daemon.daemon import _mesh_settings
from provider_kairos.daemon.settings import read_settings
from provider_kairos.errors import ConfigError
from provider_kairos.mesh.bootstrap import DEFAULT_PEERS
from provider_kairos.mesh.settings import DhtMode
from provider_kairos.token.codec import encode, generate

TOKEN = encode(generate())
PEER = "12D3KooWAKuk1EwYpBe6QNjqdbHotCBd2yaWAg6UVN7pJQv4fqXf"
RSA = "QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN"


def mesh(**variables: str):
    return _mesh_settings(read_settings({"EDGEVPNTOKEN": TOKEN, **variables}), b"s" * 32)


def test_the_default_is_edgevpns():
    dht = mesh().dht
    assert dht is not None
    assert (dht.mode, dht.interval, dht.announce, dht.defaults) == (DhtMode.AUTO, 720, (), DEFAULT_PEERS)


def test_off_is_off():
    assert mesh(EDGEVPNDHT="false").dht is None


def test_everything_can_be_set():
    settings = mesh(
        EDGEVPNDHTINTERVAL="60",
        EDGEVPNDHTANNOUNCEMADDRS="/dns4/gw.example.org/tcp/4001, /ip4/192.0.2.1/udp/4001/quic-v1",
        KAIROS_P2P_DHT_MODE="server",
        EDGEVPNBOOTSTRAPPEERS=f"/dnsaddr/example.org/p2p/{RSA},/ip4/192.0.2.1/udp/4001/quic-v1/p2p/{PEER}",
    )
    assert settings.dht is not None
    assert settings.dht.mode is DhtMode.SERVER
    assert settings.dht.interval == 60
    assert settings.dht.announce == ("/dns4/gw.example.org/tcp/4001", "/ip4/192.0.2.1/udp/4001/quic-v1")
    assert len(settings.bootstrap_peers) == 2


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("EDGEVPNBOOTSTRAPPEERS", "/ip4/192.0.2.1/tcp/4001", "'/ip4/192.0.2.1/tcp/4001' does not end in /p2p/ID"),
        ("EDGEVPNBOOTSTRAPPEERS", f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER},192.0.2.1", "'192.0.2.1' is no multiaddress"),
        ("EDGEVPNBOOTSTRAPPEERS", f"/p2p/{PEER}", "does not end in /p2p/ID"),
        ("EDGEVPNBOOTSTRAPPEERS", "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooWshort", "is no value of /p2p"),
        ("EDGEVPNDHTANNOUNCEMADDRS", "gw.example.org:4001", "is no multiaddress"),
        ("EDGEVPNDHTINTERVAL", "0", "720 is the default"),
        ("KAIROS_P2P_DHT_MODE", "on", "client, server or auto"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(name, value, says):
    with pytest.raises(ConfigError) as refusal:
        mesh(**{name: value})
    assert str(refusal.value).startswith(name)
    assert says in str(refusal.value)
