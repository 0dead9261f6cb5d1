"""Keeps the ledger: drives the sans-IO engine, carries its effects out, and lets others wait for changes.

The engine is called from the trio thread only and never waits, so no lock guards it. Broadcasts go to the mesh
through a slot that holds the latest one: a block is a whole snapshot, an older one is worth nothing. Rows go to disk
in the order in which they changed; :meth:`LedgerService.persisted` waits until what was written so far is safe, which
is when a write through the API is acknowledged.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping

import trio

from provider_kairos.clock import Clock
from provider_kairos.daemon.costly_blocks import CostlyBlocks
from provider_kairos.daemon.logs import OncePer
from provider_kairos.errors import HostError, PeerError
from provider_kairos.ids import PeerId
from provider_kairos.ledger.engine import Ledger
from provider_kairos.ledger.model import Broadcast, Changed, Forgotten, Persist, RecordKey, Row, Written
from provider_kairos.ledger.policy import derived_owner

__all__ = ["LedgerService"]

log = logging.getLogger(__name__)

RETRY_DISK = 5.0
"""Seconds between attempts to write to a disk that refused."""

MAX_WAITING = 64
"""Sets of rows that wait for the disk one by one; more are merged, so that a full disk does not fill the memory."""

MAX_BUCKETS = 1024
"""Buckets whose last change is remembered exactly."""


class LedgerService:
    """The engine with its surroundings.

    ``save`` writes one :class:`Persist` durably (it may block: it is called in a worker thread); ``publish`` hands one
    block to the mesh.
    """

    def __init__(
        self,
        ledger: Ledger,
        clock: Clock,
        save: Callable[[Persist], None],
        publish: Callable[[bytes], Awaitable[None]],
        processor_time: Callable[[], float] = time.thread_time,
    ) -> None:
        self.ledger = ledger
        self.counters: Counter[str] = Counter()
        self.trouble: HostError | None = None
        self._clock = clock
        self._save = save
        self._publish = publish
        self._broadcast: bytes | None = None
        self._has_broadcast = trio.Event()
        self._rows: list[tuple[int, Persist]] = []  # with the sequence number that is safe once it is written
        self._has_rows = trio.Event()
        self._written = 0  # sequence number of the last row set handed over
        self._saved = 0  # sequence number of the last one that is safe on disk
        self._progress = trio.Event()
        self._poke = trio.Event()
        self._revision = ledger.revision
        # Least recently changed first. Names come from peers, so the table is bounded: what is not in it changed at
        # `_older` at the latest, and a reader is rather woken once too often than not at all.
        self._bucket_revision: OrderedDict[str, int] = OrderedDict()
        self._older = 0
        self._changed = trio.Event()
        self.on_changed: Callable[[frozenset[RecordKey]], None] = lambda _places: None
        """Told which records look different now; must not write to the ledger."""
        self._once_per = OncePer()
        self._costly = CostlyBlocks()
        self._processor_time = processor_time

    # -- reading

    @property
    def revision(self) -> int:
        """Grows at every change that a reader can see."""
        return self._revision

    async def wait_changed(self) -> None:
        """Return after the next change of any record."""
        await self._changed.wait()

    async def wait_revision(self, since: int, buckets: frozenset[str]) -> int:
        """The present revision, as soon as one of ``buckets`` (empty: any) changed after ``since``."""
        while not self._moved(since, buckets):
            await self._changed.wait()
        return self._revision

    def _moved(self, since: int, buckets: frozenset[str]) -> bool:
        if since > self._revision:  # a cursor of another life of this daemon
            return True
        if not buckets:
            return self._revision > since
        return any(self._bucket_revision.get(bucket, self._older) > since for bucket in buckets)

    # -- writing; each returns at once

    def add(self, bucket: str, records: Mapping[str, str]) -> Written:
        """Write records (key to JSON text)."""
        return self._did(self.ledger.add(bucket, dict(records), self._clock.now()))

    def persist(self, bucket: str, key: str, text: str) -> Written:
        """Write one record and defend it for 20 s (EdgeVPN's Persist)."""
        return self._did(self.ledger.persist(bucket, key, text, self._clock.now()))

    def announce(self, bucket: str, key: str, text: str) -> Written:
        """Keep one record as it is until :meth:`retract`."""
        return self._did(self.ledger.announce(bucket, key, text, self._clock.now()))

    def retract(self, bucket: str, key: str) -> None:
        """Stop announcing a record; it stays as it is."""
        self.ledger.retract(bucket, key)

    def delete(self, bucket: str, key: str) -> Written:
        """Delete one record."""
        return self._did(self.ledger.delete(bucket, key, self._clock.now()))

    def persist_delete(self, bucket: str, key: str) -> Written:
        """Delete one record and defend the deletion for 20 s (EdgeVPN's AnnounceDeleteBucketKey)."""
        return self._did(self.ledger.persist_delete(bucket, key, self._clock.now()))

    def delete_bucket(self, bucket: str) -> Written:
        """Delete every record of a bucket."""
        return self._did(self.ledger.delete_bucket(bucket, self._clock.now()))

    def _did(self, written: Written) -> Written:
        for refusal in written.refused:
            if self._once_per.allow((refusal.bucket, refusal.key), self._clock.now()) is not None:
                stored = self.ledger.entry(refusal.bucket, refusal.key)
                owner = derived_owner(refusal.bucket, refusal.key, stored) if stored is not None else "somebody else"
                log.warning("not written: %s/%s belongs to %s", refusal.bucket, refusal.key, owner)
        self._carry_out()
        return written

    async def persisted(self) -> None:
        """Wait until everything written so far is safe on disk. Raises HostError when the disk refuses it."""
        target = self._written
        while self._saved < target:
            await self._progress.wait()
            if self._saved < target and self.trouble is not None:
                raise self.trouble

    # -- the network

    def receive(self, data: bytes, author: PeerId, via: PeerId) -> None:
        """Take a block in. A bad one is counted, logged once per author and minute, and dropped."""
        now = self._clock.now()
        if self._costly.puts_off(author, len(data), now.mono):
            self.counters["blocks_put_off"] += 1
            return
        began = self._processor_time()
        try:
            received = self.ledger.receive(data, author, now)
        except PeerError as error:
            self.counters["blocks_malformed"] += 1
            held_back = self._once_per.allow(("malformed", author), now)
            if held_back is not None:
                log.warning("dropped a block of %s (by way of %s): %s%s", author, via, error, _more(held_back))
            return
        except Exception:  # a bug of ours that one block brings out must not cost those of the others
            self.counters["blocks_crashed"] += 1
            if self._once_per.allow(("crashed", author), now) is not None:
                log.exception("a block of %s could not be taken in because of an error of ours", author)
            return
        finally:
            self._costly.took(author, self._processor_time() - began, self._clock.now().mono)
        self.counters["blocks_received"] += 1
        for rejection in received.rejected:
            # bucket and key are the author's choice: they must not be part of what is counted
            held_back = self._once_per.allow(("rejected", author, rejection.reason), now)
            if held_back is not None:
                log.warning("%.300s%s", rejection, _more(held_back))
        self._carry_out()

    def peer_joined(self, peer: PeerId) -> None:
        """A peer subscribed to our topic: it may need our block soon."""
        self.ledger.peer_joined(peer, self._clock.now())
        self._carry_out()

    def peer_left(self, peer: PeerId) -> None:
        """A peer left our topic."""
        self.ledger.peer_left(peer)

    # -- tasks

    async def run(self) -> None:
        """Timers, broadcasts and disk, until cancelled. What is waiting for the disk is written before it ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_time)
                nursery.start_soon(self._keep_broadcasting)
                nursery.start_soon(self._keep_saving)
        finally:
            with trio.CancelScope(shield=True), trio.move_on_after(2):
                await self._save_pending()

    async def _keep_time(self) -> None:
        while True:
            self.ledger.tick(self._clock.now())
            self._carry_out()
            due = self.ledger.next_wakeup()
            self._poke = trio.Event()
            delay = math.inf if due is None else max(0.0, due - self._clock.now().mono)
            with trio.move_on_after(delay):
                await self._poke.wait()
            await trio.lowlevel.checkpoint()

    async def _keep_broadcasting(self) -> None:
        while True:
            await self._has_broadcast.wait()
            self._has_broadcast = trio.Event()
            data, self._broadcast = self._broadcast, None
            if data is not None:
                await self._publish(data)

    async def _keep_saving(self) -> None:
        while True:
            await self._has_rows.wait()
            self._has_rows = trio.Event()
            await self._save_pending()

    async def _save_pending(self) -> None:
        while self._rows:
            batch, target = _merged([rows for _, rows in self._rows]), self._written
            try:
                await trio.to_thread.run_sync(self._save, batch)
            except HostError as error:
                self.counters["disk_errors"] += 1
                if self.trouble is None:
                    log.error("the ledger is not saved: %s", error)  # noqa: TRY400 - the message is the whole story
                self.trouble = error
                self._tell_progress()
                await trio.sleep(RETRY_DISK)
                continue
            if self.trouble is not None:
                log.info("the ledger is saved again")
                self.trouble = None
            # what came while the thread was writing stays for the next round
            self._rows = [(number, rows) for number, rows in self._rows if number > target]
            self._saved = target
            self._tell_progress()

    def _tell_progress(self) -> None:
        self._progress.set()
        self._progress = trio.Event()

    def _keep_rows(self, rows: Persist) -> None:
        self._written += 1
        self._rows.append((self._written, rows))
        if len(self._rows) > MAX_WAITING:
            self._rows = [(self._written, _merged([rows for _, rows in self._rows]))]
        self._has_rows.set()

    def _mark_changed(self, buckets: set[str]) -> None:
        # our own count: one step per effect, so that a cursor never skips a change
        self._revision += 1
        for bucket in buckets:
            self._bucket_revision[bucket] = self._revision
            self._bucket_revision.move_to_end(bucket)
        while len(self._bucket_revision) > MAX_BUCKETS:
            _, self._older = self._bucket_revision.popitem(last=False)
        self._changed.set()
        self._changed = trio.Event()

    def _carry_out(self) -> None:
        for effect in self.ledger.take_effects():
            match effect:
                case Broadcast(data):
                    self._broadcast = data
                    self._has_broadcast.set()
                case Persist():
                    self._keep_rows(effect)
                case Changed(keys):
                    self._mark_changed({bucket for bucket, _key in keys})
                    self.on_changed(keys)
        self._poke.set()


def _merged(batches: list[Persist]) -> Persist:
    """One transaction out of several; a later row or removal of the same record wins."""
    state: dict[tuple[str, str], Row | None] = {}
    forgotten: dict[tuple[str, str], Forgotten] = {}
    for batch in batches:
        for row in batch.rows:
            state[row.bucket, row.key] = row
        for key in batch.removed:
            state[key] = None
        forgotten.update({(grave.bucket, grave.key): grave for grave in batch.forgotten})
    return Persist(
        rows=tuple(row for row in state.values() if row is not None),
        removed=tuple(key for key, row in state.items() if row is None),
        forgotten=tuple(forgotten.values()),
    )


def _more(held_back: int) -> str:
    return f" ({held_back} more like it since the last line)" if held_back else ""
