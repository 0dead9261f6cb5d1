"""Mode ``off``: whole blocks are adopted, unsigned entries written, and what a concurrent block displaced comes back."""

from __future__ import annotations

import random

from provider_kairos.clock import ManualClock
from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.block import Block
from provider_kairos.ledger.engine import Ledger, LedgerSettings
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.liveness import heartbeat_text
from provider_kairos.ledger.policy import OwnershipMode
from provider_kairos.ledger.signing import Signer

A, B = Signer(b"\x01" * 32), Signer(b"\x02" * 32)


class OffBox:
    def __init__(self, block: Block | None = None) -> None:
        self.clock = ManualClock(unix=1_800_000_000)
        self.ledger = Ledger(LedgerSettings(mode=OwnershipMode.OFF), A, block, rng=random.Random(3))

    @property
    def now(self):
        return self.clock.now()

    def run(self, seconds: float) -> None:
        end = self.now.mono + seconds
        while self.now.mono < end:
            self.ledger.tick(self.now)
            self.ledger.take_effects()
            due = self.ledger.next_wakeup() or end
            self.clock.advance(min(max(due - self.now.mono, 1e-4), max(end - self.now.mono, 1e-4)))

    def hears(self, index: int, hash: str = "0" * 64, **buckets: dict[str, str]):  # noqa: A002
        storage = {name: {key: Entry(value) for key, value in bucket.items()} for name, bucket in buckets.items()}
        return self.ledger.receive(blocks.pack(Block(index, "", storage, hash, "")), B.peer_id, self.now)


def test_entries_are_unsigned_and_deleting_removes():
    box = OffBox()
    box.ledger.add("kairos", {"k": "1"}, box.now)
    assert box.ledger.entry("kairos", "k") == Entry("1")
    box.ledger.delete("kairos", "k", box.now)
    assert box.ledger.entry("kairos", "k") is None
    assert box.ledger.block.index == 2


def test_a_higher_block_replaces_everything_and_a_lower_one_nothing():
    box = OffBox()
    box.run(0.1)
    assert box.hears(10, x={"k": "1"}).changed
    assert box.ledger.current() == {"x": {"k": "1"}}
    received = box.hears(9, x={"k": "2"})
    assert not received.changed
    assert received.behind


def test_equal_heights_are_decided_by_the_hash():
    box = OffBox()
    box.hears(10, "5" * 64, x={"k": "1"})
    assert not box.hears(10, "4" * 64, x={"k": "2"}).changed
    assert box.hears(10, "6" * 64, x={"k": "3"}).changed


def test_a_displaced_write_and_the_heartbeat_come_back_within_a_second():
    box = OffBox()
    box.run(0.1)
    box.ledger.add("kairos", {"k": "1"}, box.now)
    box.run(0.1)
    box.hears(50, kairos={"other": "2"})
    assert box.ledger.get("kairos", "k") is None
    box.run(1)
    assert box.ledger.current()["kairos"] == {"k": "1", "other": "2"}
    assert box.ledger.get("healthcheck", A.peer_id)
    assert box.ledger.block.index > 50


def test_a_displaced_deletion_too():
    box = OffBox()
    box.hears(5, kairos={"k": "1", "other": "2"})
    box.ledger.delete("kairos", "k", box.now)
    box.hears(50, kairos={"k": "1", "other": "2"})
    box.run(1)
    assert box.ledger.bucket("kairos") == {"other": "2"}


def test_a_write_that_an_adopted_block_showed_has_arrived_and_may_be_changed_by_others():
    box = OffBox()
    box.ledger.persist("kairos", "k", "1", box.now)
    box.run(10)
    box.hears(50, kairos={"k": "1"})
    box.hears(60, kairos={"k": "2"})
    box.run(30)
    assert box.ledger.get("kairos", "k") == "2"


def test_what_the_disk_kept_does_not_roll_back_the_network():
    kept = Block(1000, "", {"kairos": {"k": Entry('"old"')}}, "f" * 64, "")
    box = OffBox(kept)
    assert box.ledger.get("kairos", "k") == '"old"'
    box.run(0.1)
    box.hears(5, kairos={"k": '"new"'})
    assert box.ledger.get("kairos", "k") == '"new"'


def test_an_index_without_successor_is_refused():
    box = OffBox()
    try:
        box.hears(2**63 - 1, x={"k": "1"})
    except blocks.BlockError:
        pass
    else:
        raise AssertionError("adopted")


def test_the_scrub_takes_dead_heartbeats_and_leaves_the_living():
    box = OffBox()
    box.run(0.1)
    dead = heartbeat_text(box.now.unix - 1000)
    box.hears(50, healthcheck={B.peer_id: dead, A.peer_id: heartbeat_text(box.now.unix)})
    box.run(700)
    assert set(box.ledger.bucket("healthcheck") or {}) == {A.peer_id}


def test_a_signing_neighbour_is_reported():
    box = OffBox()
    entry = B.sign("healthcheck", B.peer_id, heartbeat_text(box.now.unix), box.now.unix_ns, box.now.unix)
    block = Block(1, "", {"healthcheck": {B.peer_id: entry}}, "f", "")
    received = box.ledger.receive(blocks.pack(block), B.peer_id, box.now)
    assert received.signed == 1
    assert [notice.code for notice in box.ledger.explain(box.now)] == ["mixed-ledger-formats"]
