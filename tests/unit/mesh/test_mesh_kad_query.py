"""Lookups over a network of 200 nodes in virtual time: they find what is there, whoever is dead or lies."""

from __future__ import annotations

import heapq
import random

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.ids import PeerId
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.addresses import Endpoint
from provider_kairos.mesh.kad_providers import Providers
from provider_kairos.mesh.kad_query import ALPHA, MAX_ASKED, MAX_HEARD, Lookup
from provider_kairos.mesh.kad_server import Server
from provider_kairos.mesh.kad_table import K, Table
from provider_kairos.mesh.kad_wire import KadMessage, KadPeer, Kind, distance_key, peer_key


def new_peer(rng):
    return multiaddr.peer_id(b"\x12\x20" + rng.randbytes(32))


class Node:
    """A DHT server with a table and a store."""

    def __init__(self, peer):
        self.peer = peer
        self.endpoint = Endpoint("ip4", "10.0.0.1", 4001)
        self.table = Table(peer)
        self.providers = Providers()
        self.server = Server(peer, self.table, self.providers, lambda _peer: None)
        self.dead = False
        self.lies = None

    def answer(self, asker, message, now):
        if self.lies is not None:
            return KadMessage(message.kind, message.key, closer=self.lies(message.key))
        return self.server.answer(asker, message, now)


class Network:
    """Nodes whose answers take a random time; lookups run in virtual time."""

    def __init__(self, seed, count=200):
        self.rng = random.Random(seed)
        self.clock = ManualClock()
        self.nodes = {node.peer: node for node in (Node(self.new_peer()) for _ in range(count))}
        self.peers = list(self.nodes)
        # everybody joined through the first and looked for itself, one after the other
        for peer in self.peers[1:]:
            self.meet(peer, self.peers[0])
            self.look(peer, KadMessage(Kind.FIND_NODE, multiaddr.peer_id_bytes(peer)))

    def new_peer(self):
        return new_peer(self.rng)

    def meet(self, one, other):
        for a, b in ((one, other), (other, one)):
            self.nodes[a].table.answered(b, [self.nodes[b].endpoint], self.clock.now())

    def look(self, me, message, take=lambda _answer: None):
        """Run one lookup; returns it and how many seconds it took."""
        table = self.nodes[me].table if me in self.nodes else Table(me)
        key = distance_key(message.key)
        lookup = Lookup(me, key)
        seeds = table.nearest(key) or self.nodes[self.peers[0]].table.nearest(0, 2)
        for contact in seeds:
            lookup.hear(contact.peer, contact.endpoints)
        began = self.clock.now().mono
        on_their_way: list[tuple[float, int, PeerId, bool]] = []
        most = 0
        while True:
            for number, (peer, endpoints) in enumerate(lookup.take()):
                node = self.nodes.get(peer)
                alive = node is not None and not node.dead and bool(endpoints)
                takes = self.rng.uniform(0.01, 0.3) if alive else 8.0
                heapq.heappush(on_their_way, (self.clock.now().mono + takes, number, peer, alive))
            most = max(most, len(on_their_way))
            if lookup.over:
                break
            when, _, peer, alive = heapq.heappop(on_their_way)
            self.clock.advance(max(when - self.clock.now().mono, 0))
            if not alive:
                lookup.failed(peer)
                table.remove(peer)
                continue
            node = self.nodes[peer]
            if me in self.nodes:
                self.meet(me, peer)
            answer = node.answer(me, message, self.clock.now())
            lookup.answered(peer, [(each.peer, each.endpoints()) for each in answer.closer])
            take(answer)
        assert most <= ALPHA
        return lookup, self.clock.now().mono - began

    def truly_nearest(self, key, count=K):
        alive = (peer for peer, node in self.nodes.items() if not node.dead)
        return heapq.nsmallest(count, alive, key=lambda peer: peer_key(peer) ^ distance_key(key))


@pytest.fixture(scope="module")
def network():
    return Network(seed=7)


def test_lookups_find_the_nearest_nodes(network):
    for number in range(20):
        key = b"\x12\x20" + network.rng.randbytes(32)
        me = network.peers[number * 7]
        lookup, seconds = network.look(me, KadMessage(Kind.GET_PROVIDERS, key))
        expected = [peer for peer in network.truly_nearest(key, K + 1) if peer != me]
        assert len(set(lookup.nearest()) & set(expected[:K])) >= K - 1
        assert lookup.nearest()[:3] == expected[:3]
        assert lookup.asked <= 60
        assert seconds < 10


def test_who_is_provided_is_found_by_everybody(network):
    key = b"\x12\x20" + network.rng.randbytes(32)
    provider = network.new_peer()
    lookup, _ = network.look(provider, KadMessage(Kind.GET_PROVIDERS, key))
    record = KadPeer(provider, (multiaddr.encode("/ip4/192.0.2.1/tcp/4001"),))
    for peer in lookup.nearest():
        assert (
            network.nodes[peer].answer(
                provider, KadMessage(Kind.ADD_PROVIDER, key, providers=(record,)), network.clock.now()
            )
            is None
        )
    for seeker in (network.new_peer(), *network.peers[::50]):
        found: list[KadMessage] = []
        network.look(seeker, KadMessage(Kind.GET_PROVIDERS, key), found.append)
        assert {each for answer in found for each in answer.providers} == {record}


@pytest.mark.parametrize("seed", range(5))
def test_a_third_of_the_nodes_may_die(seed):
    network = Network(seed)
    key = b"\x12\x20" + network.rng.randbytes(32)
    for peer in network.rng.sample(network.peers[1:], 66):
        network.nodes[peer].dead = True
    me = next(peer for peer in network.peers[1:] if not network.nodes[peer].dead)
    for _ in range(2):  # the first clears the table of the dead
        lookup, seconds = network.look(me, KadMessage(Kind.GET_PROVIDERS, key))
    expected = [peer for peer in network.truly_nearest(key, K + 1) if peer != me]
    assert len(set(lookup.nearest()) & set(expected[:K])) >= K - 2
    assert lookup.asked <= MAX_ASKED
    assert seconds < 60


def test_liars_cannot_keep_a_lookup_going():
    """They name ever nearer nodes that do not exist."""
    network = Network(3, count=30)
    nearest = distance_key(b"\x12\x20" + b"x" * 32)

    def made_up(key):
        candidates = [network.new_peer() for _ in range(200)]
        chosen = heapq.nsmallest(20, candidates, key=lambda peer: peer_key(peer) ^ nearest)
        address = multiaddr.encode("/ip4/192.0.2.1/tcp/4001")
        return tuple(KadPeer(peer, (address,)) for peer in chosen)

    for peer in network.peers[:5]:
        network.nodes[peer].lies = made_up
    lookup, seconds = network.look(network.peers[9], KadMessage(Kind.GET_PROVIDERS, b"\x12\x20" + b"x" * 32))
    assert lookup.asked <= MAX_ASKED
    assert lookup.nearest()
    assert seconds <= MAX_ASKED / ALPHA * 8 + 1


def test_one_answer_brings_k_peers_and_the_whole_is_bounded():
    rng = random.Random(1)
    peers = [new_peer(rng) for _ in range(2000)]
    lookup = Lookup(peers[0], 0)
    lookup.hear(peers[0], ())
    assert lookup.take() == []
    assert lookup.over
    lookup.hear(peers[1], ())
    lookup.take()
    lookup.answered(peers[1], [(peer, ()) for peer in peers[2:1002]])
    assert len(lookup._state) == 1 + K + 1
    for peer in peers:
        lookup.hear(peer, ())
    assert len(lookup._state) <= MAX_HEARD
    # those that were kept are the nearest
    assert lookup.take()[0][0] == min(peers[2:], key=peer_key)


def test_an_unknown_answer_changes_nothing():
    rng = random.Random(2)
    peer = new_peer(rng)
    lookup = Lookup(peer, 0)
    other = new_peer(rng)
    lookup.hear(other, (Endpoint("ip4", "192.0.2.1", 1),))
    lookup.hear(other, (Endpoint("ip4", "192.0.2.2", 1),))
    assert [len(endpoints) for _, endpoints in lookup.take()] == [2]
    assert not lookup.over
    lookup.failed(other)
    lookup.failed(other)
    assert (lookup.over, lookup.nearest()) == (True, [])
