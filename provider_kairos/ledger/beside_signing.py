"""Mode ``off`` beside nodes that sign (spec/edgevpn.md 5.8, 5.9, 15.3).

EdgeVPN in ``off`` adopts the higher block whole, whoever wrote it. From a signing node that is wrong twice: its block
lacks every unsigned record, because it refuses them, so adopting it deletes what the unsigned nodes say until they say
it again; and its signed records, passed on, make our block unreadable for EdgeVPN before v0.35. So a block with signed
records is merged here record by record, newest version first, and where other unsigned nodes are in the network our
block shows plain values only (:func:`plain`). Old nodes thus read everybody through us; signing nodes still refuse what
is unsigned, which only their operator can change.

Sans-IO and without timers; what a change of the ledger entails is the engine's.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from provider_kairos.ledger.block import Block
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import LedgerSettings, RecordKey
from provider_kairos.ledger.policy import is_absurd_version
from provider_kairos.ledger.records import Records, entry_size

__all__ = ["SignedRecords", "has_signed", "plain"]

MAX_REMEMBERED = 10_000


def has_signed(block: Block) -> bool:
    """Whether any record of a block is in the signed form."""
    return any(not entry.legacy for records in block.storage.values() for entry in records.values())


def plain(block: Block) -> Block:
    """The same block as a node that knows no signatures would write it: values alone, tombstones left out."""
    storage = {
        name: {
            key: entry if entry.legacy else Entry(entry.value) for key, entry in records.items() if not entry.deleted
        }
        for name, records in block.storage.items()
    }
    return replace(block, storage={name: records for name, records in storage.items() if records})


class SignedRecords:
    """Which version of each signed record was taken last, so that an unsigned write after it is not undone by it.

    ``ourselves``: what we once signed ourselves is older than whatever we hold now.
    """

    def __init__(self, ourselves: str, settings: LedgerSettings) -> None:
        self.full = 0
        """Records that were left out because the ledger has no room for them."""
        self._ourselves = ourselves
        self._settings = settings
        self._taken: OrderedDict[RecordKey, int] = OrderedDict()

    def merge(self, block: Block, records: Records, unix_ns: int) -> set[RecordKey]:
        """Take what is newer; returns the records that changed. The caller commits.

        A record that is absent here is taken in the version that was taken before, too: its author did not delete it.
        Unsigned records of such a block come from a node in ``off`` that adopted a signed one: there the height decides.
        """
        higher = block.index > records.index
        changed: set[RecordKey] = set()
        for bucket, entries in block.storage.items():
            for key, entry in entries.items():
                stored = records.entry(bucket, key)
                wanted = higher if entry.legacy else self._is_newer(bucket, key, entry, stored, unix_ns)
                if not wanted or entry == stored:
                    continue
                if not entry.deleted:
                    if not self._has_room(bucket, key, entry, stored, records):
                        self.full += 1
                        continue
                    records.put(bucket, key, entry)
                elif stored is not None:
                    records.remove(bucket, key)
                else:
                    continue
                changed.add((bucket, key))
        return changed

    def _is_newer(self, bucket: str, key: str, entry: Entry, stored: Entry | None, unix_ns: int) -> bool:
        if is_absurd_version(entry.version, unix_ns) or (entry.owner == self._ourselves and stored is not None):
            return False
        taken = self._taken.get((bucket, key), -1)
        if entry.version < taken or (entry.version == taken and stored is not None):
            return False
        self._taken[bucket, key] = entry.version
        self._taken.move_to_end((bucket, key))
        if len(self._taken) > MAX_REMEMBERED:
            self._taken.popitem(last=False)
        return True

    def _has_room(self, bucket: str, key: str, entry: Entry, stored: Entry | None, records: Records) -> bool:
        """A block that is adopted replaces everything; what is merged adds up, and has to end somewhere."""
        if stored is None and records.count >= self._settings.max_records:
            return False
        growth = entry_size(bucket, key, entry) - (entry_size(bucket, key, stored) if stored is not None else 0)
        return growth <= 0 or records.size + growth <= self._settings.max_ledger_bytes
