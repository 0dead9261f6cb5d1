"""Mode ``off`` in a network with nodes that sign: nothing unsigned is lost, nothing that old nodes cannot read is said."""

from __future__ import annotations

import random

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.block import Block
from provider_kairos.ledger.engine import Ledger, LedgerSettings
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.liveness import heartbeat_text
from provider_kairos.ledger.model import Broadcast
from provider_kairos.ledger.policy import OwnershipMode
from provider_kairos.ledger.signing import Signer

OURS, SIGNING, OLD = (Signer(bytes([each]) * 32) for each in (1, 2, 3))


class Box:
    """Our node in mode ``off``; :meth:`signing_says` and :meth:`old_says` are blocks of the two kinds of neighbour."""

    def __init__(self, **settings: int) -> None:
        self.clock = ManualClock(unix=1_800_000_000)
        self.ledger = Ledger(LedgerSettings(mode=OwnershipMode.OFF, **settings), OURS, rng=random.Random(3))
        self.said: list[Block] = []
        self.version = self.clock.now().unix_ns

    @property
    def now(self):
        return self.clock.now()

    def run(self, seconds: float) -> None:
        end = self.now.mono + seconds
        while self.now.mono < end:
            self.ledger.tick(self.now)
            self.said += [
                blocks.unpack(each.data) for each in self.ledger.take_effects() if isinstance(each, Broadcast)
            ]
            due = self.ledger.next_wakeup() or end
            self.clock.advance(min(max(due - self.now.mono, 1e-4), max(end - self.now.mono, 1e-4)))

    def signing_says(self, index: int, version: int = 0, signer: Signer = SIGNING, **records: str | None):
        """``a__b="1"`` is key b of bucket a; None is a tombstone."""
        storage: dict[str, dict[str, Entry]] = {}
        for name, text in records.items():
            bucket, key = name.split("__")
            entry = signer.sign(bucket, key, text or "", self.version + version, self.now.unix, deleted=text is None)
            storage.setdefault(bucket, {})[key] = entry
        return self.hears(Block(index, "", storage, "0" * 64, ""), SIGNING)

    def old_says(self, index: int, **records: str):
        storage: dict[str, dict[str, Entry]] = {
            "healthcheck": {OLD.peer_id: Entry(heartbeat_text(self.now.unix))}  # every node beats
        }
        for name, text in records.items():
            bucket, key = name.split("__")
            storage.setdefault(bucket, {})[key] = Entry(text)
        return self.hears(Block(index, "", storage, "0" * 64, ""), OLD)

    def hears(self, block: Block, author: Signer):
        return self.ledger.receive(blocks.pack(block), author.peer_id, self.now)


def test_a_signing_nodes_block_deletes_nothing_that_is_unsigned():
    box = Box()
    box.old_says(10, machines__old="1")
    received = box.signing_says(1000, machines__new="2")
    assert received.changed == {("machines", "new")}
    assert box.ledger.bucket("machines") == {"old": "1", "new": "2"}


def test_beside_old_nodes_we_say_plain_values_only_signed_records_of_others_too():
    box = Box()
    box.old_says(10, machines__old="1")
    box.signing_says(5, machines__new="2", machines__gone=None)
    box.run(2)
    last = box.said[-1]
    assert all(entry.legacy for records in last.storage.values() for entry in records.values())
    assert {key: entry.value for key, entry in last.storage["machines"].items()} == {"old": "1", "new": "2"}
    assert OURS.peer_id in last.storage["healthcheck"]


def test_among_signing_nodes_alone_their_records_are_passed_on_as_they_are():
    """Else every one of them would report each of our broadcasts as violations."""
    box = Box()
    box.signing_says(5, machines__new="2")
    box.run(2)
    assert box.said[-1].storage["machines"]["new"].sig


def test_who_adopts_the_higher_block_can_adopt_ours():
    box = Box()
    box.run(1)
    box.signing_says(1000, machines__new="2")
    assert box.ledger.block.index == 1001
    box.signing_says(2000, machines__new="2")
    assert box.ledger.block.index == 2000
    box.ledger.add("kairos", {"k": "1"}, box.now)
    assert box.ledger.block.index == 2001


def test_newer_versions_and_tombstones_are_followed_older_ones_are_not():
    box = Box()
    box.signing_says(1, 10, kairos__k="1")
    box.signing_says(1, 20, kairos__k="2")
    box.signing_says(1, 15, kairos__k="3")
    assert box.ledger.get("kairos", "k") == "2"
    box.signing_says(1, 30, kairos__k=None)
    assert box.ledger.get("kairos", "k") is None
    box.signing_says(1, 20, kairos__k="2")
    assert box.ledger.get("kairos", "k") is None


def test_an_unsigned_write_stays_until_the_signing_author_says_something_new():
    box = Box()
    box.signing_says(1, 10, kairos__k="1")
    box.ledger.add("kairos", {"k": "ours"}, box.now)
    box.signing_says(1, 10, kairos__k="1")
    assert box.ledger.get("kairos", "k") == "ours"
    box.signing_says(1, 20, kairos__k="2")
    assert box.ledger.get("kairos", "k") == "2"


def test_a_signed_record_that_an_old_nodes_block_displaced_comes_back():
    box = Box()
    box.signing_says(1, 10, machines__new="2")
    box.old_says(50, machines__old="1")
    assert box.ledger.bucket("machines") == {"old": "1"}
    box.signing_says(1, 10, machines__new="2")
    assert box.ledger.bucket("machines") == {"old": "1", "new": "2"}


def test_what_we_signed_before_the_mode_was_changed_does_not_displace_what_we_say_now():
    box = Box()
    box.run(1)
    beat = box.ledger.get("healthcheck", OURS.peer_id)
    box.signing_says(1, 0, OURS, **{f"healthcheck__{OURS.peer_id}": heartbeat_text(1)})
    assert box.ledger.get("healthcheck", OURS.peer_id) == beat


@pytest.mark.parametrize("version", [400 * 86_400 * 10**9])
def test_an_absurd_version_is_not_taken(version):
    box = Box()
    box.signing_says(1, version, kairos__k="1")
    assert box.ledger.get("kairos", "k") is None


def test_a_node_in_mode_off_that_passes_signed_records_on_is_followed_by_height():
    box = Box()
    box.run(1)
    entry = SIGNING.sign("machines", "new", "2", box.version, box.now.unix)
    mixed = {"machines": {"new": entry, "its-own": Entry("3")}}
    box.hears(Block(100, "", mixed, "0" * 64, ""), OLD)
    assert box.ledger.bucket("machines") == {"new": "2", "its-own": "3"}
    mixed["machines"]["its-own"] = Entry("4")
    box.hears(Block(50, "", mixed, "0" * 64, ""), OLD)
    assert box.ledger.get("machines", "its-own") == "3"


def test_what_is_merged_does_not_add_up_for_ever():
    box = Box(max_records=50)
    for number in range(10):
        box.signing_says(number, 0, SIGNING, **{f"kairos__{number}-{each}": "1" for each in range(10)})
    assert len(box.ledger.bucket("kairos") or {}) == 50
    assert box.ledger.counters["full"] == 50
    box = Box(max_ledger_bytes=3000)
    for number in range(10):
        box.signing_says(number, number, kairos__big=f'"{"x" * number * 1000}"')
    assert 1000 < len(box.ledger.get("kairos", "big") or "") < 3000
