"""The stored snapshot: records, revision, dirty keys, and the block that shows them (spec/edgevpn.md 5.1, 5.2).

Keeps no rules: whoever calls has decided. Blocks, hashes and packed bytes are made when somebody asks and kept until
the next change, so that an idle node does not render anything twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

from provider_kairos.ledger.block import Block, Storage, block_hash, genesis, go_timestamp, pack
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import RecordKey

__all__ = ["Records", "entry_size"]


class Records:
    """bucket -> key -> entry, with the block's header around it."""

    def __init__(self, block: Block | None = None) -> None:
        base = block or genesis(0)
        self.storage: Storage = {name: dict(bucket) for name, bucket in base.storage.items()}
        self.revision = base.index
        self.count = sum(map(len, self.storage.values()))
        self.size = 0
        # Per author (see Merge): how many records, how many bytes; and on whose account each record is.
        self.held: Counter[str] = Counter()
        self.held_bytes: Counter[str] = Counter()
        self._accounts: dict[RecordKey, str] = {}
        self._count_anew()
        self._block: Block = replace(base, storage=_snapshot(self.storage))
        self._index = base.index
        self._changed_ns: int | None = None
        self._packed: bytes | None = None
        self._dirty: set[RecordKey] = set()

    # reading

    def entry(self, bucket: str, key: str) -> Entry | None:
        """The stored entry, tombstones included."""
        records = self.storage.get(bucket)
        return records.get(key) if records is not None else None

    def value(self, bucket: str, key: str) -> str | None:
        """The JSON text under a key; None when it is absent or a tombstone."""
        entry = self.entry(bucket, key)
        return None if entry is None or entry.deleted else entry.value

    def bucket(self, name: str) -> dict[str, str] | None:
        """The live records of a bucket; None when there is none."""
        live = {key: entry.value for key, entry in self.storage.get(name, {}).items() if not entry.deleted}
        return live or None

    def __iter__(self) -> Iterator[tuple[str, str, Entry]]:
        for name, records in self.storage.items():
            for key, entry in records.items():
                yield name, key, entry

    # writing

    def put(self, bucket: str, key: str, entry: Entry, account: str | None = None) -> None:
        """Store an entry. ``account`` is who answers for it when that is not its owner."""
        records = self.storage.setdefault(bucket, {})
        old = records.get(key)
        self.count += old is None
        if old is not None:
            self._uncharge(bucket, key, old)
        self._charge(bucket, key, entry, entry.owner if account is None else account)
        records[key] = entry
        self._dirty.add((bucket, key))

    def remove(self, bucket: str, key: str) -> None:
        """Take a record away physically, and its bucket when that is empty then."""
        records = self.storage[bucket]
        self._uncharge(bucket, key, records.pop(key))
        if not records:
            del self.storage[bucket]
        self.count -= 1
        self._dirty.add((bucket, key))

    def commit(self, unix_ns: int, above: int = 0) -> None:
        """Close a group of changes: one block higher (and higher than ``above``), one revision later."""
        self._index = max(self._index, above) + 1
        self.revision += 1
        self._changed_ns = unix_ns
        self._packed = None

    def adopt(self, block: Block) -> frozenset[RecordKey]:
        """Replace everything by a received block (mode ``off``); returns the keys that look different."""
        changed = set()
        for name in self.storage.keys() | block.storage.keys():
            ours, theirs = self.storage.get(name, {}), block.storage.get(name, {})
            changed |= {(name, key) for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
        self.storage = {name: dict(bucket) for name, bucket in block.storage.items()}
        self.count = sum(map(len, self.storage.values()))
        self._count_anew()
        self._block, self._index = block, block.index
        self._changed_ns = self._packed = None
        self.revision += 1
        self._dirty |= changed
        return frozenset(changed)

    def account(self, bucket: str, key: str) -> str | None:
        """Who answers for a record."""
        return self._accounts.get((bucket, key))

    def _charge(self, bucket: str, key: str, entry: Entry, account: str) -> None:
        size = entry_size(bucket, key, entry)
        self._accounts[bucket, key] = account
        self.size += size
        self.held[account] += 1
        self.held_bytes[account] += size

    def _uncharge(self, bucket: str, key: str, entry: Entry) -> None:
        size, account = entry_size(bucket, key, entry), self._accounts.pop((bucket, key))
        self.size -= size
        self.held[account] -= 1
        self.held_bytes[account] -= size
        if not self.held[account]:
            del self.held[account], self.held_bytes[account]

    def _count_anew(self) -> None:
        self.size = 0
        self.held.clear()
        self.held_bytes.clear()
        self._accounts.clear()
        for bucket, key, entry in self:
            self._charge(bucket, key, entry, entry.owner)

    def take_dirty(self) -> frozenset[RecordKey]:
        """The records touched since the last call."""
        dirty = frozenset(self._dirty)
        self._dirty.clear()
        return dirty

    # showing

    @property
    def index(self) -> int:
        """Height of the present block."""
        return self._index

    @property
    def block(self) -> Block:
        """The present block; its storage is a snapshot that later changes leave alone."""
        if self._changed_ns is not None:
            fresh = Block(self._index, go_timestamp(self._changed_ns), _snapshot(self.storage), "", self._block.hash)
            self._block = replace(fresh, hash=block_hash(fresh))
            self._changed_ns = None
        return self._block

    def rise(self, index: int) -> None:
        """Be at least as high as ``index``, with the same records: others in mode ``off`` adopt what is higher."""
        if index > self._index:
            self._index = index
            self._block = replace(self.block, index=index)
            self._packed = None

    @property
    def packed(self) -> bytes:
        """The present block as it is broadcast."""
        if self._packed is None:
            self._packed = pack(self.block)
        return self._packed


def entry_size(bucket: str, key: str, entry: Entry) -> int:
    """About what a record adds to a block, in bytes of its text."""
    return len(bucket) + len(key) + len(entry.value) + len(entry.owner) + 200


def _snapshot(storage: Storage) -> Storage:
    return {name: dict(bucket) for name, bucket in storage.items()}
