"""DHT messages: the bytes of Go's, our own, and what is too much or makes no sense."""

from __future__ import annotations

import hashlib

import pytest

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import kad_wire, multiaddr, parts
from provider_kairos.mesh.kad_wire import KadMessage, KadPeer, Kind, decode, encode

PEER = PeerId("12D3KooWAKuk1EwYpBe6QNjqdbHotCBd2yaWAg6UVN7pJQv4fqXf")
KEY = b"\x12\x20" + b"k" * 32
TCP = multiaddr.encode("/ip4/192.0.2.1/tcp/4001")
QUIC = multiaddr.encode("/ip4/192.0.2.1/udp/4001/quic-v1")


def test_a_message_is_what_go_makes():
    # fields in the order of their numbers: type 1, key 2, closer peers 8, providers 9, cluster level 10
    raw = multiaddr.peer_id_bytes(PEER)
    peer = b"\x0a" + bytes((len(raw),)) + raw + b"\x12" + bytes((len(TCP),)) + TCP
    expected = b"\x08\x02\x12\x22" + KEY + b"\x4a" + bytes((len(peer),)) + peer + b"\x50\x01"
    made = encode(KadMessage(Kind.ADD_PROVIDER, KEY, providers=(KadPeer(PEER, (TCP,)),)))
    assert made == expected
    assert encode(KadMessage(Kind.FIND_NODE, b"x")) == b"\x08\x04\x12\x01x\x50\x01"


@pytest.mark.parametrize("kind", Kind)
def test_messages_go_both_ways(kind):
    message = KadMessage(kind, KEY, (KadPeer(PEER, (TCP, QUIC), connected=True),), (KadPeer(PEER, (QUIC,)),))
    assert decode(encode(message)) == message


def test_only_what_tcp_dials_becomes_an_endpoint():
    relayed = multiaddr.encode(f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}/p2p-circuit")
    assert [str(each) for each in KadPeer(PEER, (relayed, QUIC, TCP, TCP)).endpoints()] == ["/ip4/192.0.2.1/tcp/4001"]


def test_distances_are_between_hashes():
    raw = multiaddr.peer_id_bytes(PEER)
    assert kad_wire.peer_key(PEER) == int.from_bytes(hashlib.sha256(raw).digest(), "big")


def made(**fields):
    return parts.load().KadMessage(**fields)


def test_peers_and_addresses_that_make_no_sense_are_left_out():
    message = made(type=4)
    message.closerPeers.add(id=b"nobody", addrs=[TCP])
    message.closerPeers.add(id=multiaddr.peer_id_bytes(PEER), addrs=[b"", b"\x04", TCP, b"\xff" * 20])
    message.closerPeers.add(id=multiaddr.peer_id_bytes(PEER), addrs=[QUIC])
    assert decode(message.SerializeToString()).closer == (KadPeer(PEER, (TCP,)),)


def test_too_much_is_cut():
    message = made(type=3)
    for number in range(20_000):
        message.closerPeers.add(id=b"\x12\x20" + number.to_bytes(32, "big"))
        message.providerPeers.add(id=b"\x12\x20" + number.to_bytes(32, "big"))
    message.closerPeers[0].addrs.extend([TCP] * 5000)
    read = decode(message.SerializeToString())
    assert len(read.closer) == kad_wire.MAX_CLOSER
    assert len(read.providers) == kad_wire.MAX_PROVIDERS
    assert len(read.closer[0].addresses) == kad_wire.MAX_ADDRESSES


@pytest.mark.parametrize(
    "data",
    [
        b"\xff",
        b"\x08",
        b"\x12\xff\xff\xff\xff\x0f",
        b"\x42\x05abc",
        b"\x08\x06",  # an unknown type
        b"\x12\x81\x01" + b"k" * 129,  # a key of 129 bytes
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(PeerError):
        decode(data)


def test_nothing_is_a_question_for_nothing():
    assert decode(b"") == KadMessage(Kind.PUT_VALUE)
