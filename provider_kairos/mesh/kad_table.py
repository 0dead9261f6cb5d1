"""The routing table: which DHT servers we know, few far away and many close to us (libp2p specs/kad-dht).

A contact is a peer that answered a query. It lies in the bucket of the bits that its key has in common with ours; a
bucket holds ``k``. A full one takes a newcomer in place of a contact that has not answered for long. Of one block of
public addresses only few are taken, so that nobody with one machine fills the table; private addresses, where a whole
internet of its own may be behind one block, and contacts that the user named, are not counted.

Sans-IO: times are ``now.mono``.
"""

from __future__ import annotations

import heapq
import ipaddress
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from provider_kairos.clock import Now
from provider_kairos.ids import PeerId
from provider_kairos.mesh.addresses import Endpoint
from provider_kairos.mesh.kad_wire import peer_key

__all__ = ["K", "Contact", "Table", "block_of"]

K = 20
"""Size of a bucket, and how many nodes hold a record."""

STALE = 1200.0
"""Seconds without an answer after which a contact gives way to a new one."""

MAX_CONTACTS = 512
MAX_ENDPOINTS = 8
MAX_PER_BLOCK, MAX_PER_BLOCK_AND_BUCKET = 3, 2
"""Contacts of one block of public addresses; the public DHT's own limits."""

KEY_BITS = 256


@dataclass(slots=True)
class Contact:
    """A DHT server. ``answered_at`` is when it last answered us."""

    peer: PeerId
    key: int
    endpoints: tuple[Endpoint, ...]
    answered_at: float
    block: str
    trusted: bool


def block_of(endpoints: Iterable[Endpoint]) -> str:
    """The block of public addresses that a peer belongs to: a /16 of IPv4, a /32 of IPv6; empty when it has none."""
    for endpoint in endpoints:
        address = endpoint.ip
        if address is not None and address.is_global:
            prefix = 16 if address.version == 4 else 32
            return str(ipaddress.ip_network((address, prefix), strict=False))
    return ""


class Table:
    """Contacts in buckets around ``me``."""

    def __init__(self, me: PeerId, k: int = K) -> None:
        self.k = k
        self._me = peer_key(me)
        self._contacts: dict[PeerId, Contact] = {}
        self._buckets: dict[int, dict[PeerId, Contact]] = {}
        self._blocks: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._contacts)

    def __contains__(self, peer: object) -> bool:
        return peer in self._contacts

    def get(self, peer: PeerId) -> Contact | None:
        """A contact by its peer ID."""
        return self._contacts.get(peer)

    def bucket_of(self, key: int) -> int:
        """How many leading bits a key has in common with ours; 256 is ourselves."""
        return KEY_BITS - (self._me ^ key).bit_length()

    @property
    def depth(self) -> int:
        """The fullest knowledge around us: the highest bucket that holds anybody."""
        return max((bucket for bucket, held in self._buckets.items() if held), default=0)

    def wants(self, peer: PeerId, now: Now) -> bool:
        """Whether it is worth asking an unknown peer if it is a DHT server."""
        key = peer_key(peer)
        if peer in self._contacts or key == self._me:
            return False
        bucket = self._buckets.get(self.bucket_of(key), {})
        return len(bucket) < self.k or self._oldest(bucket.values(), now) is not None

    def answered(self, peer: PeerId, endpoints: Iterable[Endpoint], now: Now, *, trusted: bool = False) -> bool:
        """A peer answered a query: note it, or take it in. False when there is no place for it."""
        known = self._contacts.get(peer)
        if known is not None:
            known.answered_at = now.mono
            known.trusted |= trusted
            known.endpoints = tuple(dict.fromkeys((*endpoints, *known.endpoints)))[:MAX_ENDPOINTS]
            return True
        key = peer_key(peer)
        if key == self._me:
            return False
        kept = tuple(dict.fromkeys(endpoints))[:MAX_ENDPOINTS]
        block = "" if trusted else block_of(kept)
        number = self.bucket_of(key)
        bucket = self._buckets.setdefault(number, {})
        if block and (
            self._blocks[block] >= MAX_PER_BLOCK
            or sum(each.block == block for each in bucket.values()) >= MAX_PER_BLOCK_AND_BUCKET
        ):
            return False
        if len(bucket) >= self.k or len(self._contacts) >= MAX_CONTACTS:
            stale = self._oldest(bucket.values(), now)
            if stale is None:
                return False
            self.remove(stale.peer)
        contact = Contact(peer, key, kept, now.mono, block, trusted)
        self._contacts[peer] = bucket[peer] = contact
        if block:
            self._blocks[block] += 1
        return True

    def remove(self, peer: PeerId) -> None:
        """A contact does not answer."""
        contact = self._contacts.pop(peer, None)
        if contact is None:
            return
        del self._buckets[self.bucket_of(contact.key)][peer]
        if contact.block:
            self._blocks[contact.block] -= 1
            if not self._blocks[contact.block]:
                del self._blocks[contact.block]

    def nearest(self, key: int, count: int = K, *, without: Iterable[PeerId] = ()) -> list[Contact]:
        """The contacts nearest to a key, the nearest first."""
        left_out = set(without)
        candidates = (each for each in self._contacts.values() if each.peer not in left_out)
        return heapq.nsmallest(count, candidates, key=lambda each: each.key ^ key)

    def silent(self, now: Now, seconds: float) -> list[Contact]:
        """Contacts that have not answered for so long, the longest first."""
        found = [each for each in self._contacts.values() if now.mono - each.answered_at >= seconds]
        return sorted(found, key=lambda each: each.answered_at)

    def _oldest(self, contacts: Iterable[Contact], now: Now) -> Contact | None:
        """The contact that may be given up for a newcomer."""
        stale = [each for each in contacts if not each.trusted and now.mono - each.answered_at >= STALE]
        return min(stale, key=lambda each: each.answered_at, default=None)
