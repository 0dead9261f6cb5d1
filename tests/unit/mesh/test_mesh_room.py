"""The ledger room through rotations."""

from __future__ import annotations

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.gossip_wire import GossipMessage
from provider_kairos.mesh.room import Room
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.token import envelope, seal
from provider_kairos.token.codec import generate
from provider_kairos.token.otp import epoch_at

A, B = PeerId("a"), PeerId("b")
START = 1_700_000_000 // 30 * 30


class FakeTopics:
    def __init__(self):
        self.joined = []
        self.published = []
        self.listeners = 1

    def join(self, topic):
        assert topic not in self.joined
        self.joined.append(topic)

    def leave(self, topic):
        self.joined.remove(topic)

    def publish(self, topic, data):
        self.published.append((topic, data))
        return self.listeners


@pytest.fixture(name="token", scope="module")
def _token():
    return generate(interval=30)


def room_at(token, unix, **options):
    topics = FakeTopics()
    room = Room(MeshSettings(seed=b"s" * 32, token=token, **{"overlap": 10, "lead": 3, **options}), topics)
    room.tick(ManualClock(unix).now())
    return room, topics


def sent(token, unix, plain=b"block", *, topic=None, key=None):
    epoch = epoch_at(token, unix)
    body = envelope.encode(envelope.Envelope(seal.seal(key or epoch.seal_key, plain)))
    return GossipMessage(A, 1, topic or epoch.topic, body, b"", b"id")


def topics_at(token, *unixes):
    return [epoch_at(token, unix).topic for unix in unixes]


def test_next_topic_is_joined_before_the_boundary_and_the_previous_one_left_after_it(token):
    room, topics = room_at(token, START + 15)
    assert topics.joined == topics_at(token, START)
    clock = ManualClock(START + 26)
    assert room.tick(clock.now()) is None
    assert topics.joined == topics_at(token, START)
    room.tick(clock.advance(1.5))  # 2.5 s before the boundary
    assert topics.joined == topics_at(token, START, START + 30)
    changed = room.tick(clock.advance(2.6))
    assert changed == epoch_at(token, START + 30)
    assert topics.joined == topics_at(token, START, START + 30)
    room.tick(clock.advance(10))
    assert topics.joined == topics_at(token, START + 30)


def test_waiting_ends_at_the_next_thing_to_do(token):
    clock = ManualClock(START + 0.5)
    room, _ = room_at(token, START + 0.5)
    moments = []
    for _ in range(6):
        now = clock.advance(room.wait(clock.now()))
        room.tick(now)
        moments.append(round(now.unix_float - START, 1))
    assert moments == [10.0, 27.0, 30.0, 40.0, 57.0, 60.0]


def test_publishing_uses_the_current_key_on_the_current_topic_only(token):
    room, topics = room_at(token, START + 29)
    clock = ManualClock(START + 29)
    for _ in range(3):
        room.publish(b"hello", clock.now())
        topic, data = topics.published[-1]
        epoch = epoch_at(token, clock.now().unix)
        assert topic == epoch.topic
        assert seal.unseal(epoch.seal_key, envelope.decode(data).message) == b"hello"
        clock.advance(1)
    assert room.tick(clock.now()) == epoch_at(token, clock.now().unix)  # publishing took the step, nobody was told yet


def test_nobody_there_is_counted(token):
    room, topics = room_at(token, START)
    topics.listeners = 0
    assert room.publish(b"x", ManualClock(START).now()) == 0
    assert room.counters["published_to_nobody"] == 1


@pytest.mark.parametrize(
    ("ours", "theirs", "opens"),
    [
        (31, 29, True),  # sent before the boundary, arrives after it
        (29, 31, True),  # a clock that is a little ahead
        (50, 29, False),  # long after the overlap
        (15, 31, False),  # far too early
    ],
)
def test_neighbour_epochs_open_near_the_boundary(token, ours, theirs, opens):
    room, _ = room_at(token, START + ours)
    message = sent(token, START + theirs)
    if opens:
        assert room.open(message, B).data == b"block"
    else:
        with pytest.raises(PeerError):
            room.open(message, B)


def test_the_new_key_on_the_old_topic_opens_as_go_sends_it(token):
    room, _ = room_at(token, START + 31)
    old = epoch_at(token, START).topic
    opened = room.open(sent(token, START + 31, topic=old), B)
    assert (opened.author, opened.via, opened.data) == (A, B, b"block")


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"Message":"zz"}', b'{"Message":"00"}', b"\xff\xfe"])
def test_what_is_no_sealed_envelope_is_a_peers_error(token, data):
    room, _ = room_at(token, START)
    with pytest.raises(PeerError):
        room.open(GossipMessage(A, 1, room.current.topic, data, b"", b""), B)


def test_a_wrong_key_is_a_peers_error_and_is_not_printed(token):
    room, _ = room_at(token, START)
    with pytest.raises(PeerError) as caught:
        room.open(sent(token, START, key=b"k" * 32), B)
    assert room.current.seal_key.decode() not in str(caught.value)


def test_a_wrong_clock_is_noticed_with_its_size(token):
    room, _ = room_at(token, START + 15)
    other = frozenset(topics_at(token, START + 15 - 600))
    (skew,) = room.skews([(A, other), (B, frozenset({room.current.topic})), (PeerId("c"), frozenset({"strange"}))])
    assert (skew.peer, skew.seconds) == (A, 600)
    assert "ahead of" in skew.text()


def test_a_token_that_never_rotates_has_one_room_for_ever():
    token = generate(interval=9223372036854775807)
    room, topics = room_at(token, START)
    assert room.tick(ManualClock(START + 10**9).now()) is None
    assert len(topics.joined) == 1
    assert room.wait(ManualClock(START).now()) == 60
    assert room.skews([(A, frozenset({"strange"}))]) == []
