"""Two guarding EdgeVPN nodes as recorded, and our guard in the middle: it decides as they did.

All 43 messages of the recording: each opens through our own room object in the epoch of its receipt, public ones as
challenges of whoever signed the message, ledger ones as blocks that fill the zone and the trusted keys. Deliberate
differences, each asserted here: the *author* is let in where EdgeVPN lets in who passed the message on, and a signature
counts for the author that it was first heard of. Specification: spec/edgevpn.md 3, 4.9, 13.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.clock import Now
from provider_kairos.ids import PeerId, peer_id_of_public_key
from provider_kairos.ledger import block as blocks
from provider_kairos.mesh.gossip_wire import GossipMessage
from provider_kairos.mesh.room import Room
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.views import Message
from provider_kairos.token import codec, envelope, otp
from provider_kairos.trustzone import keys
from provider_kairos.trustzone.challenge import TEXT, read
from provider_kairos.trustzone.engine import TrustEngine
from provider_kairos.trustzone.gate import PeerGate
from provider_kairos.trustzone.model import AUTH_BUCKET, ZONE_BUCKET, Admit, TrustRules, TrustView, read_keys
from provider_kairos.trustzone.sign import verify

RECORDS = [
    json.loads(line)
    for line in (Path(__file__).parent / "recordings" / "messages-035-guard.jsonl").read_text().splitlines()
]
TOKEN = codec.decode(RECORDS[0]["token"])
PAIR = next(record for record in RECORDS if record.get("do") == "keys")
MESSAGES = [record for record in RECORDS if record["record"] == "message"]
PUBLIC = keys.load_public(PAIR["public_key"])
ME = peer_id_of_public_key(bytes(32))


class Joined:
    """Topics that the room joins."""

    def __init__(self) -> None:
        self.topics: set[str] = set()

    def join(self, topic: str) -> None:
        self.topics.add(topic)

    def leave(self, topic: str) -> None:
        self.topics.remove(topic)

    def publish(self, topic: str, data: bytes) -> int:
        raise AssertionError((topic, data))


def at(record: dict[str, Any]) -> Now:
    return Now(record["t"], record["t"] / 1e9)


def opened() -> list[tuple[dict[str, Any], Message]]:
    """Every message as our room opens it at the time at which it came."""
    topics = Joined()
    room = Room(MeshSettings(seed=bytes(32), token=TOKEN, public_room=True, overlap=10, lead=5), topics)
    found = []
    for record in MESSAGES:
        room.tick(at(record))
        assert record["topic"] in topics.topics
        message = GossipMessage(
            PeerId(record["from"]), int(record["seqno"], 16), record["topic"], record["data"].encode(), b"", b""
        )
        found.append((record, room.open(message, PeerId(record["via"]))))
    return found


OPENED = opened()
TALK = [(record, message) for record, message in OPENED if message.room == "public"]


def test_every_message_opens_in_the_room_that_it_was_said_in():
    rooms = Counter((record.get("room", "ledger"), message.room) for record, message in OPENED)
    assert rooms == {("public", "public"): 21, ("ledger", "ledger"): 22}
    for record, message in OPENED:
        if message.room == "public":
            assert message.data == record["text"].encode() == TEXT
        else:
            assert blocks.encode(blocks.unpack(message.data)).decode() == record["block"]
            assert message.annotations is None


def test_every_recorded_challenge_is_read_and_its_signature_holds():
    stranger = keys.load_public(keys.generate().public)
    for _, message in TALK:
        challenge = read(message.author, message.data, message.annotations)
        assert not challenge.is_native
        assert challenge.proves(PUBLIC)
        assert not challenge.proves(stranger)
        assert verify(PUBLIC, challenge.edgevpn, TEXT)
    assert len({message.annotations["sigs"] for _, message in TALK if message.annotations}) == 21, (
        "a fresh one each time"
    )


def test_the_public_rooms_topic_is_not_the_ledger_rooms():
    for record, message in OPENED:
        epoch = otp.epoch_at(TOKEN, record["t"] / 1e9)
        assert epoch.topic != epoch.public_topic
        assert record["topic"] not in ({epoch.topic} if message.room == "public" else {epoch.public_topic})


def test_ours_lets_in_whom_edgevpn_let_in_and_the_other_one_that_it_was_deaf_to():
    """In the recording b is let in by a as soon as there is a key; a never, because b had gone deaf (spec 17)."""
    engine = TrustEngine(ME, TrustRules(), PeerGate(), None, random.Random(1))
    zone: set[PeerId] = set()
    auth: dict[str, str] = {}
    verdicts, let_in = Counter[str](), []
    in_blocks: dict[str, tuple[int, str | None]] = {}
    for record, message in OPENED:
        now = at(record)
        if message.room == "ledger":
            block = blocks.unpack(message.data)
            for peer, entry in block.storage.get(ZONE_BUCKET, {}).items():
                in_blocks.setdefault(peer, (record["t"], entry.owner))
                zone.add(PeerId(peer))
            auth |= {name: entry.value or "" for name, entry in block.storage.get(AUTH_BUCKET, {}).items()}
        else:
            verdicts[engine.heard(message.author, message.via, message.data, message.annotations, now)] += 1
            for effect in engine.tick(Now(now.unix_ns, now.mono + 5)):
                assert isinstance(effect, Admit)
                assert effect.key == keys.fingerprint(PUBLIC)
                let_in.append((effect.peer, record["t"]))
                zone.add(effect.peer)
        engine.look(TrustView(zone=frozenset(zone), keys=read_keys(auth)), now)
        assert engine.gate.trusted == zone
    ((b, (when, a)),) = in_blocks.items()
    assert {a, b} == {record["from"] for record in MESSAGES}
    assert [peer for peer, _ in let_in] == [b, a]
    assert abs(let_in[0][1] - when) < 1e9, "at the same challenge"
    assert verdicts == {"without_keys": 5, "accepted": 2, "needless": 14}


def test_a_challenge_that_somebody_passes_on_lets_in_its_author():
    passed_on = [(record, message) for record, message in TALK if message.author != message.via]
    assert passed_on, "the recording holds some: EdgeVPN would have let in the neighbour"
    record, message = passed_on[0]
    engine = TrustEngine(ME, TrustRules(), PeerGate(), None, random.Random(1))
    engine.look(TrustView(keys={"ecdsa_1": PAIR["public_key"]}), at(record))
    assert engine.heard(message.author, message.via, message.data, message.annotations, at(record)) == "accepted"
    (effect,) = engine.tick(Now(record["t"], record["t"] / 1e9 + 5))
    assert effect == Admit(message.author, keys.fingerprint(PUBLIC))
    # and the neighbour, saying the same in its own name, gets nothing by it
    assert engine.heard(message.via, message.via, message.data, message.annotations, at(record)) == "replayed"


@pytest.mark.parametrize("number", range(21))
def test_our_own_envelope_of_a_recorded_challenge_is_the_same_bytes(number):
    record, message = TALK[number]
    outer = envelope.decode(record["data"].encode())
    assert envelope.encode(envelope.Envelope(outer.message, annotations=message.annotations)) == record["data"].encode()
