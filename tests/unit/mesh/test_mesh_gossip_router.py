"""Gossip decisions: who gets what, who is left alone, what is dropped."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider_kairos.ids import PeerId, peer_id_of_public_key
from provider_kairos.mesh.gossip_router import REPEAT_WITHIN, SEEN_TTL, Deliver, GossipRouter, Send
from provider_kairos.mesh.gossip_wire import Prune, Rpc, decode_rpc, encode_rpc, sign_message

ME, A, B = PeerId("me"), PeerId("a"), PeerId("b")
KEYS = [Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32) for n in range(3)]
AUTHORS = [peer_id_of_public_key(key.public_key().public_bytes_raw()) for key in KEYS]


def message(seqno, topic="t", data=b"data", author=0):
    return sign_message(KEYS[author], AUTHORS[author], seqno, topic, data)


def router(*peers, topics=("t",), version=(1, 1)):
    made = GossipRouter(ME, random.Random(1))
    for peer in peers:
        made.add_peer(peer, version, 0, outbound=True)
    for topic in topics:
        made.join(topic, 0)
    return made


def subscribe(*topics):
    return Rpc(subscriptions=tuple((True, topic) for topic in topics))


def sends(effects, peer=None):
    return [effect.rpc for effect in effects if isinstance(effect, Send) and peer in {None, effect.peer}]


def delivered(effects):
    return [effect.message.seqno for effect in effects if isinstance(effect, Deliver)]


def test_joining_announces_on_existing_streams_and_hello_names_everything():
    gossip = GossipRouter(ME, random.Random(1))
    gossip.add_peer(A, (1, 1), 0, outbound=True)
    assert sends(gossip.join("new", 0), A) == [Rpc(subscriptions=((True, "new"),))]
    assert gossip.hello() == subscribe("new")
    assert Rpc(subscriptions=((False, "new"),)) in sends(gossip.leave("new", 1), A)


def test_what_we_author_goes_to_every_subscriber_whatever_the_mesh_is():
    peers = [PeerId(f"p{n}") for n in range(20)]
    gossip = router(*peers)
    for peer in peers:
        gossip.handle(peer, subscribe("t"), 0)
    gossip.handle(peers[3], Rpc(prune=(Prune("t", 60),)), 0)  # as a Go peer does that has us as a direct peer
    assert len(sends(gossip.publish(message(1), 1))) == 20


def test_a_peer_that_subscribes_just_after_hears_what_we_just_said():
    gossip = router(A, B)
    gossip.handle(B, subscribe("t"), 0)
    gossip.publish(message(1), 10)
    assert [rpc.messages for rpc in sends(gossip.handle(A, subscribe("t"), 11), A) if rpc.messages] == [(message(1),)]
    assert [rpc for rpc in sends(gossip.handle(B, subscribe("t"), 11), B) if rpc.messages] == []  # nothing new for B
    gossip.remove_peer(B)  # B's stream breaks and is opened again
    again = gossip.add_peer(B, (1, 1), 12, outbound=True)
    assert [rpc.messages for rpc in sends(again, B) if rpc.messages] == [(message(1),)]
    late = PeerId("late")
    gossip.add_peer(late, (1, 1), 0, outbound=True)
    assert [rpc for rpc in sends(gossip.handle(late, subscribe("t"), 11 + REPEAT_WITHIN), late) if rpc.messages] == []


def test_losing_our_stream_keeps_the_peers_subscriptions_and_the_other_way_round():
    gossip = router(A)
    gossip.handle(A, subscribe("t"), 0)
    gossip.remove_peer(A)
    assert gossip.subscribers("t") == {A}
    assert sends(gossip.publish(message(1), 20)) == []
    gossip.add_peer(A, (1, 1), 30, outbound=True)
    assert sends(gossip.publish(message(2), 30), A) == [Rpc(messages=(message(2),))]
    gossip.forget_subscriptions(A)
    assert sends(gossip.publish(message(3), 31)) == []
    gossip.handle(A, subscribe("t"), 40)
    assert sends(gossip.publish(message(4), 41), A) == [Rpc(messages=(message(4),))]


def test_a_message_is_delivered_once_and_forwarded_to_the_mesh_but_not_back():
    gossip = router(A, B)
    for peer in (A, B):
        gossip.handle(peer, subscribe("t"), 0)
    first = gossip.handle(A, Rpc(messages=(message(7),)), 1)
    assert delivered(first) == [7]
    assert sends(first, B) == [Rpc(messages=(message(7),))]
    assert sends(first, A) == []
    assert gossip.handle(B, Rpc(messages=(message(7),)), 2) == []
    assert gossip.counters["duplicate"] == 1


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        (lambda m: replace(m, author=AUTHORS[1]), "bad_signature"),
        (lambda m: replace(m, topic="other"), "other_topic"),
        (lambda m: replace(m, author=ME), "own_returned"),
    ],
)
def test_messages_that_are_not_what_they_claim_are_counted_and_dropped(bad, kind):
    gossip = router(A, B)
    gossip.handle(B, subscribe("t"), 0)
    assert gossip.handle(A, Rpc(messages=(bad(message(1)),)), 1) == []
    assert gossip.counters[kind] == 1


def test_signature_covers_the_data():
    wire = encode_rpc(Rpc(messages=(message(1, data=b"payload"),)))
    gossip = router(A)
    assert gossip.handle(A, decode_rpc(wire.replace(b"payload", b"Payload")), 1) == []
    assert gossip.counters["bad_signature"] == 1


def test_an_old_message_is_a_replay_unless_its_author_brings_it():
    author = AUTHORS[0]
    gossip = router(A, author)
    assert delivered(gossip.handle(A, Rpc(messages=(message(100),)), 0)) == [100]
    later = SEEN_TTL + 1
    gossip.heartbeat(later)  # the seen cache forgets
    assert gossip.handle(A, Rpc(messages=(message(100),)), later) == []
    assert gossip.counters["replayed"] == 1
    assert delivered(gossip.handle(A, Rpc(messages=(message(101),)), later)) == [101]
    # the author's clock was set back over a restart: it counts from a smaller number, and says so itself
    assert delivered(gossip.handle(author, Rpc(messages=(message(50),)), later)) == [50]
    assert delivered(gossip.handle(A, Rpc(messages=(message(51),)), later)) == [51]


def test_a_pruned_peer_is_left_alone_longer_than_it_asked_for():
    gossip = router(A)
    gossip.handle(A, subscribe("t"), 0)
    assert gossip.mesh["t"] == {A}
    gossip.handle(A, Rpc(prune=(Prune("t", 10),)), 100)
    assert gossip.mesh["t"] == set()
    for now in (101, 105, 110, 111.9):
        assert sends(gossip.heartbeat(now), A) == []
    assert Rpc(graft=("t",)) in sends(gossip.heartbeat(112.1), A)


def test_a_graft_during_the_pause_is_answered_with_a_prune():
    gossip = router(A)
    gossip.handle(A, subscribe("t"), 0)
    gossip.handle(A, Rpc(prune=(Prune("t", 60),)), 0)
    assert sends(gossip.handle(A, Rpc(graft=("t",)), 30), A) == [Rpc(prune=(Prune("t", 60),))]
    gossip.handle(A, Rpc(graft=("t",)), 100)
    assert gossip.mesh["t"] == {A}
    assert gossip.handle(A, Rpc(graft=("unknown",)), 100) == []


def test_a_graft_that_comes_before_our_own_stream_is_remembered():
    others = [PeerId(f"p{n}") for n in range(8)]
    gossip = router(*others)
    for other in others:
        gossip.handle(other, subscribe("t"), 0)
    assert len(gossip.mesh["t"]) == 6  # full: A would not be grafted for its own sake
    gossip.handle(A, replace(subscribe("t"), graft=("t", "unknown")), 0)
    gossip.add_peer(A, (1, 1), 1, outbound=True)
    assert A in gossip.mesh["t"]


def test_meshes_keep_their_size_and_drop_members_that_left():
    peers = [PeerId(f"p{n:02}") for n in range(30)]
    gossip = router(*peers)
    for peer in peers:
        gossip.handle(peer, subscribe("t"), 0)
    assert len(gossip.mesh["t"]) == 6
    for peer in peers:
        gossip.handle(peer, Rpc(graft=("t",)), 1)
    gossip.heartbeat(2)
    assert len(gossip.mesh["t"]) == 6
    for peer in peers[:28]:
        gossip.forget_subscriptions(peer)
    gossip.heartbeat(100)
    assert gossip.mesh["t"] <= set(peers[28:])


def test_what_others_lack_is_offered_and_given_a_few_times():
    peers = [PeerId(f"p{n:02}") for n in range(12)]
    gossip = router(*peers)
    for peer in peers:
        gossip.handle(peer, subscribe("t"), 0)
    outside = sorted(set(peers) - gossip.mesh["t"])
    gossip.handle(outside[0], Rpc(messages=(message(5),)), 1)
    offers = [effect for effect in gossip.heartbeat(2) if isinstance(effect, Send) and effect.rpc.ihave]
    assert {effect.peer for effect in offers} <= set(outside)
    wanted = Rpc(iwant=(message(5).message_id, b"unknown"))
    given = [sends(gossip.handle(outside[1], wanted, 2), outside[1]) for _ in range(5)]
    assert [len(each) for each in given] == [1, 1, 1, 0, 0]
    other = GossipRouter(ME, random.Random(1))
    other.join("t", 0)
    other.add_peer(A, (1, 1), 0, outbound=True)
    offer = Rpc(ihave=(("t", (b"x", b"y")), ("not-ours", (b"z",))))
    assert sends(other.handle(A, offer, 1), A) == [Rpc(iwant=(b"x", b"y"))]
    for _ in range(20):
        other.handle(A, offer, 1)
    assert sends(other.handle(A, offer, 1), A) == []  # until the next heartbeat


def test_large_messages_are_not_sent_to_those_who_have_them():
    gossip = router(A, B, version=(1, 2))
    for peer in (A, B):
        gossip.handle(peer, subscribe("t"), 0)
    big = message(1, data=b"x" * 5000)
    assert sends(gossip.handle(A, Rpc(messages=(big,)), 1), B)[0] == Rpc(idontwant=(big.message_id,))
    other = message(2, data=b"x" * 5000)
    gossip.handle(B, Rpc(idontwant=(other.message_id,)), 2)
    assert [rpc for rpc in sends(gossip.handle(A, Rpc(messages=(other,)), 2), B) if rpc.messages] == []


def test_everything_that_a_peer_may_leave_behind_is_bounded():
    gossip = router(A)
    for number in range(1000):
        gossip.handle(A, subscribe(f"topic-{number}"), 0)
    assert len(gossip.topics_of(A)) == 64
    assert gossip.counters["subscriptions_over_limit"] == 936


def test_peers_of_gossipsub_1_0_get_no_backoff_field():
    gossip = router(A, version=(1, 0))
    gossip.handle(A, subscribe("t"), 0)
    (rpc,) = sends(gossip.leave("t", 1), A)
    assert rpc.prune == (Prune("t", 0),)
