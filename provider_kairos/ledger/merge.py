"""Merging a received snapshot entry by entry, modes ``observe`` and ``enforce`` (spec/edgevpn.md 5.9, 15.3).

:mod:`provider_kairos.ledger.policy` judges, this applies: stores, reports, and notices what the sender lacks. Between
signing nodes the merge is commutative and idempotent, whatever order, loss or duplication the network brings, except
that of two live peers who claim the same owned record the first one seen stays (which is what ownership means).

:class:`Graveyard` remembers pruned tombstones, so that a peer who still has them, or the record that they deleted,
cannot bring either back (spec 15.2, 11).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

from provider_kairos.ledger.block import Storage
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import Forgotten, LedgerSettings, RecordKey, Rejection
from provider_kairos.ledger.policy import NANO, OWNERSHIP, Outcome, OwnershipMode, Surroundings, judge
from provider_kairos.ledger.records import Records, entry_size
from provider_kairos.ledger.signing import verify

__all__ = ["Graveyard", "Merge", "Merged", "lacks"]

MAX_REJECTIONS = 100
MAX_FORGOTTEN = 10_000
AUTHORS_SHARE = 0.1
"""What one author may hold of the whole ledger in open buckets; unsigned records have one author, nobody."""


class Graveyard:
    """Versions of pruned tombstones, the oldest forgotten first when there are too many."""

    def __init__(self) -> None:
        self._versions: OrderedDict[RecordKey, int] = OrderedDict()
        self._fresh: list[Forgotten] = []

    def bury(self, bucket: str, key: str, version: int) -> None:
        """Remember that everything up to ``version`` is gone."""
        if version <= self._versions.get((bucket, key), -1):
            return
        self._versions[bucket, key] = version
        self._versions.move_to_end((bucket, key))
        self._fresh.append(Forgotten(bucket, key, version))
        while len(self._versions) > MAX_FORGOTTEN:
            self._versions.popitem(last=False)

    def version(self, bucket: str, key: str) -> int:
        """The buried version; -1 when there is none."""
        return self._versions.get((bucket, key), -1)

    def take_fresh(self) -> tuple[Forgotten, ...]:
        """What was buried since the last call; for the disk."""
        fresh, self._fresh = tuple(self._fresh), []
        return fresh

    def __len__(self) -> int:
        return len(self._versions)


@dataclass(slots=True)
class Merged:
    """What a merge did; ``counts`` by outcome and oddity."""

    changed: set[RecordKey] = field(default_factory=set)
    rejected: list[Rejection] = field(default_factory=list)
    signed: int = 0
    unsigned: int = 0
    counts: dict[str, int] = field(default_factory=dict)

    def count(self, what: str) -> None:
        """One more of ``what``."""
        self.counts[what] = self.counts.get(what, 0) + 1


class Merge:
    """One merge of one snapshot into ``records``, judged within ``around``. The caller commits what changed."""

    def __init__(self, records: Records, graveyard: Graveyard, around: Surroundings, settings: LedgerSettings) -> None:
        self._records = records
        self._graveyard = graveyard
        self._around = around
        self._settings = settings
        self._merged = Merged()

    def run(self, incoming: Storage) -> Merged:
        """Judge every incoming entry and store what may be stored."""
        merged = self._merged
        for bucket, entries in incoming.items():
            for key, entry in entries.items():
                if entry.legacy:
                    merged.unsigned += 1
                else:
                    merged.signed += 1
                stored = self._records.entry(bucket, key)
                if entry == stored:
                    continue
                if stored is None and self._is_buried(bucket, key, entry):
                    merged.count("buried")
                else:
                    self._consider(bucket, key, entry, stored)
        return merged

    def _is_buried(self, bucket: str, key: str, entry: Entry) -> bool:
        """Whether an entry for an absent key is older than a tombstone that was here, or a tombstone past its time."""
        if entry.version <= self._graveyard.version(bucket, key):
            return True
        past = entry.deleted and entry.updated_at + self._settings.retention < self._around.unix_ns / NANO
        if past and bucket not in OWNERSHIP:
            self._graveyard.bury(bucket, key, entry.version)
        return past

    def _consider(self, bucket: str, key: str, entry: Entry, stored: Entry | None) -> None:
        merged = self._merged
        judgement = judge(bucket, key, entry, stored, self._around)
        if judgement.outcome is Outcome.STALE:
            merged.count("stale")
            return
        rejected = judgement.outcome is Outcome.REJECT
        keep = not rejected or self._settings.mode is OwnershipMode.OBSERVE
        account = entry.owner
        if keep and bucket not in OWNERSHIP and entry.sig and not verify(bucket, key, entry):
            account = ""
        if keep and not self._has_room(bucket, key, entry, stored, account):
            merged.count("full")
            return
        if rejected:
            merged.count("rejected")
            if len(merged.rejected) < MAX_REJECTIONS:
                merged.rejected.append(Rejection(bucket, key, entry.owner, judgement.reason, stored=keep))
        if not keep:
            return
        if account != entry.owner:
            merged.count("false_signatures_in_open_buckets")  # accepted: Go neither checks nor cares
        self._records.put(bucket, key, entry, account)
        merged.changed.add((bucket, key))

    def _has_room(self, bucket: str, key: str, entry: Entry, stored: Entry | None, account: str) -> bool:
        """Whether the ledger may grow by this entry.

        A quarter of it is kept for what only its owner may write, and in open buckets one author may hold a tenth:
        otherwise one member that runs wild could keep every new node out, and a block that outgrows the network's
        messages would silence us. In ``observe`` nobody need sign, so nobody is told from the others.
        """
        settings, records = self._settings, self._records
        share = 1.0 if bucket in OWNERSHIP else 0.75
        if stored is None and records.count >= settings.max_records * share:
            return False
        growth = entry_size(bucket, key, entry) - (entry_size(bucket, key, stored) if stored is not None else 0)
        if growth > 0 and records.size + growth > settings.max_ledger_bytes * share:
            return False
        if bucket in OWNERSHIP or settings.mode is OwnershipMode.OBSERVE:
            return True
        if stored is not None and growth <= 0 and records.account(bucket, key) == account:
            return True
        return (
            records.held[account] < settings.max_records * AUTHORS_SHARE
            and records.held_bytes[account] + entry_size(bucket, key, entry)
            <= settings.max_ledger_bytes * AUTHORS_SHARE
        )


def lacks(theirs: Storage, ours: Storage) -> frozenset[tuple[str, str, int]]:
    """What we have and they do not, or have older: ``(bucket, key, our version)``; the sender could use a broadcast.

    Tombstones that they do not have are no lack: they may have pruned them.
    """
    missing = set()
    for bucket, entries in ours.items():
        their_bucket = theirs.get(bucket, {})
        for key, entry in entries.items():
            their_entry = their_bucket.get(key)
            if their_entry == entry or (their_entry is None and entry.deleted):
                continue
            if their_entry is None or their_entry.version <= entry.version:
                missing.add((bucket, key, entry.version))
    return frozenset(missing)
