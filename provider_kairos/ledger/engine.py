"""The ledger as one sans-IO engine (spec/edgevpn.md 5, 8.7, 15.3, 17).

Give it writes, received blocks and the time; take effects (:class:`~provider_kairos.ledger.model.Broadcast`,
``Changed``, ``Persist``) and the next wake-up. Rules are in ``policy`` and ``merge``, timers in ``pacing`` and
``intents``; here they meet. Values are JSON texts, exactly as Go would print them. Sealing, sending and the disk are the
caller's.

Call :meth:`Ledger.tick` whenever :meth:`Ledger.next_wakeup` has come or anything else was called, then
:meth:`Ledger.take_effects`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from provider_kairos.clock import Now
from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.ledger.beside_signing import SignedRecords, has_signed, plain
from provider_kairos.ledger.block import Block, pack, unpack
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.formats import Formats
from provider_kairos.ledger.intents import Intents, Lasting
from provider_kairos.ledger.leader import leader
from provider_kairos.ledger.liveness import Liveness, heartbeat_text
from provider_kairos.ledger.merge import Graveyard, Merge, lacks
from provider_kairos.ledger.model import (
    Broadcast,
    Changed,
    Effect,
    Forgotten,
    LedgerSettings,
    Persist,
    Received,
    RecordKey,
    Rejection,
    Row,
    Written,
)
from provider_kairos.ledger.pacing import Pacing
from provider_kairos.ledger.policy import (
    OWNERSHIP,
    OwnershipMode,
    Surroundings,
    derived_owner,
)
from provider_kairos.ledger.reaper import HEARTBEATS, expired, old_tombstones
from provider_kairos.ledger.records import Records
from provider_kairos.ledger.signing import Signer
from provider_kairos.ledger.writer import Writer

__all__ = ["HEARTBEATS", "Ledger", "LedgerSettings"]

LARGE_NETWORK = 30
"""From this many peers on heartbeats slow down with the size, up to what v0.35.3 peers still bear (120 s)."""

SLOWEST_HEARTBEAT = 80.0

MAX_REPEATS = 512
"""Authors whose last block is remembered; anybody with the token can make up more."""

REPEATS_HOLD = 60.0
"""Seconds for which a repeated block is taken as read."""


class Ledger:
    """The replicated ledger of one node. ``block`` is what the disk kept; without ``signer`` nothing is signed."""

    def __init__(
        self,
        settings: LedgerSettings,
        signer: Signer | None,
        block: Block | None = None,
        *,
        rng: random.Random | None = None,
        forgotten: Iterable[Forgotten] = (),
    ) -> None:
        self.settings = settings
        self.counters: Counter[str] = Counter()
        self._signer = signer
        if block is not None and settings.mode is OwnershipMode.OFF:
            # What we remember must not roll back the network: whatever anybody says is higher than height 0.
            block = replace(block, index=0, hash="", prev_hash="")
        self._records = Records(block)
        self._rng = rng or random.Random()
        self._liveness = Liveness(settings.ownership_ttl)
        self._formats = Formats()
        self._graveyard = Graveyard()
        self._writer = Writer(self._records, self._graveyard, signer, settings.mode)
        self._pacing = Pacing(settings, self._rng)
        self._intents = Intents(settings.announce_interval, self._rng, until_seen=settings.mode is OwnershipMode.OFF)
        self._signed = SignedRecords(self.peer_id or "", settings)
        self._repeats: dict[str, tuple[int, int, float]] = {}
        self._effects: list[Effect] = []
        self._next_heartbeat: float | None = None
        self._next_scrub: float | None = None
        # Owners of what the disk kept count as live for one window: their heartbeats are not here yet (or, when they
        # never come, the records expire a little later). Only judgements know of it, not the lists of live peers.
        self._spared = frozenset(derived_owner(b, k, e) for b, k, e in self._records if b in OWNERSHIP) - {""}
        self._spared_until: float | None = None
        for grave in forgotten:
            self._graveyard.bury(grave.bucket, grave.key, grave.version)
        self._graveyard.take_fresh()

    # --- reading ---

    @property
    def peer_id(self) -> PeerId | None:
        """Our own identity."""
        return self._signer.peer_id if self._signer is not None else None

    @property
    def block(self) -> Block:
        """The present block."""
        return self._records.block

    @property
    def revision(self) -> int:
        """Grows with every change of any record."""
        return self._records.revision

    def get(self, bucket: str, key: str) -> str | None:
        """The JSON text of a live record, or None."""
        return self._records.value(bucket, key)

    def entry(self, bucket: str, key: str) -> Entry | None:
        """The stored entry with author and version, tombstones included."""
        return self._records.entry(bucket, key)

    def bucket(self, name: str) -> dict[str, str] | None:
        """The live records of a bucket as JSON texts, or None when there are none."""
        return self._records.bucket(name)

    def current(self) -> dict[str, dict[str, str]]:
        """All live records; a bucket of tombstones only is absent."""
        buckets = {name: self._records.bucket(name) for name in self._records.storage}
        return {name: records for name, records in buckets.items() if records is not None}

    def live_peers(self, now: Now, within: float | None = None) -> dict[PeerId, float]:
        """Peers with a fresh heartbeat (this node included) and its age in seconds.

        ``within`` is the window; without it the ownership window. Kairos' scheduling and leases use ``offline_after``.
        """
        return self._liveness.live_peers(now, within)

    def is_live(self, peer: str, now: Now, within: float | None = None) -> bool:
        """Whether a peer's heartbeat is fresh."""
        return self._liveness.is_live(peer, now, within)

    def explain(self, now: Now) -> list[Waiting]:
        """What stands in the way of a common view: mixed formats, clocks that disagree."""
        mixed = self._formats.mixed(self.settings.mode, self.peer_id, now, self.settings.ownership_ttl)
        return [*([mixed] if mixed is not None else []), *self._liveness.skews(now, self.peer_id or "")]

    # --- writing ---

    def add(self, bucket: str, values: Mapping[str, str], now: Now) -> Written:
        """Write records (key -> JSON text). Unchanged texts of our own make no new version.

        In ``enforce`` a record that a live peer owns is refused: every other node would refuse it too.
        """
        changed, refused = set(), []
        for key, text in values.items():
            self._intents.supersede(bucket, key)
            outcome = self._write(bucket, key, text, now)
            if isinstance(outcome, Rejection):
                refused.append(outcome)
            elif outcome:
                changed.add((bucket, key))
            if self.settings.mode is OwnershipMode.OFF:
                self._intents.want(bucket, key, text, Lasting.UNTIL_SEEN, now.mono)
        return self._written(changed, refused, now)

    def delete(self, bucket: str, key: str, now: Now) -> Written:
        """Delete a live record: a signed tombstone, or without signing its removal. What is announced comes back."""
        self._intents.supersede(bucket, key)
        outcome = self._erase(bucket, key, now)
        if self.settings.mode is OwnershipMode.OFF:
            self._intents.want(bucket, key, None, Lasting.UNTIL_SEEN, now.mono)
        if isinstance(outcome, Rejection):
            return self._written(set(), [outcome], now)
        return self._written({(bucket, key)} if outcome else set(), [], now)

    def delete_bucket(self, bucket: str, now: Now) -> Written:
        """Delete every live record of a bucket."""
        results = [self.delete(bucket, key, now) for key in self._records.bucket(bucket) or {}]
        changed = frozenset().union(*(result.changed for result in results))
        return Written(changed, tuple(refusal for result in results for refusal in result.refused))

    def persist(self, bucket: str, key: str, text: str, now: Now) -> Written:
        """EdgeVPN's ``Persist``: write, and look again every 5 s until it holds, 20 s at most."""
        written = self.add(bucket, {key: text}, now)
        self._intents.want(bucket, key, text, Lasting.WHILE_PERSISTING, now.mono)
        return written

    def persist_delete(self, bucket: str, key: str, now: Now) -> Written:
        """EdgeVPN's ``AnnounceDeleteBucketKey``: delete, and look again until it is gone, 20 s at most."""
        written = self.delete(bucket, key, now)
        self._intents.want(bucket, key, None, Lasting.WHILE_PERSISTING, now.mono)
        return written

    def announce(self, bucket: str, key: str, text: str, now: Now) -> Written:
        """EdgeVPN's ``AnnounceUpdate``: keep the record so until :meth:`retract`; another text replaces the first."""
        self._intents.want(bucket, key, text, Lasting.FOR_EVER, now.mono)
        outcome = self._write(bucket, key, text, now)
        if isinstance(outcome, Rejection):
            return self._written(set(), [outcome], now)
        return self._written({(bucket, key)} if outcome else set(), [], now)

    def retract(self, bucket: str, key: str) -> None:
        """Stop announcing; the record itself stays until it is deleted."""
        self._intents.retract(bucket, key)

    # --- network ---

    def receive(self, data: bytes, via: str, now: Now) -> Received:
        """Take a block (gzip) that ``via`` wrote: its author when known, else the neighbour who passed it on.

        Raises LedgerError (a PeerError) when it is malformed; then nothing has changed.
        """
        if self._is_repeat(data, via, now):
            return Received()
        block = unpack(data, self.settings.max_block_bytes, self._records.storage, self.settings.max_records)
        self.counters["surplus"] += block.surplus
        self._formats.observe(block.storage, now)
        if self.settings.mode is OwnershipMode.OFF:
            return self._adopt(block, via, now)
        merged = Merge(self._records, self._graveyard, self._around(now), self.settings).run(block.storage)
        self.counters.update(merged.counts)
        changed = frozenset(merged.changed)
        if changed:
            self._commit(changed, now)
            self._intents.touched(changed, now.mono)
        lack = lacks(block.storage, self._records.storage)
        self._note_lack(via, lack, now)
        self.counters["received"] += 1
        if not lack:
            if len(self._repeats) >= MAX_REPEATS and via not in self._repeats:
                self._repeats.pop(next(iter(self._repeats)))
            self._repeats[via] = (hash(data), self.revision, now.mono)
        return Received(changed, tuple(merged.rejected), bool(lack), merged.signed, merged.unsigned)

    def _is_repeat(self, data: bytes, via: str, now: Now) -> bool:
        """Whether the sender shows once more, byte for byte, what we have: EdgeVPN does so every ten seconds.

        Looked at in full again after a minute, because records expire as time passes.
        """
        known = self._repeats.get(via)
        if known is None or known[:2] != (hash(data), self.revision) or now.mono - known[2] > REPEATS_HOLD:
            self._repeats.pop(via, None)
            return False
        self.counters["repeated"] += 1
        self._pacing.shows_our_state(via, self.revision, now.mono)
        return True

    def peer_joined(self, peer: str, now: Now) -> None:
        """A peer subscribed to the room: show it our state soon."""
        if self._records.index > 0:
            self._pacing.joined(peer, self.revision, now.mono)

    def peer_left(self, peer: str) -> None:
        """A peer is gone: when it comes back it may know nothing."""
        self._pacing.left(peer)
        self._repeats.pop(peer, None)

    # --- time ---

    def tick(self, now: Now) -> None:
        """Do what is due: heartbeat, wishes, scrubbing, broadcasts. Cheap when nothing is."""
        if self._signer is not None and (self._next_heartbeat is None or now.mono >= self._next_heartbeat):
            self._beat(self._signer.peer_id, now)
        self._look_at_intents(now)
        if self._next_scrub is None:
            self._next_scrub = now.mono + self.settings.scrub_interval
        elif now.mono >= self._next_scrub:
            self._next_scrub = now.mono + self.settings.scrub_interval
            self._scrub(now)
        if self._pacing.due(now.mono):
            self._pacing.sent(now.mono)
            if self._records.index > 0:
                self.counters["broadcasts"] += 1
                self._effects.append(Broadcast(self._shown(now)))

    def next_wakeup(self) -> float | None:
        """Monotonic time of the next thing to do; None before the first :meth:`tick`."""
        timers = (self._next_heartbeat, self._next_scrub, self._intents.next_wakeup(), self._pacing.next_wakeup())
        return min((timer for timer in timers if timer is not None), default=None)

    def take_effects(self) -> list[Effect]:
        """What is to be done, in order: tell readers, keep on disk, broadcast."""
        broadcasts, self._effects = self._effects, []
        dirty = self._records.take_dirty()
        forgotten = self._graveyard.take_fresh()
        effects: list[Effect] = []
        if dirty:
            effects.append(Changed(dirty, self.revision))
        # Heartbeats are worth nothing after a restart, and would wear out the disk.
        lasting = sorted(where for where in dirty if where[0] != HEARTBEATS)
        if lasting or forgotten:
            stored = [(bucket, key, self._records.entry(bucket, key)) for bucket, key in lasting]
            rows = tuple(Row(bucket, key, entry) for bucket, key, entry in stored if entry is not None)
            removed = tuple((bucket, key) for bucket, key, entry in stored if entry is None)
            effects.append(Persist(rows, removed, forgotten))
        return effects + broadcasts

    # --- changes ---

    def _write(self, bucket: str, key: str, text: str, now: Now) -> bool | Rejection:
        return self._counted(self._writer.write(bucket, key, text, now, self._around(now)))

    def _erase(self, bucket: str, key: str, now: Now) -> bool | Rejection:
        return self._counted(self._writer.erase(bucket, key, now, self._around(now)))

    def _counted(self, outcome: bool | Rejection) -> bool | Rejection:
        self.counters["refused_local_writes"] += isinstance(outcome, Rejection)
        return outcome

    def _written(
        self, changed: set[RecordKey], refused: list[Rejection], now: Now, *, routine: bool = False
    ) -> Written:
        if changed:
            self._commit(frozenset(changed), now)
            self._pacing.changed(now.mono, routine=routine)
        return Written(frozenset(changed), tuple(refused))

    def _commit(self, changed: frozenset[RecordKey], now: Now, *, above: int = 0) -> None:
        self._records.commit(now.unix_ns, above)
        beats = {key: self._records.entry(HEARTBEATS, key) for bucket, key in changed if bucket == HEARTBEATS}
        self._observe_heartbeats({key: entry for key, entry in beats.items() if entry is not None}, now)

    def _observe_heartbeats(self, entries: Mapping[str, Entry], now: Now) -> None:
        for peer, entry in entries.items():
            self._liveness.observe(peer, entry, now)

    def _around(self, now: Now) -> Surroundings:
        """Liveness as it is before a merge begins: what a block brings cannot bend the judgement of its rest."""
        verdicts: dict[str, bool] = {}
        if self._spared_until is None:
            self._spared_until = now.mono + self.settings.ownership_ttl
        spared = self._spared if now.mono < self._spared_until else frozenset()

        def is_live(peer: str) -> bool:
            if peer not in verdicts:
                verdicts[peer] = peer in spared or self._liveness.is_live(peer, now)
            return verdicts[peer]

        return Surroundings(now.unix_ns, self.settings.ownership_ttl, is_live)

    # --- what happens by itself ---

    def _beat(self, peer: PeerId, now: Now) -> None:
        self._write(HEARTBEATS, peer, heartbeat_text(now.unix), now)
        self._written({(HEARTBEATS, peer)}, [], now, routine=True)
        size = len(self._liveness.live_peers(now))
        nominal = self.settings.heartbeat_interval
        if size > LARGE_NETWORK:
            nominal = max(nominal, min(nominal * size / LARGE_NETWORK, SLOWEST_HEARTBEAT))
        self._next_heartbeat = now.mono + nominal * self._rng.uniform(1.0, 1.5)

    def _look_at_intents(self, now: Now) -> None:
        changed: set[RecordKey] = set()
        for intent in self._intents.due(now.mono):
            where = (intent.bucket, intent.key)
            holds = self._records.value(*where) == intent.text
            if not holds:
                self.counters["reasserted"] += 1
                erase = intent.text is None
                outcome = self._erase(*where, now) if erase else self._write(*where, intent.text or "", now)
                if outcome is True:
                    changed.add(where)
            self._intents.looked(intent, holds=holds, mono=now.mono)
        self._written(changed, [], now)

    def _scrub(self, now: Now) -> None:
        """Prune old tombstones; the leader also takes away what expired."""
        old = old_tombstones(self._records, now.unix - self.settings.retention)
        for bucket, key, entry in old:
            self._records.remove(bucket, key)
            self._graveyard.bury(bucket, key, entry.version)
        if old:
            self.counters["pruned_tombstones"] += len(old)
            self._records.commit(now.unix_ns)
        present = self._liveness.live_peers(now, self.settings.offline_after)
        if present and self.peer_id is not None and leader(sorted(present)) == self.peer_id:
            dead = expired(self._records, self.settings.mode, self._around(now), present.__contains__)
            reaped = {where for where in dead if self._erase(*where, now) is True}
            self.counters["reaped"] += len(reaped)
            self._written(reaped, [], now)
        self._liveness.forget_older_than(self.settings.retention, now)

    def _adopt(self, block: Block, via: str, now: Now) -> Received:
        """Mode ``off``: take the whole block when it is higher, or equally high with a greater hash (spec 5.8)."""
        self.counters["received"] += 1
        ours = self._records.block
        unsigned = sum(entry.legacy for records in block.storage.values() for entry in records.values())
        signed = sum(map(len, block.storage.values())) - unsigned
        if signed:
            return self._take_signed(block, signed, unsigned, now)
        if (block.index, block.hash) <= (ours.index, ours.hash):
            height = (ours.index, ours.hash)
            lack = frozenset({height}) if (block.index, block.hash) != height else frozenset()
            self._note_lack(via, lack, now)
            return Received(behind=bool(lack), signed=signed, unsigned=unsigned)
        changed = self._records.adopt(block)
        self._observe_heartbeats(block.storage.get(HEARTBEATS, {}), now)
        self._intents.adopted({where: self._records.value(*where) for where in self._intents.wanted()}, now.mono)
        if self.peer_id is not None and self._records.value(HEARTBEATS, self.peer_id) is None:
            self._next_heartbeat = min(self._next_heartbeat or now.mono, now.mono + self._rng.uniform(0.1, 0.5))
        self._pacing.shows_our_state(via, self.revision, now.mono)
        return Received(changed, (), behind=False, signed=signed, unsigned=unsigned)

    def _take_signed(self, block: Block, signed: int, unsigned: int, now: Now) -> Received:
        """Mode ``off``, a block with signed records: merged, see :mod:`~provider_kairos.ledger.beside_signing`."""
        changed = frozenset(self._signed.merge(block, self._records, now.unix_ns))
        self.counters["full"] += self._signed.full
        self._signed.full = 0
        if changed:
            self._commit(changed, now, above=block.index)
            self._pacing.changed(now.mono, routine=True)  # who cannot read their block reads ours
            self._intents.touched(changed, now.mono)
        else:
            self._records.rise(block.index)
        return Received(changed, (), behind=False, signed=signed, unsigned=unsigned)

    def _shown(self, now: Now) -> bytes:
        """Our block as it is broadcast: in plain form when somebody may be there who reads no other."""
        if self.settings.mode is not OwnershipMode.OFF or not has_signed(self._records.block):
            return self._records.packed
        if not self._formats.others_unsigned(self.peer_id, now, self.settings.ownership_ttl):
            return self._records.packed
        return pack(plain(self._records.block))

    def _note_lack(self, via: str, lack: frozenset[object], now: Now) -> None:
        if lack:
            self._pacing.is_behind(via, lack, now.mono)
        else:
            self._pacing.shows_our_state(via, self.revision, now.mono)
