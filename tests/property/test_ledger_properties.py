"""Blocks and entries survive the way there and back; merging converges whatever the network does; noise never crashes."""

from __future__ import annotations

import json
import random
import zlib
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.clock import ManualClock
from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.block import Block, Storage
from provider_kairos.ledger.engine import Ledger, LedgerSettings
from provider_kairos.ledger.entry import Entry, LedgerError, canonical_bytes
from provider_kairos.ledger.leader import fnv1a32, leader
from provider_kairos.ledger.liveness import heartbeat_text, parse_heartbeat
from provider_kairos.ledger.policy import Outcome, Surroundings, judge
from provider_kairos.ledger.signing import Signer, verify
from provider_kairos.ledger.trim import Trimmed, trim

SIGNERS = [Signer(bytes([number]) * 32) for number in range(1, 5)]
NOW = 1_800_000_000
texts = st.text(st.characters(codec="utf-8"), max_size=30)
entries = st.builds(Entry, texts) | st.builds(
    Entry,
    texts,
    texts,
    st.integers(0, 2**64 - 1),
    st.integers(-(2**63), 2**63 - 1),
    deleted=st.booleans(),
    sig=st.binary(max_size=80),
)
storages = st.dictionaries(texts, st.dictionaries(texts, entries, max_size=4), max_size=4)
block_values = st.builds(Block, st.integers(0, 2**62), texts, storages, texts, texts)


def as_written(storage: Storage) -> Storage:
    """A legacy entry has no time on the wire."""
    return {
        name: {key: Entry(entry.value) if entry.legacy else entry for key, entry in bucket.items()}
        for name, bucket in storage.items()
    }


@given(block_values)
def test_block_round_trip(block: Block):
    read = blocks.unpack(blocks.pack(block))
    assert read == Block(block.index, block.timestamp, as_written(block.storage), block.hash, block.prev_hash)
    assert blocks.encode(read) == blocks.encode(block)
    assert blocks.block_hash(read) == blocks.block_hash(
        Block(block.index, block.timestamp, read.storage, "", block.prev_hash)
    )


@given(block_values, st.integers(0, 3000))
def test_block_trimmed_text_is_the_same_block_with_fewer_unsigned_records(block: Block, most: int):
    text = blocks.encode(block)
    trimmed = trim(text, most)
    if trimmed is None:
        assert most < len(text)
        return
    assert len(trimmed.text) <= max(most, len(text))
    read, whole = blocks.decode(trimmed.text), blocks.decode(text)
    assert (read.index, read.timestamp, read.hash, read.prev_hash) == (
        whole.index, whole.timestamp, whole.hash, whole.prev_hash,
    )  # fmt: skip
    for name, bucket in whole.storage.items():
        kept = read.storage.get(name, {})
        assert kept.items() <= bucket.items()
        assert {key for key, entry in bucket.items() if not entry.legacy} <= kept.keys()
    if len(text) <= most:
        assert trimmed == Trimmed(text, 0)


@given(block_values, st.integers(0, 3000))
def test_block_trimming_noise_never_crashes(block: Block, most: int):
    text = blocks.encode(block)
    for broken in (text[: most % (len(text) + 1)], text.replace(b":", b" :"), text.replace(b"}", b"", 1), text[::-1]):
        found = trim(broken, most)
        assert found is None or len(found.text) <= max(most, len(broken))


@given(block_values)
def test_block_text_is_json_that_others_read_alike(block: Block):
    fields = json.loads(blocks.encode(block))
    assert list(fields) == ["Index", "Timestamp", "Storage", "Hash", "PrevHash"]
    for name, bucket in block.storage.items():
        for key, entry in bucket.items():
            written = fields["Storage"][name][key]
            assert (written if entry.legacy else written["Value"]) == entry.value


@given(st.binary(max_size=400))
def test_noise_is_no_block(data: bytes):
    for read in (blocks.unpack, lambda noise: blocks.unpack(blocks.pack_text(noise)), blocks.decode):
        try:
            read(data)
        except LedgerError:
            continue
        assert isinstance(json.loads(data), dict)


@given(block_values, st.data())
def test_a_damaged_block_is_read_or_refused(block: Block, data: st.DataObject):
    text = bytearray(blocks.encode(block))
    for _ in range(data.draw(st.integers(1, 3))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    packed = blocks.pack_text(bytes(text))
    assert zlib.decompress(packed, 31) == bytes(text)
    try:
        read = blocks.unpack(packed)
    except LedgerError:
        return
    assert blocks.decode(blocks.encode(read)) == read


@given(texts, texts, entries, st.data())
def test_signed_entry_round_trip_and_no_other_verifies(bucket: str, key: str, like: Entry, data: st.DataObject):
    entry = SIGNERS[0].sign(bucket, key, like.value, like.version, like.updated_at, deleted=like.deleted)
    assert verify(bucket, key, entry)
    read = blocks.unpack(blocks.pack(Block(1, "", {bucket: {key: entry}}, "", ""))).storage[bucket][key]
    assert read == entry
    at = data.draw(st.integers(0, 63))
    spoilt = bytearray(entry.sig)
    spoilt[at] ^= data.draw(st.integers(1, 255))
    assert not verify(bucket, key, replace(entry, sig=bytes(spoilt)))


@given(st.tuples(texts, texts, entries), st.tuples(texts, texts, entries))
def test_canonical_bytes_are_unambiguous(first: tuple[str, str, Entry], second: tuple[str, str, Entry]):
    (b1, k1, e1), (b2, k2, e2) = first, second
    one = (b1, k1, e1.value, e1.owner, e1.version, e1.updated_at, e1.deleted)
    two = (b2, k2, e2.value, e2.owner, e2.version, e2.updated_at, e2.deleted)
    assert (canonical_bytes(b1, k1, e1) == canonical_bytes(b2, k2, e2)) == (one == two)


@given(st.binary(max_size=100))
def test_fnv_is_the_textbook_formula(data: bytes):
    value = 2166136261
    for byte in data:
        value = ((value ^ byte) * 16777619) % 2**32
    assert fnv1a32(data) == value


@given(st.lists(texts, min_size=1, max_size=20))
def test_the_leader_has_the_highest_hash_whatever_the_order(candidates: list[str]):
    chosen = leader(candidates)
    assert fnv1a32(chosen.encode()) == max(fnv1a32(candidate.encode()) for candidate in candidates)
    first = next(c for c in candidates if fnv1a32(c.encode()) == fnv1a32(chosen.encode()))
    assert chosen == first
    assert fnv1a32(leader(reversed(candidates)).encode()) == fnv1a32(chosen.encode())


@given(st.integers(0, 4_000_000_000))
def test_heartbeat_text_round_trip(unix: int):
    assert parse_heartbeat(heartbeat_text(unix)) == unix


@given(texts)
def test_noise_is_no_heartbeat(text: str):
    parse_heartbeat(text)
    parse_heartbeat(json.dumps(text))


# --- merging ---

# A history is what honest signing nodes write: each owner its own machine and heartbeat, anybody anything in the open
# bucket. Versions are close together, so that equal ones occur there too.
writes = st.lists(
    st.tuples(
        st.sampled_from(["machines", "healthcheck", "kairos"]), st.integers(0, 3), st.integers(0, 2), st.booleans()
    ),
    min_size=1,
    max_size=25,
)


def history(steps: list[tuple[str, int, int, bool]]) -> list[tuple[str, str, Entry]]:
    made: list[tuple[str, str, Entry]] = []
    for number, (bucket, who, which, deletes) in enumerate(steps):
        signer = SIGNERS[who]
        version = NOW * 10**9 + number
        key, value = str(signer.peer_id), heartbeat_text(NOW + number)
        if bucket == "machines":
            key, value = f"10.1.0.{who}", f'{{"PeerID":"{signer.peer_id}","n":{number}}}'
        elif bucket == "kairos":
            key, value, version = f"k{which}", f'"{number}"', NOW * 10**9 + number // 3
        deleted = deletes and bucket != "healthcheck"
        made.append((bucket, key, signer.sign(bucket, key, "" if deleted else value, version, NOW, deleted=deleted)))
    return made


def snapshots(made: list[tuple[str, str, Entry]], order: random.Random) -> list[bytes]:
    """The history in random order, in blocks of random size, some of them twice."""
    shuffled = made * 2
    order.shuffle(shuffled)
    packed = []
    while shuffled:
        storage: Storage = {}
        for _ in range(order.randint(1, 4)):
            if shuffled and shuffled[-1][1] not in storage.get(shuffled[-1][0], {}):
                bucket, key, entry = shuffled.pop()
                storage.setdefault(bucket, {})[key] = entry
        packed.append(blocks.pack(Block(1, "", storage, "", "")))
    return packed


def live_ledger() -> Ledger:
    """A ledger that has heard everybody's heartbeat."""
    ledger = Ledger(LedgerSettings(), None)
    beats: dict[str, Entry] = {
        s.peer_id: s.sign("healthcheck", s.peer_id, heartbeat_text(NOW - 1), (NOW - 1) * 10**9, NOW - 1)
        for s in SIGNERS
    }
    ledger.receive(blocks.pack(Block(1, "", {"healthcheck": beats}, "", "")), "x", ManualClock(NOW).now())
    return ledger


def heard(packed: list[bytes]) -> Ledger:
    ledger = live_ledger()
    for data in packed:
        ledger.receive(data, "x", ManualClock(NOW).now())
    return ledger


def records(ledger: Ledger) -> Storage:
    """What is stored; a tombstone of an owned record is only kept where the record had been seen."""
    kept = {
        name: {key: entry for key, entry in bucket.items() if name == "kairos" or not entry.deleted}
        for name, bucket in ledger.block.storage.items()
    }
    return {name: bucket for name, bucket in kept.items() if bucket}


@given(writes, st.randoms(use_true_random=False), st.randoms(use_true_random=False))
def test_any_order_and_repetition_gives_the_same_records(
    steps: list[tuple[str, int, int, bool]], one: random.Random, two: random.Random
):
    made = history(steps)
    first, second = records(heard(snapshots(made, one))), records(heard(snapshots(made, two)))
    for bucket in ("kairos", "healthcheck"):
        assert first.get(bucket) == second.get(bucket)


@given(writes, st.randoms(use_true_random=False), st.integers(2, 4))
def test_ledgers_that_exchange_what_they_have_agree_in_the_end(
    steps: list[tuple[str, int, int, bool]], order: random.Random, size: int
):
    """Loss: each write reaches one ledger at least; then they exchange whole blocks, pairwise, in any order."""
    ledgers = [live_ledger() for _ in range(size)]
    now = ManualClock(NOW).now()
    for bucket, key, entry in history(steps):
        for ledger in order.sample(ledgers, order.randint(1, size)):
            ledger.receive(blocks.pack(Block(1, "", {bucket: {key: entry}}, "", "")), "x", now)
    pairs = [(a, b) for a in ledgers for b in ledgers if a is not b] * size
    order.shuffle(pairs)
    for sender, receiver in pairs:
        receiver.receive(blocks.pack(sender.block), "x", now)
    for _ in range(size):
        for sender in ledgers:
            for receiver in ledgers:
                receiver.receive(blocks.pack(sender.block), "x", now)
    assert all(records(ledger) == records(ledgers[0]) for ledger in ledgers)


@given(writes, st.randoms(use_true_random=False))
def test_merging_the_own_block_or_the_same_twice_changes_nothing(
    steps: list[tuple[str, int, int, bool]], order: random.Random
):
    ledger = heard(snapshots(history(steps), order))
    before = ledger.block
    received = ledger.receive(blocks.pack(before), "x", ManualClock(NOW).now())
    assert not received.changed
    assert not received.rejected
    assert not received.behind
    assert ledger.block is before


@given(
    st.sampled_from(["machines", "users", "egress", "dns", "healthcheck", "services", "files"]),
    st.sampled_from(SIGNERS[1:]),
    entries,
    st.booleans(),
)
def test_no_entry_of_another_peer_replaces_a_live_one(bucket: str, stranger: Signer, like: Entry, signed: bool):
    """Bad input never loses a record, whatever the stranger writes, signs, or forgets to sign."""
    owner = SIGNERS[0]
    key = owner.peer_id
    owned = owner.sign(bucket, key, f'{{"PeerID":"{key}"}}', NOW * 10**9, NOW)
    around = Surroundings(NOW * 10**9, 480, lambda peer: True)
    entry = stranger.sign(bucket, key, like.value, like.version, like.updated_at, deleted=like.deleted)
    if not signed:
        entry = replace(entry, owner=key)
    assert judge(bucket, key, entry, owned, around).outcome is not Outcome.ACCEPT
