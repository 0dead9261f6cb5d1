"""How much of what strangers say in the public room is looked at.

A signature costs 0.4 ms per trusted key to check, and anybody with the token may talk. What is over the limit is
dropped and counted; an honest node says it again.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass, field

from provider_kairos.ids import PeerId

__all__ = ["MAX_KEYS", "Attention", "UsedSignatures"]

MAX_KEYS = 32
"""Trusted keys that are tried; more are named and left out."""

PER_SECOND = 100.0
"""Signature checks in all: 4 % of a core."""

PER_NEIGHBOUR = 25.0
"""Signature checks per second for what one neighbour passes on: it may not use up what is there for all."""

BURST = 5.0
"""Seconds of either that may come at once."""

AUTHOR_PAUSE = 2.0
"""Seconds between two challenges of one author that are looked at."""

MAX_REMEMBERED = 1024


@dataclass(slots=True)
class _Bucket:
    rate: float
    level: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.level, self.at = self.rate * BURST, 0.0

    def has(self, cost: float, mono: float) -> bool:
        self.level = min(self.rate * BURST, self.level + max(0.0, mono - self.at) * self.rate)
        self.at = mono
        return self.level >= cost


class Attention:
    """Token buckets: one for all, one per neighbour; and a pause per author."""

    def __init__(self) -> None:
        self._all = _Bucket(PER_SECOND)
        self._neighbours: OrderedDict[PeerId, _Bucket] = OrderedDict()
        self._authors: OrderedDict[PeerId, float] = OrderedDict()

    def spend(self, author: PeerId, via: PeerId, checks: int, mono: float) -> bool:
        """Whether ``checks`` signatures may be checked now for a challenge of ``author`` that ``via`` delivered."""
        last = self._authors.get(author)
        if last is not None and mono - last < AUTHOR_PAUSE:
            return False
        neighbour = self._neighbours.setdefault(via, _Bucket(PER_NEIGHBOUR))
        self._neighbours.move_to_end(via)
        if len(self._neighbours) > MAX_REMEMBERED:
            self._neighbours.popitem(last=False)
        if not (neighbour.has(checks, mono) and self._all.has(checks, mono)):
            return False
        neighbour.level -= checks
        self._all.level -= checks
        self._authors[author] = mono
        self._authors.move_to_end(author)
        if len(self._authors) > MAX_REMEMBERED:
            self._authors.popitem(last=False)
        return True


class UsedSignatures:
    """Whose each signature is: the author that it was first heard of.

    Two tables, so that what strangers make up does not push out what trusted peers have said.
    """

    def __init__(self) -> None:
        self._tables: tuple[OrderedDict[bytes, PeerId], ...] = (OrderedDict(), OrderedDict())

    def first(self, signature: str, author: PeerId, *, good: bool) -> PeerId:
        """Who said it first; ``author`` when nobody did. ``good``: it need not give way to what strangers make up."""
        key = _key(signature)
        found = next((table[key] for table in self._tables if key in table), None)
        if found is None or (good and key not in self._tables[0]):
            self._keep(key, found or author, good=good)
        return found or author

    def belongs(self, signature: str, author: PeerId) -> None:
        """It has been proven to be the author's, whoever said it first."""
        self._keep(_key(signature), author, good=True)

    def _keep(self, key: bytes, author: PeerId, *, good: bool) -> None:
        table = self._tables[not good]
        table[key] = author
        table.move_to_end(key)
        if len(table) > MAX_REMEMBERED:
            table.popitem(last=False)


def _key(signature: str) -> bytes:
    return hashlib.sha256(signature.encode("utf-8", "replace")).digest()
