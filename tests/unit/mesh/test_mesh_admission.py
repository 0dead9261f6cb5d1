"""Whose gossip is heard: the static peer table, the gate of the ledger room, the public room beside it."""

from __future__ import annotations

import random

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider_kairos.clock import ManualClock
from provider_kairos.ids import PeerId, peer_id_of_public_key
from provider_kairos.mesh.addresses import Networks, parse_endpoint
from provider_kairos.mesh.admission import Admission
from provider_kairos.mesh.dialer import Dialer
from provider_kairos.mesh.gossip_router import Deliver, GossipRouter, Send
from provider_kairos.mesh.gossip_wire import GossipMessage, Rpc, sign_message
from provider_kairos.mesh.room import Room
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.token import envelope, seal
from provider_kairos.token.codec import generate
from provider_kairos.token.otp import epoch_at

ME, A, B, X = PeerId("me"), PeerId("a"), PeerId("b"), PeerId("x")
KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
AUTHOR = peer_id_of_public_key(KEY.public_key().public_bytes_raw())
TOKEN = generate(interval=30)
START = 1_700_000_000 // 30 * 30


class FakeGate:
    def __init__(self, *trusted):
        self.trusted = set(trusted)

    def allows(self, via, author=None):
        return via in self.trusted and author != X


def admission(*, only=(), gate=None, blocked=()):
    made = Admission(
        MeshSettings(seed=b"s" * 32, token=TOKEN, only_peers=frozenset(only), blocked_peers=frozenset(blocked))
    )
    made.gate = gate
    return made


@pytest.mark.parametrize(
    ("options", "ledger", "public"),
    [
        ({}, {A, B, X}, {A, B, X}),
        ({"only": {A, B}}, {A, B}, {A, B}),
        ({"gate": FakeGate(B, X)}, {B, X}, {A, B, X}),
        ({"only": {A, B}, "gate": FakeGate(B, X)}, {B}, {A, B}),
    ],
)
def test_the_table_holds_for_all_gossip_and_the_gate_for_the_ledgers(options, ledger, public):
    rules = admission(**options)
    assert {peer for peer in (A, B, X) if rules.hears(peer)} == ledger
    assert {peer for peer in (A, B, X) if rules.hears(peer, public=True)} == public


def test_what_keeps_us_from_hearing_anybody_is_named():
    assert admission().deaf_to_all({A}) == ""
    assert admission(only={B}).deaf_to_all({A}) == "static peer table"
    assert admission(gate=FakeGate()).deaf_to_all({A, B}) == "trust zone"
    assert admission(only={A}, gate=FakeGate()).deaf_to_all({A}) == "trust zone"
    assert admission(gate=FakeGate(B)).deaf_to_all({A, B}) == ""
    assert admission(gate=FakeGate()).deaf_to_all(set()) == ""


# --- the router ------------------------------------------------------------------------------------------------------


def router(gate):
    made = GossipRouter(
        ME, random.Random(1), admits=lambda topic, via, author: topic != "t" or gate.allows(via, author)
    )
    for peer in (A, B, X):
        made.add_peer(peer, (1, 2), 0, outbound=True)
    for topic in ("t", "public"):
        made.join(topic, 0)
    for peer in (A, B, X):
        made.handle(peer, Rpc(subscriptions=((True, "t"), (True, "public")), graft=("t", "public")), 0)
    return made


def message(seqno, topic="t"):
    return sign_message(KEY, AUTHOR, seqno, topic, b"data")


def handled(gossip, peer, *messages, now=1.0):
    effects = gossip.handle(peer, Rpc(messages=messages), now)
    delivered = [effect.message.seqno for effect in effects if isinstance(effect, Deliver)]
    forwarded = {effect.peer for effect in effects if isinstance(effect, Send) and effect.rpc.messages}
    return delivered, forwarded


def test_what_a_gated_neighbour_brings_is_neither_taken_nor_passed_on():
    gossip = router(FakeGate(A, B))
    assert handled(gossip, X, message(1)) == ([], set())
    assert gossip.counters["gated"] == 1


def test_the_same_message_counts_when_a_trusted_neighbour_brings_it():
    gossip = router(FakeGate(A, B))
    handled(gossip, X, message(1))
    assert handled(gossip, A, message(1)) == ([1], {B, X})
    assert handled(gossip, B, message(1)) == ([], set())
    assert gossip.counters["duplicate"] == 1


def test_the_public_room_is_open_to_all():
    gossip = router(FakeGate(A, B))
    assert handled(gossip, X, message(1, "public")) == ([1], {A, B})


def test_nothing_is_asked_of_a_gated_neighbour():
    gossip = router(FakeGate(A))
    for peer, wanted in ((A, 1), (X, 0)):
        offer = Rpc(ihave=(("t", (b"id of " + peer.encode(),)),))
        assert (
            sum(1 for effect in gossip.handle(peer, offer, 1) if isinstance(effect, Send) and effect.rpc.iwant)
            == wanted
        )


def test_it_is_heard_as_soon_as_it_is_trusted():
    gate = FakeGate(A)
    gossip = router(gate)
    assert handled(gossip, B, message(1)) == ([], set())
    gate.trusted.add(B)
    assert handled(gossip, B, message(1))[0] == [1]


# --- the public room ------------------------------------------------------------------------------------------------


class FakeTopics:
    def __init__(self):
        self.joined = []
        self.published = []

    def join(self, topic):
        assert topic not in self.joined
        self.joined.append(topic)

    def leave(self, topic):
        self.joined.remove(topic)

    def publish(self, topic, data):
        self.published.append((topic, data))
        return 2


def room_at(unix, **options):
    topics = FakeTopics()
    settings = MeshSettings(seed=b"s" * 32, token=TOKEN, **{"overlap": 10, "lead": 3, "public_room": True, **options})
    room = Room(settings, topics)
    room.tick(ManualClock(unix).now())
    return room, topics


def both(unix):
    epoch = epoch_at(TOKEN, unix)
    return {epoch.topic, epoch.public_topic}


def test_it_rotates_with_the_ledger_room():
    room, topics = room_at(START + 15)
    assert set(topics.joined) == both(START)
    for unix, expected in (
        (START + 27.5, both(START) | both(START + 30)),
        (START + 30.5, both(START) | both(START + 30)),
        (START + 40.5, both(START + 30)),
    ):
        room.tick(ManualClock(unix).now())
        assert set(topics.joined) == expected


def test_only_guarding_nodes_are_in_it():
    room, topics = room_at(START + 15, public_room=False)
    assert set(topics.joined) == {epoch_at(TOKEN, START).topic}
    assert room.publish_public(b"challenge", None, ManualClock(START).now()) == 0
    assert topics.published == []


def test_what_is_said_there_is_sealed_and_its_annotations_are_not():
    room, topics = room_at(START)
    assert room.publish_public(b"challenge", {"sigs": "s"}, ManualClock(START + 1).now()) == 2
    ((topic, data),) = topics.published
    epoch = epoch_at(TOKEN, START)
    assert topic == epoch.public_topic
    outer = envelope.decode(data)
    assert outer.annotations == {"sigs": "s"}
    assert seal.unseal(epoch.seal_key, outer.message) == b"challenge"


@pytest.mark.parametrize("late", [0, 32])
def test_messages_say_in_which_room_they_were_said(late):
    room, _ = room_at(START + late)
    epoch = epoch_at(TOKEN, START)
    for topic, name in ((epoch.topic, "ledger"), (epoch.public_topic, "public")):
        body = envelope.encode(envelope.Envelope(seal.seal(epoch.seal_key, b"x"), annotations={"n": 1}))
        opened = room.open(GossipMessage(A, 1, topic, body, b"", b"id"), B)
        assert (opened.room, opened.author, opened.via, opened.annotations) == (name, A, B, {"n": 1})
        assert room.is_public(topic) is (name == "public")


# --- who is not connected with ---------------------------------------------------------------------------------------


def test_a_blocked_peer_is_not_even_learnt_of():
    class Network:
        dials = 0

        def preferred(self, _peer):
            return None

        async def dial(self, _endpoint, _expected):
            await trio.sleep_forever()

    async def main():
        dialer = Dialer(ME, Network(), Networks(()), random.Random(1), connects=admission(blocked={X}).connects)
        endpoint = parse_endpoint("/ip4/192.0.2.1/tcp/1")
        assert endpoint is not None
        dialer.found(X, ["/ip4/192.0.2.1/tcp/1"])
        dialer.learn(X, [endpoint[0]])
        assert not await dialer.wait_connected(X)
        dialer.found(A, ["/ip4/192.0.2.2/tcp/1"])
        assert set(dialer.known) == {A}

    trio.run(main)
