"""The engine in its default mode: writes, broadcasts, liveness, wishes, and blocks that mean harm."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace
from typing import Any

import pytest

from provider_kairos.clock import ManualClock
from provider_kairos.ledger import block as blocks
from provider_kairos.ledger.block import Block
from provider_kairos.ledger.engine import Ledger, LedgerSettings
from provider_kairos.ledger.entry import Entry, LedgerError
from provider_kairos.ledger.liveness import heartbeat_text
from provider_kairos.ledger.model import Broadcast, Changed, Effect, Persist
from provider_kairos.ledger.policy import OwnershipMode
from provider_kairos.ledger.signing import Signer, verify

A, B, C = (Signer(bytes([number]) * 32) for number in (1, 2, 3))


class Box:
    """A ledger with its clock; ``run`` ticks it whenever it asks and collects what it wants done."""

    def __init__(self, signer: Signer | None = A, block: Block | None = None, **settings: Any) -> None:
        self.clock = ManualClock(unix=1_800_000_000)
        self.ledger = Ledger(LedgerSettings(**settings), signer, block, rng=random.Random(7))

    @property
    def now(self):
        return self.clock.now()

    def run(self, seconds: float = 0.05) -> list[Effect]:
        effects: list[Effect] = []
        end = self.now.mono + seconds
        while True:
            self.ledger.tick(self.now)
            effects += self.ledger.take_effects()
            due = self.ledger.next_wakeup()
            assert due is not None
            if due > end:
                self.clock.advance(end - self.now.mono)
                return effects
            self.clock.advance(max(due - self.now.mono, 1e-4))

    def hears(self, *entries: tuple[str, str, Entry], via: Signer = B, index: int = 1, hash: str = "f" * 64):  # noqa: A002
        storage: blocks.Storage = {}
        for bucket, key, entry in entries:
            storage.setdefault(bucket, {})[key] = entry
        block = Block(index, "", storage, hash, "")
        return self.ledger.receive(blocks.pack(block), via.peer_id, self.now)

    def signs(
        self, signer: Signer, bucket: str, key: str, value: str, ahead: float = 0.0, *, deleted: bool = False
    ) -> tuple[str, str, Entry]:
        now = self.now.plus(ahead)
        return bucket, key, signer.sign(bucket, key, value, now.unix_ns, now.unix, deleted=deleted)

    def stored(self, bucket: str, key: str) -> tuple[str, str, Entry]:
        entry = self.ledger.entry(bucket, key)
        assert entry is not None
        return bucket, key, entry

    def beats(self, signer: Signer, ahead: float = 0.0) -> tuple[str, str, Entry]:
        return self.signs(signer, "healthcheck", signer.peer_id, heartbeat_text(self.now.plus(ahead).unix), ahead)


def broadcasts(effects: list[Effect]) -> list[Broadcast]:
    return [effect for effect in effects if isinstance(effect, Broadcast)]


def shown(effects: list[Effect]) -> blocks.Storage:
    return blocks.unpack(broadcasts(effects)[-1].data).storage


def machine(signer: Signer, address: str = "10.1.0.5") -> str:
    return f'{{"PeerID":"{signer.peer_id}","Address":"{address}"}}'


# --- writing ---


def test_the_first_tick_writes_a_signed_heartbeat_and_broadcasts_it():
    box = Box()
    storage = shown(box.run())
    entry = storage["healthcheck"][A.peer_id]
    assert entry.value == '"2027-01-15T08:00:00Z"'
    assert verify("healthcheck", A.peer_id, entry)


def test_heartbeats_come_every_30_to_45_seconds():
    box = Box()
    beats, last = [], None
    for _ in range(600):
        box.run(1)
        entry = box.ledger.entry("healthcheck", A.peer_id)
        assert entry is not None
        if entry.version != last:
            beats.append(entry.version / 1e9)
            last = entry.version
    gaps = [b - a for a, b in itertools.pairwise(beats)]
    assert min(gaps) >= 30
    assert max(gaps) <= 45


def test_everything_is_signed_in_open_buckets_too():
    box = Box()
    box.ledger.add("kairos", {"k": '"v"'}, box.now)
    entry = box.ledger.entry("kairos", "k")
    assert entry is not None
    assert verify("kairos", "k", entry)


def test_many_writes_in_one_instant_are_one_broadcast():
    box = Box()
    box.run(60)
    for number in range(50):
        box.ledger.add("kairos", {f"k{number}": "1"}, box.now)
    effects = box.run(0.5)
    assert len(broadcasts(effects)) == 1
    assert len(shown(effects)["kairos"]) == 50


def test_writes_that_follow_each_other_are_not_a_storm():
    box = Box()
    box.run(60)
    sent = 0
    for number in range(100):
        box.ledger.add("kairos", {"k": str(number)}, box.now)
        sent += len(broadcasts(box.run(0.02)))
    assert 2 <= sent <= 15
    assert shown(box.run(0.5))["kairos"]["k"].value == "99"


def test_the_same_text_again_makes_no_new_version():
    box = Box()
    first = box.ledger.add("kairos", {"k": "1"}, box.now)
    entry = box.ledger.entry("kairos", "k")
    box.run(5)
    again = box.ledger.add("kairos", {"k": "1"}, box.now)
    assert first.changed == {("kairos", "k")}
    assert not again.changed
    assert box.ledger.entry("kairos", "k") is entry


def test_versions_grow_even_when_the_clock_steps_back():
    box = Box()
    box.ledger.add("kairos", {"k": "1"}, box.now)
    before = box.ledger.entry("kairos", "k")
    box.clock.step_wall(-86400)
    box.ledger.add("kairos", {"k": "2"}, box.now)
    after = box.ledger.entry("kairos", "k")
    assert before is not None
    assert after is not None
    assert after.version == before.version + 1


def test_deleting_leaves_a_signed_tombstone_that_nobody_sees():
    box = Box()
    box.ledger.add("kairos", {"k": "1"}, box.now)
    box.ledger.delete("kairos", "k", box.now)
    assert box.ledger.get("kairos", "k") is None
    assert box.ledger.bucket("kairos") is None
    assert "kairos" not in box.ledger.current()
    entry = shown(box.run())["kairos"]["k"]
    assert entry.deleted
    assert verify("kairos", "k", entry)
    assert not box.ledger.delete("kairos", "k", box.now).changed
    assert not box.ledger.delete("kairos", "never was", box.now).changed


def test_deleting_a_bucket():
    box = Box()
    box.ledger.add("kairos", {"a": "1", "b": "2"}, box.now)
    assert box.ledger.delete_bucket("kairos", box.now).changed == {("kairos", "a"), ("kairos", "b")}
    assert box.ledger.bucket("kairos") is None


def test_a_record_of_a_live_peer_is_neither_overwritten_nor_deleted_locally():
    box = Box()
    box.hears(box.beats(B), box.signs(B, "machines", "10.1.0.5", machine(B)))
    written = box.ledger.add("machines", {"10.1.0.5": machine(A)}, box.now)
    assert written.refused[0].reason == "overwrite of a live entry owned by another peer"
    assert box.ledger.delete("machines", "10.1.0.5", box.now).refused
    assert box.ledger.get("machines", "10.1.0.5") == machine(B)


def test_effects_tell_what_changed_and_what_to_keep():
    box = Box()
    box.run()
    box.ledger.add("kairos", {"k": "1"}, box.now)
    effects = box.ledger.take_effects()
    changed = next(effect for effect in effects if isinstance(effect, Changed))
    assert changed.keys == {("kairos", "k")}
    assert changed.revision == box.ledger.revision
    persist = next(effect for effect in effects if isinstance(effect, Persist))
    assert [(row.bucket, row.key, row.entry.value) for row in persist.rows] == [("kairos", "k", "1")]
    assert not box.ledger.take_effects()


def test_heartbeats_do_not_wear_out_the_disk():
    assert not [effect for effect in Box().run(300) if isinstance(effect, Persist)]


# --- wishes ---


def test_an_announced_record_comes_back_when_somebody_changes_it():
    box = Box()
    box.ledger.announce("kairos", "k", "1", box.now)
    box.run(60)
    box.hears(box.signs(B, "kairos", "k", "2"))
    assert box.ledger.get("kairos", "k") == "2"
    box.run(1)
    assert box.ledger.get("kairos", "k") == "1"
    box.ledger.retract("kairos", "k")
    box.hears(box.signs(B, "kairos", "k", "3"))
    box.run(60)
    assert box.ledger.get("kairos", "k") == "3"


def test_two_nodes_that_want_different_things_do_not_shout():
    box = Box()
    box.ledger.announce("kairos", "k", "1", box.now)
    writes = 0
    for _ in range(600):  # somebody who overwrites us every tenth of a second, for a minute
        box.run(0.1)
        if box.ledger.get("kairos", "k") == "1":
            writes += 1
            box.hears(box.signs(B, "kairos", "k", "2"))
    assert 3 < writes < 30


def test_persist_stops_when_it_holds_and_gives_up_after_20_seconds():
    box = Box()
    box.ledger.persist("kairos", "k", "1", box.now)
    box.run(0.1)
    box.hears(box.signs(B, "kairos", "k", "2"))
    box.run(10)
    assert box.ledger.get("kairos", "k") == "1"
    box.hears(box.signs(B, "kairos", "k", "3"))
    box.run(60)
    assert box.ledger.get("kairos", "k") == "3"


def test_a_newer_write_replaces_a_persisting_one():
    box = Box()
    box.ledger.persist("kairos", "k", "1", box.now)
    box.ledger.add("kairos", {"k": "2"}, box.now)
    box.run(30)
    assert box.ledger.get("kairos", "k") == "2"


def test_persist_delete_deletes_again():
    box = Box()
    box.ledger.add("kairos", {"k": "1"}, box.now)
    box.ledger.persist_delete("kairos", "k", box.now)
    box.run(0.1)
    box.hears(box.signs(B, "kairos", "k", "1"))
    box.run(10)
    assert box.ledger.get("kairos", "k") is None


# --- when to broadcast ---


def test_a_new_subscriber_is_shown_our_state_at_once():
    box = Box()
    box.run(20)
    box.ledger.peer_joined(B.peer_id, box.now)
    assert len(broadcasts(box.run(0.2))) == 1


def test_a_subscriber_that_has_just_shown_our_state_is_left_alone_until_it_left():
    box = Box()
    box.run(20)
    box.hears(box.stored("healthcheck", A.peer_id))
    box.ledger.peer_joined(B.peer_id, box.now)
    assert not broadcasts(box.run(0.2))
    box.ledger.peer_left(B.peer_id)
    box.ledger.peer_joined(B.peer_id, box.now)
    assert len(broadcasts(box.run(0.2))) == 1


def test_a_neighbour_that_is_behind_is_answered_once_for_each_lack():
    box = Box()
    box.ledger.add("kairos", {"k": "1"}, box.now)
    box.run(3)
    assert box.hears(box.beats(B)).behind
    assert len(broadcasts(box.run(1))) == 1
    box.hears(box.beats(B))  # it refuses our record, or does not hear us
    assert not broadcasts(box.run(1))
    box.ledger.add("kairos", {"k": "2"}, box.now)
    box.run(1)
    box.hears(box.beats(B))
    assert len(broadcasts(box.run(1))) == 1


def test_the_periodic_broadcast_is_left_out_when_another_showed_the_same():
    quiet = Box(heartbeat_interval=100_000)
    alone = Box(heartbeat_interval=100_000)
    quiet.run(1)
    own = quiet.stored("healthcheck", A.peer_id)
    sent_with_company = 0
    for _ in range(80):
        quiet.hears(own)
        sent_with_company += len(broadcasts(quiet.run(5)))
    assert sent_with_company == 0
    sent_alone = len(broadcasts(alone.run(400)))
    assert 5 <= sent_alone <= 20


# --- blocks from others ---


def test_a_block_is_merged_and_merging_it_again_changes_nothing():
    box = Box()
    entries = [box.beats(B), box.signs(B, "machines", "10.1.0.5", machine(B)), box.signs(B, "kairos", "k", "1")]
    received = box.hears(*entries)
    assert len(received.changed) == 3
    assert received.signed == 3
    assert not received.behind
    revision = box.ledger.revision
    assert box.hears(*entries).changed == frozenset()
    assert box.ledger.revision == revision


@pytest.mark.parametrize(
    "data", [b"", b"junk", blocks.pack_text(b"{"), blocks.pack_text(b'{"Storage":{"b":{"k":{"Version":1.0}}}}')]
)
def test_a_malformed_block_changes_nothing(data: bytes):
    box = Box()
    box.run()
    revision = box.ledger.revision
    with pytest.raises(LedgerError):
        box.ledger.receive(data, B.peer_id, box.now)
    assert box.ledger.revision == revision


def test_a_block_that_unpacks_too_large_is_refused():
    box = Box(max_block_bytes=1000)
    with pytest.raises(LedgerError):
        box.hears(box.signs(B, "kairos", "k", "1" * 2000))


def test_a_hostile_block_cannot_touch_the_records_of_a_live_peer():
    box = Box()
    good = [box.beats(B), box.signs(B, "machines", "10.1.0.5", machine(B)), box.signs(B, "dns", "x", '"1"')]
    box.hears(*good)
    late = 60.0
    forged = replace(box.signs(B, "machines", "10.1.0.5", machine(C), late)[2], sig=b"\x01" * 64)
    hostile = [
        ("machines", "10.1.0.5", forged),
        box.signs(C, "dns", "x", '"2"', late),
        box.signs(C, "healthcheck", B.peer_id, heartbeat_text(0), late),
        box.signs(C, "users", B.peer_id, "1", late),
    ]
    assert {rejection.reason for rejection in box.hears(*hostile, via=C).rejected} == {
        "invalid signature",
        "overwrite of a live entry owned by another peer",
        "value owner does not match signer",
    }
    deleting = [box.signs(C, bucket, key, "", late, deleted=True) for bucket, key, _ in good]
    assert {rejection.reason for rejection in box.hears(*deleting, via=C).rejected} == {
        "tombstone by non-owner of a live entry"
    }
    unsigned = [(bucket, key, Entry("")) for bucket, key, _ in good]
    box.hears(*unsigned, via=C)
    box.hears(via=C)  # an empty block deletes nothing
    for bucket, key, entry in good:
        assert box.ledger.entry(bucket, key) == entry


def test_a_block_cannot_kill_the_owner_and_take_its_record_in_one_go():
    box = Box()
    box.hears(box.beats(B), box.signs(B, "machines", "10.1.0.5", machine(B)))
    box.clock.advance(100)
    received = box.hears(
        box.signs(C, "healthcheck", B.peer_id, "", deleted=True),
        box.signs(C, "machines", "10.1.0.5", machine(C)),
        via=C,
    )
    assert len(received.rejected) == 2
    assert box.ledger.get("machines", "10.1.0.5") == machine(B)


def test_the_record_of_a_dead_peer_may_be_taken_over():
    box = Box()
    box.hears(box.beats(B), box.signs(B, "machines", "10.1.0.5", machine(B)))
    box.clock.advance(500)
    assert not box.ledger.is_live(B.peer_id, box.now)
    box.hears(box.beats(C), box.signs(C, "machines", "10.1.0.5", machine(C)), via=C)
    assert box.ledger.get("machines", "10.1.0.5") == machine(C)


def test_unsigned_nodes_are_dropped_in_owned_buckets_and_may_create_in_open_ones():
    box = Box()
    received = box.hears(("machines", "10.1.0.5", Entry(machine(B))), ("kairos", "k", Entry("1")))
    assert [rejection.key for rejection in received.rejected] == ["10.1.0.5"]
    assert received.unsigned == 2
    assert box.ledger.current() == {"kairos": {"k": "1"}}
    box.hears(("kairos", "k", Entry("2")))
    assert box.ledger.get("kairos", "k") == "1"


def test_a_version_at_the_end_of_time_does_not_freeze_a_record():
    box = Box()
    frozen = B.sign("kairos", "k", "1", 2**64 - 1, box.now.unix)
    assert box.hears(("kairos", "k", frozen)).rejected
    assert box.ledger.get("kairos", "k") is None
    old = Box(block=Block(1, "", {"kairos": {"k": frozen}}, "", ""))
    assert old.ledger.get("kairos", "k") == "1"
    old.ledger.add("kairos", {"k": "2"}, old.now)
    entry = old.ledger.entry("kairos", "k")
    assert entry is not None
    assert entry.version == old.now.unix_ns
    box.hears(("kairos", "k", entry))
    assert box.ledger.get("kairos", "k") == "2"


def test_a_false_signature_in_an_open_bucket_is_accepted_and_counted():
    box = Box()
    false = replace(box.signs(B, "kairos", "k", "1")[2], value="2")
    box.hears(("kairos", "k", false))
    assert box.ledger.get("kairos", "k") == "2"
    assert box.ledger.counters["false_signatures_in_open_buckets"] == 1


def test_a_flood_of_keys_stops_at_the_limit():
    box = Box(max_records=100)
    box.hears(box.signs(B, "users", B.peer_id, "1"), *(box.signs(B, "kairos", f"k{n}", "1") for n in range(500)))
    assert len(box.ledger.bucket("kairos") or {}) == 10
    assert box.ledger.get("users", B.peer_id) == "1"
    assert box.ledger.counters["full"] == 490


def test_a_flood_by_one_author_leaves_room_for_others():
    box = Box(max_records=100)
    box.hears(*(("kairos", f"k{number}", Entry("1")) for number in range(500)))
    box.hears(*(box.signs(B, "kairos", f"b{number}", "1") for number in range(500)))
    box.hears(box.signs(C, "kairos", "c", "1"))
    assert box.ledger.get("kairos", "c") == "1"


def test_a_flood_by_many_authors_leaves_room_for_what_only_its_owner_may_write():
    box = Box(max_records=100)
    for number in range(20):
        signer = Signer(bytes([100 + number]) * 32)
        box.hears(*(box.signs(signer, "kairos", f"{number}-{key}", "1") for key in range(10)))
    assert len(box.ledger.bucket("kairos") or {}) == 75
    box.hears(box.signs(C, "healthcheck", C.peer_id, heartbeat_text(box.now.unix)))
    assert C.peer_id in box.ledger.live_peers(box.now)


def test_one_authors_quota_cannot_be_used_up_in_its_name():
    box = Box(max_records=100)
    box.hears(
        *(("kairos", f"k{number}", replace(box.signs(B, "kairos", "x", "1")[2], value="2")) for number in range(500))
    )
    box.hears(box.signs(B, "kairos", "own", "1"))
    assert box.ledger.get("kairos", "own") == "1"


def test_giant_values_stop_at_the_limit_of_bytes_and_smaller_ones_make_room_again():
    box = Box(max_ledger_bytes=1_000_000)
    for number in range(30):
        box.hears(box.signs(B, "kairos", f"k{number}", f'"{"x" * 40_000}"'))
    assert len(box.ledger.bucket("kairos") or {}) == 2
    box.hears(box.signs(B, "kairos", "k0", '"small"', ahead=1))
    box.hears(box.signs(B, "kairos", "k9", f'"{"x" * 40_000}"', ahead=1))
    assert box.ledger.get("kairos", "k9") is not None


def test_the_counts_of_what_is_held_stay_right():
    box = Box()
    records = box.ledger._records
    box.hears(*(box.signs(B, "kairos", f"k{number}", "1") for number in range(5)))
    box.hears(box.signs(C, "kairos", "k0", '"longer"', ahead=1))
    box.hears(box.signs(B, "kairos", "k1", "", ahead=1, deleted=True))
    records.remove("kairos", "k2")
    sizes, held = records.size, dict(records.held)
    records._count_anew()
    assert (sizes, held) == (records.size, dict(records.held))
    assert held == {B.peer_id: 3, C.peer_id: 1}


def test_authors_without_end_do_not_fill_the_memory():
    box = Box()
    for number in range(2000):
        seed = number.to_bytes(2, "big") * 16
        box.hears(via=Signer(seed))
    assert len(box.ledger._repeats) <= 512


# --- liveness ---


def test_live_peers_and_the_age_of_their_heartbeats():
    box = Box()
    box.run()
    box.hears(box.beats(B), box.beats(C, ahead=-470))
    ages = box.ledger.live_peers(box.now)
    assert set(ages) == {A.peer_id, B.peer_id, C.peer_id}
    assert ages[C.peer_id] == pytest.approx(470, abs=2)
    box.clock.advance(20)
    assert C.peer_id not in box.ledger.live_peers(box.now)
    assert C.peer_id in box.ledger.live_peers(box.now, within=900)


def test_a_peer_that_leaves_is_gone_at_once():
    box = Box()
    box.hears(box.beats(B))
    assert box.ledger.is_live(B.peer_id, box.now)
    box.clock.advance(1)
    box.hears(box.signs(B, "healthcheck", B.peer_id, "", deleted=True))
    assert not box.ledger.is_live(B.peer_id, box.now)


def test_a_heartbeat_from_the_far_future_proves_nothing_for_long():
    box = Box()
    box.hears(box.beats(B, ahead=86_400 * 30))
    assert box.ledger.is_live(B.peer_id, box.now)
    box.clock.advance(481)
    assert not box.ledger.is_live(B.peer_id, box.now)


def test_a_peer_that_sets_its_clock_back_stays_alive():
    box = Box()
    box.hears(box.beats(B, ahead=3600))
    for number in range(40):
        box.clock.advance(30)
        now = box.now
        version = now.unix_ns + 3600 * 10**9 + number  # it counts up from its last version
        box.hears(
            ("healthcheck", B.peer_id, B.sign("healthcheck", B.peer_id, heartbeat_text(now.unix), version, now.unix))
        )
        assert box.ledger.live_peers(now)[B.peer_id] == 0
    assert box.ledger.explain(box.now) == []


def test_a_block_that_is_repeated_is_not_read_again_until_something_changed():
    box = Box()
    data = blocks.pack(Block(1, "", {"kairos": {"k": box.signs(B, "kairos", "k", "1")[2]}}, "", ""))
    for _ in range(5):
        box.ledger.receive(data, B.peer_id, box.now)
    assert (box.ledger.counters["received"], box.ledger.counters["repeated"]) == (1, 4)
    box.ledger.add("kairos", {"k": "2"}, box.now)
    assert box.ledger.receive(data, B.peer_id, box.now).behind
    box.clock.advance(61)
    box.ledger.receive(data, B.peer_id, box.now)
    assert box.ledger.counters["received"] == 3


def test_a_stepped_clock_of_ours_kills_nobody():
    box = Box()
    box.hears(box.beats(B))
    box.clock.step_wall(86_400)
    assert box.ledger.is_live(B.peer_id, box.now)


def test_when_all_others_agree_the_wrong_clock_is_ours():
    box = Box()
    for ahead in (600, 640):
        box.hears(box.beats(B, ahead), box.beats(C, ahead))
        box.clock.advance(10)
    (notice,) = box.ledger.explain(box.now)
    assert notice.as_dict()["peer"] == ""
    assert "this machine" in notice.text()
    assert "behind" in notice.text()


def test_signing_and_unsigned_nodes_in_one_network_are_reported():
    box = Box()
    assert box.ledger.explain(box.now) == []
    box.hears(("healthcheck", B.peer_id, Entry(heartbeat_text(box.now.unix))))
    (notice,) = box.ledger.explain(box.now)
    assert notice.code == "mixed-ledger-formats"
    assert notice.as_dict()["unsigned"] == (B.peer_id,)
    assert "EDGEVPNOWNERSHIP" in notice.text()
    box.clock.advance(481)
    assert box.ledger.explain(box.now) == []


# --- tombstones, disk ---


def test_tombstones_are_forgotten_after_the_retention_and_do_not_come_back():
    box = Box()
    live = box.signs(B, "kairos", "k", "1")
    box.hears(box.beats(B), live)
    box.clock.advance(1)
    box.ledger.delete("kairos", "k", box.now)
    tombstone = box.ledger.entry("kairos", "k")
    assert tombstone is not None
    effects = box.run(3 * 900 + 700)
    assert box.ledger.entry("kairos", "k") is None
    kept = [effect for effect in effects if isinstance(effect, Persist)][-1]
    assert kept.removed == (("kairos", "k"),)
    assert kept.forgotten[0].version == tombstone.version
    assert not box.hears(("kairos", "k", tombstone)).changed
    assert not box.hears(live).changed
    again = Ledger(LedgerSettings(), A, None, forgotten=kept.forgotten)
    assert not again.receive(blocks.pack(Block(1, "", {"kairos": {"k": live[2]}}, "", "")), B.peer_id, box.now).changed
    assert box.hears(box.signs(B, "kairos", "k", "2")).changed


def test_owners_of_what_the_disk_kept_are_spared_for_one_window():
    kept = Box().signs(B, "machines", "10.1.0.5", machine(B), ahead=-1000)[2]
    box = Box(block=Block(1, "", {"machines": {"10.1.0.5": kept}}, "", ""))
    assert box.hears(box.beats(C), box.signs(C, "machines", "10.1.0.5", machine(C)), via=C).rejected
    assert box.ledger.get("machines", "10.1.0.5") == machine(B)
    assert B.peer_id not in box.ledger.live_peers(box.now)
    box.clock.advance(481)
    assert box.hears(box.signs(C, "machines", "10.1.0.5", machine(C)), via=C).changed


# --- observe ---


def test_observe_reports_and_accepts_but_never_rolls_back():
    box = Box(mode=OwnershipMode.OBSERVE)
    box.hears(box.beats(B), box.signs(B, "machines", "10.1.0.5", machine(B)))
    old = box.signs(B, "machines", "10.1.0.5", machine(B, "10.1.0.6"), ahead=-5)
    assert not box.hears(old).changed
    box.clock.advance(1)
    received = box.hears(box.signs(C, "machines", "10.1.0.5", machine(C)), via=C)
    assert received.rejected[0].stored
    assert str(received.rejected[0]).startswith("ownership violation (observe, accepting): machines/10.1.0.5 from ")
    assert box.ledger.get("machines", "10.1.0.5") == machine(C)
