"""Provider records that a DHT server holds for others: who is to be found under a key (libp2p specs/kad-dht).

A record lives :data:`VALIDITY` seconds from its last announcement. Everything is bounded: records per key, per peer, in
all, and their bytes; where there are too many, the oldest goes. Records live in memory only: after a restart the
providers announce themselves anew within their own interval.

Sans-IO: times are ``now.mono``.
"""

from __future__ import annotations

from collections import Counter, OrderedDict

from provider_kairos.clock import Now
from provider_kairos.ids import PeerId
from provider_kairos.mesh.kad_wire import KadPeer

__all__ = ["Providers"]

VALIDITY = 24 * 3600.0
"""Seconds; Go keeps a record for 48 hours, but its addresses for 24, and without addresses it is of no use here."""

MAX_RECORDS = 4096
MAX_PER_KEY = 128
MAX_PER_PEER = 256
MAX_BYTES = 4 * 1024 * 1024
"""Of all addresses and keys together."""


class Providers:
    """Records by key; the oldest announcement first."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._records: OrderedDict[tuple[bytes, PeerId], tuple[float, tuple[bytes, ...]]] = OrderedDict()
        self._keys: dict[bytes, OrderedDict[PeerId, None]] = {}
        self._of_peer: Counter[PeerId] = Counter()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, key: bytes, provider: KadPeer, now: Now) -> None:
        """Take or renew a record."""
        self._drop(key, provider.peer)
        self.expire(now)
        if self._of_peer[provider.peer] >= MAX_PER_PEER:
            self.counters["dht_records_over_limit"] += 1
            self._drop(*next(each for each in self._records if each[1] == provider.peer))
        held = self._keys.get(key)
        if held is not None and len(held) >= MAX_PER_KEY:
            self.counters["dht_records_over_limit"] += 1
            self._drop(key, next(iter(held)))
        self._records[key, provider.peer] = (now.mono, provider.addresses)
        self._keys.setdefault(key, OrderedDict())[provider.peer] = None
        self._of_peer[provider.peer] += 1
        self._bytes += _size(key, provider.addresses)
        while len(self._records) > MAX_RECORDS or self._bytes > MAX_BYTES:
            self.counters["dht_records_over_limit"] += 1
            self._drop(*next(iter(self._records)))

    def of(self, key: bytes, now: Now) -> tuple[KadPeer, ...]:
        """Who provides a key; the newest announcement first."""
        self.expire(now)
        return tuple(KadPeer(peer, self._records[key, peer][1]) for peer in reversed(self._keys.get(key, {})))

    def expire(self, now: Now) -> None:
        """Forget what is too old."""
        while self._records:
            oldest = next(iter(self._records))
            if now.mono - self._records[oldest][0] < VALIDITY:
                return
            self._drop(*oldest)

    def _drop(self, key: bytes, peer: PeerId) -> None:
        record = self._records.pop((key, peer), None)
        if record is None:
            return
        held = self._keys[key]
        del held[peer]
        if not held:
            del self._keys[key]
        self._of_peer[peer] -= 1
        if not self._of_peer[peer]:
            del self._of_peer[peer]
        self._bytes -= _size(key, record[1])


def _size(key: bytes, addresses: tuple[bytes, ...]) -> int:
    return len(key) + sum(map(len, addresses))
