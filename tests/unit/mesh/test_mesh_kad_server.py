"""What a DHT server answers, keeps and refuses."""

from __future__ import annotations

import random

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.errors import PeerError
from provider_kairos.mesh import kad_providers, multiaddr
from provider_kairos.mesh.addresses import Endpoint
from provider_kairos.mesh.kad_providers import MAX_BYTES, MAX_PER_KEY, MAX_PER_PEER, MAX_RECORDS, VALIDITY, Providers
from provider_kairos.mesh.kad_server import BURST, RATE, RateLimit, Server
from provider_kairos.mesh.kad_table import Table
from provider_kairos.mesh.kad_wire import KadMessage, KadPeer, Kind

RNG = random.Random(5)
ADDRESS = multiaddr.encode("/ip4/192.0.2.1/tcp/4001")
KEY = b"\x12\x20" + b"k" * 32


def new_peer():
    return multiaddr.peer_id(b"\x12\x20" + RNG.randbytes(32))


ME, ASKER, OTHER = new_peer(), new_peer(), new_peer()


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def server(clock):
    table = Table(ME)
    for peer in (ASKER, *(new_peer() for _ in range(25))):
        table.answered(peer, [Endpoint("ip4", "10.0.0.1", 4001)], clock.now())
    table.answered(new_peer(), [], clock.now())  # nobody could dial it
    known = {ME: KadPeer(ME, (ADDRESS,)), OTHER: KadPeer(OTHER, (ADDRESS,), connected=True)}
    return Server(ME, table, Providers(), known.get)


def test_ping_is_answered_as_it_came(server, clock):
    assert server.answer(ASKER, KadMessage(Kind.PING), clock.now()) == KadMessage(Kind.PING)


@pytest.mark.parametrize("kind", [Kind.FIND_NODE, Kind.GET_PROVIDERS, Kind.GET_VALUE])
def test_nearer_nodes_are_named_but_neither_the_asker_nor_ourselves(server, clock, kind):
    answer = server.answer(ASKER, KadMessage(kind, KEY), clock.now())
    assert answer.kind is kind
    assert answer.key == (b"" if kind is Kind.FIND_NODE else KEY)  # as Go does
    assert 18 <= len(answer.closer) <= 20
    assert {ASKER, ME}.isdisjoint(each.peer for each in answer.closer)
    assert all(each.addresses for each in answer.closer)


@pytest.mark.parametrize("peer", [ME, OTHER])
def test_a_peer_that_is_asked_for_by_its_id_comes_first(server, clock, peer):
    answer = server.answer(ASKER, KadMessage(Kind.FIND_NODE, multiaddr.peer_id_bytes(peer)), clock.now())
    assert answer.closer[0].peer == peer
    assert len({each.peer for each in answer.closer}) == len(answer.closer)


def test_a_provider_is_found_until_its_record_is_old(server, clock):
    quic = multiaddr.encode("/ip4/192.0.2.1/udp/4001/quic-v1")
    record = KadPeer(ASKER, (ADDRESS, quic))
    assert server.answer(ASKER, KadMessage(Kind.ADD_PROVIDER, KEY, providers=(record,)), clock.now()) is None
    clock.advance(VALIDITY / 2)
    assert server.answer(OTHER, KadMessage(Kind.GET_PROVIDERS, KEY), clock.now()).providers == (record,)
    assert server.answer(OTHER, KadMessage(Kind.GET_PROVIDERS, b"other"), clock.now()).providers == ()
    server.answer(ASKER, KadMessage(Kind.ADD_PROVIDER, KEY, providers=(record,)), clock.now())
    clock.advance(VALIDITY - 1)
    assert server.answer(OTHER, KadMessage(Kind.GET_PROVIDERS, KEY), clock.now()).providers == (record,)
    clock.advance(1)
    assert server.answer(OTHER, KadMessage(Kind.GET_PROVIDERS, KEY), clock.now()).providers == ()


@pytest.mark.parametrize(
    "request_",
    [
        KadMessage(Kind.PUT_VALUE, b"/ipns/x"),
        KadMessage(Kind.FIND_NODE),
        KadMessage(Kind.GET_VALUE),
        KadMessage(Kind.GET_PROVIDERS),
        KadMessage(Kind.GET_PROVIDERS, b"k" * 81),
        KadMessage(Kind.ADD_PROVIDER, b"k" * 81, providers=(KadPeer(ASKER, (ADDRESS,)),)),
        KadMessage(Kind.ADD_PROVIDER, KEY),
        KadMessage(Kind.ADD_PROVIDER, KEY, providers=(KadPeer(ASKER),)),
        KadMessage(Kind.ADD_PROVIDER, KEY, providers=(KadPeer(OTHER, (ADDRESS,)),)),
    ],
)
def test_refused(server, clock, request_):
    with pytest.raises(PeerError):
        server.answer(ASKER, request_, clock.now())
    assert not server.answer(OTHER, KadMessage(Kind.GET_PROVIDERS, KEY), clock.now()).providers


# --- the store ----------------------------------------------------------------------------------------------------


def test_the_newest_providers_of_a_key_stay(clock):
    store = Providers()
    peers = [new_peer() for _ in range(MAX_PER_KEY + 10)]
    for peer in peers:
        store.add(KEY, KadPeer(peer, (ADDRESS,)), clock.now())
    assert [each.peer for each in store.of(KEY, clock.now())] == peers[:9:-1]
    assert store.counters["dht_records_over_limit"] == 10


def test_one_peer_has_so_many_records(clock):
    store = Providers()
    store.add(KEY, KadPeer(OTHER, (ADDRESS,)), clock.now())
    for number in range(MAX_PER_PEER + 5):
        store.add(b"%d" % number, KadPeer(ASKER, (ADDRESS,)), clock.now())
    assert len(store) == MAX_PER_PEER + 1
    assert store.of(KEY, clock.now())
    assert not store.of(b"0", clock.now())


def test_records_and_bytes_are_bounded_and_the_oldest_go(clock, monkeypatch):
    store = Providers()
    for number in range(MAX_RECORDS + 50):
        store.add(b"%d" % number, KadPeer(new_peer(), (ADDRESS,)), clock.now())
    assert len(store) == MAX_RECORDS
    assert not store.of(b"49", clock.now())
    assert store.of(b"50", clock.now())
    monkeypatch.setattr(kad_providers, "MAX_BYTES", 100_000)
    long = multiaddr.encode("/dns/" + "a" * 240 + "/tcp/1")
    for number in range(1000):
        store.add(b"l%d" % number, KadPeer(new_peer(), (long,) * 40), clock.now())
        assert store._bytes <= 100_000
    assert MAX_BYTES == 4 << 20
    clock.advance(VALIDITY)
    store.expire(clock.now())
    assert (len(store), store._bytes, store._keys, +store._of_peer) == (0, 0, {}, {})


# --- how often ----------------------------------------------------------------------------------------------------


def test_a_peer_may_ask_so_often(clock):
    limit = RateLimit()
    assert sum(limit.allows(ASKER, clock.now()) for _ in range(200)) == BURST
    assert limit.allows(OTHER, clock.now())
    clock.advance(1)
    assert sum(limit.allows(ASKER, clock.now()) for _ in range(200)) == RATE
    clock.advance(3600)
    assert sum(limit.allows(ASKER, clock.now()) for _ in range(200)) == BURST


def test_the_rates_that_are_remembered_are_bounded(clock):
    limit = RateLimit()
    for _ in range(3000):
        limit.allows(new_peer(), clock.now())
    assert len(limit._tokens) == 1024
