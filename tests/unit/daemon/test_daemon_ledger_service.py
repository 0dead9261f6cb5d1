from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from provider_kairos.clock import Now
from provider_kairos.daemon.costly_blocks import LARGE, MAX_AUTHORS, CostlyBlocks
from provider_kairos.daemon.ledger_service import MAX_BUCKETS, MAX_WAITING, LedgerService
from provider_kairos.errors import HostError
from provider_kairos.ids import PeerId
from provider_kairos.ledger.block import Block, pack
from provider_kairos.ledger.engine import Ledger
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import LedgerSettings, Persist, Received
from provider_kairos.ledger.signing import Signer

US, PEER = Signer(b"u" * 32), Signer(b"p" * 32)
START = 1_800_000_000


class TrioClock:
    def now(self):
        return Now(round((START + trio.current_time()) * 1e9), trio.current_time())


class Disk:
    """What was saved; refuses while ``full``."""

    def __init__(self):
        self.batches: list[Persist] = []
        self.full = False

    def save(self, rows):
        if self.full:
            raise HostError("cannot write mesh.db: database or disk is full", hint="free some space")
        self.batches.append(rows)

    def has(self, bucket, key):
        return any((row.bucket, row.key) == (bucket, key) for batch in self.batches for row in batch.rows)


class Rig:
    def __init__(self):
        self.disk = Disk()
        self.published: list[bytes] = []
        engine = Ledger(LedgerSettings(), US, rng=random.Random(1))
        self.service = LedgerService(engine, TrioClock(), self.disk.save, self._publish)

    async def _publish(self, data):
        await trio.lowlevel.checkpoint()
        self.published.append(data)

    def hears(self, storage, author=PEER.peer_id):
        self.service.receive(pack(Block(1, "", storage, "f" * 64, "")), author, author)


def drive(scenario):
    async def main():
        rig = Rig()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.service.run)
            await scenario(rig)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_write_is_acknowledged_when_it_is_on_disk():
    async def scenario(rig):
        rig.service.add("b", {"k": "1"})
        assert not rig.disk.has("b", "k")
        await rig.service.persisted()
        assert rig.disk.has("b", "k")

    drive(scenario)


def test_a_full_disk_is_said_refuses_the_acknowledgement_and_heals(caplog):
    async def scenario(rig):
        rig.disk.full = True
        rig.service.add("b", {"k": "1"})
        with pytest.raises(HostError, match="free some space"):
            await rig.service.persisted()
        assert "full" in str(rig.service.trouble)
        while rig.service.counters["disk_errors"] < 5:  # noqa: ASYNC110 - a thread writes, and virtual time runs ahead of it
            await trio.sleep(5)
        rig.disk.full = False
        await rig.service.persisted()
        assert rig.disk.has("b", "k")
        assert rig.service.trouble is None

    with caplog.at_level(logging.INFO):
        drive(scenario)
    assert [r.message for r in caplog.records if "saved" in r.message] == [
        "the ledger is not saved: cannot write mesh.db: database or disk is full (free some space)",
        "the ledger is saved again",
    ]


def test_what_waits_for_a_full_disk_does_not_fill_the_memory():
    async def scenario(rig):
        rig.disk.full = True
        for number in range(20 * MAX_WAITING):
            rig.service.add("b", {"k": str(number), f"k{number % 7}": str(number)})
        await trio.sleep(1)
        assert len(rig.service._rows) <= MAX_WAITING + 1
        rig.disk.full = False
        await rig.service.persisted()
        last = {(row.bucket, row.key): row.entry.value for batch in rig.disk.batches for row in batch.rows}
        assert last["b", "k"] == str(20 * MAX_WAITING - 1)
        assert len([key for bucket, key in last if bucket == "b"]) == 8

    drive(scenario)


def test_what_changes_while_the_disk_writes_is_written_next():
    async def scenario(rig):
        save = rig.disk.save
        once: list[bool] = []

        def slow(rows):
            if not once:
                once.append(True)
                trio.from_thread.run_sync(rig.service.add, "b", {"second": "2"})
            save(rows)

        rig.service._save = slow
        rig.service.add("b", {"first": "1"})
        await rig.service.persisted()
        await rig.service.persisted()
        assert rig.disk.has("b", "first")
        assert rig.disk.has("b", "second")
        assert not rig.service._rows

    drive(scenario)


def test_what_waits_for_the_disk_is_written_before_it_ends():
    async def main():
        rig = Rig()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.service.run)
            await trio.testing.wait_all_tasks_blocked()
            rig.service.add("b", {"k": "1"})
            nursery.cancel_scope.cancel()
        assert rig.disk.has("b", "k")

    trio.run(main)


def test_a_reader_is_woken_by_its_buckets_only():
    async def scenario(rig):
        since = rig.service.revision
        with trio.move_on_after(1) as waited:
            rig.service.add("other", {"k": "1"})
            await rig.service.wait_revision(since, frozenset({"mine"}))
        assert waited.cancelled_caught
        rig.service.add("mine", {"k": "1"})
        assert await rig.service.wait_revision(since, frozenset({"mine"})) == rig.service.revision

    drive(scenario)


def test_a_cursor_of_another_life_returns_at_once():
    async def scenario(rig):
        assert await rig.service.wait_revision(rig.service.revision + 100, frozenset({"mine"})) == rig.service.revision

    drive(scenario)


def test_bucket_names_of_peers_do_not_fill_the_memory_and_no_change_is_missed():
    async def scenario(rig):
        rig.service.add("mine", {"k": "1"})
        since = rig.service.revision - 1
        for number in range(2 * MAX_BUCKETS):
            rig.hears({f"bucket-{number}": {"k": Entry("1")}}, Signer(number.to_bytes(4, "big") * 8).peer_id)
        assert len(rig.service._bucket_revision) <= MAX_BUCKETS
        await rig.service.wait_revision(since, frozenset({"mine"}))  # long ago, and still told

    drive(scenario)


def test_malformed_blocks_are_counted_and_said_once_per_author_and_minute(caplog):
    async def scenario(rig):
        for _ in range(50):
            rig.service.receive(b"garbage", PEER.peer_id, PeerId("via"))
        assert rig.service.counters["blocks_malformed"] == 50
        await trio.sleep(61)
        rig.service.receive(b"garbage", PEER.peer_id, PeerId("via"))

    drive(scenario)
    said = [record.getMessage() for record in caplog.records if "dropped a block" in record.message]
    assert len(said) == 2
    assert "49 more" in said[1]


def test_a_flood_of_violations_in_invented_buckets_is_one_line(caplog):
    async def scenario(rig):
        far = Entry("1", PEER.peer_id, 2**63, START, sig=b"x" * 64)
        rig.hears({f"{'b' * 5000}{number}": {"k": far} for number in range(300)})

    drive(scenario)
    said = [record.getMessage() for record in caplog.records if "violation" in record.message]
    assert len(said) == 1
    assert len(said[0]) < 400


def test_a_bug_that_one_block_brings_out_does_not_cost_the_others(caplog, monkeypatch):
    async def scenario(rig):
        receive = rig.service.ledger.receive

        def broken(data, author, now):
            if author == "evil":
                raise ZeroDivisionError
            return receive(data, author, now)

        monkeypatch.setattr(rig.service.ledger, "receive", broken)
        for _ in range(3):
            rig.hears({"b": {"k": Entry("1")}}, PeerId("evil"))
        rig.hears({"b": {"k": Entry("1")}})
        assert rig.service.ledger.get("b", "k") == "1"
        assert rig.service.counters["blocks_crashed"] == 3

    drive(scenario)
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_change_is_broadcast_and_only_the_latest_state_waits():
    async def scenario(rig):
        for number in range(100):
            rig.service.add("b", {f"k{number}": "1"})
        await trio.sleep(1)
        assert 1 <= len(rig.published) <= 4

    drive(scenario)


class TwoHands:
    """A clock that moves when the ledger reads."""

    def __init__(self):
        self.mono = 0.0

    def now(self):
        return Now(round((START + self.mono) * 1e9), self.mono)


async def no_room(_data):
    raise AssertionError


class SlowLedger:
    """Reads a block in ``cost`` seconds."""

    revision = 0

    def __init__(self, clock):
        self.clock = clock
        self.cost = 0.0
        self.read = []

    def receive(self, data, via, _now):
        self.clock.mono += self.cost
        self.read.append(via)
        return Received()

    def take_effects(self):
        return []


def test_costly_blocks_take_a_share_of_the_time_and_small_ones_always_pass():
    clock = TwoHands()
    engine: Any = SlowLedger(clock)
    service = LedgerService(engine, clock, lambda _rows: None, no_room, lambda: clock.mono)
    a, b = PeerId("a"), PeerId("b")
    big, small = bytes(LARGE), bytes(LARGE - 1)
    engine.cost = 0.5
    service.receive(big, a, a)  # until 0.5; others wait until 1.0, the author until 5
    service.receive(big, a, a)
    service.receive(big, b, b)
    service.receive(small, a, a)
    assert engine.read == [a, a]
    assert service.counters["blocks_put_off"] == 2
    engine.cost = 0.0
    clock.mono = 3.0
    service.receive(big, b, b)
    service.receive(big, a, a)
    assert engine.read == [a, a, b]
    clock.mono = 11.0
    service.receive(big, a, a)
    service.receive(big, a, a)  # cheap this time
    assert engine.read == [a, a, b, a, a]
    assert service.counters["blocks_put_off"] == 3


def test_costly_blocks_of_invented_authors_are_not_remembered_for_ever():
    costly = CostlyBlocks()
    for number in range(5000):
        costly.took(PeerId(str(number)), 0.3, number + 0.3)
    assert len(costly._authors) <= MAX_AUTHORS
    assert not costly.puts_off(PeerId("new"), LARGE, 6000)
