"""One lookup: from the nodes that we know to the ``k`` nodes nearest to a key (libp2p specs/kad-dht; Kademlia).

The caller asks whom :meth:`Lookup.take` names and reports what came back; the lookup is over when the ``k`` nearest
that can be reached have all answered, or nobody is left. Every answer may bring ``k`` peers and no more, what is
remembered and how many are asked is bounded, so that no set of liars keeps a lookup going. What is asked (who is
nearest, who provides) is the caller's business, and so is time.

Sans-IO, without a clock.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from enum import Enum

from provider_kairos.ids import PeerId
from provider_kairos.mesh.addresses import Endpoint
from provider_kairos.mesh.kad_table import K
from provider_kairos.mesh.kad_wire import peer_key

__all__ = ["ALPHA", "Lookup"]

ALPHA = 10
"""Questions on their way at once."""

MAX_HEARD = 256
MAX_ASKED = 96
"""Peers that are remembered, and asked, in one lookup; in a network of a million nodes about 40 are asked."""

MAX_ENDPOINTS = 8


class _State(Enum):
    HEARD = 0
    ASKED = 1
    ANSWERED = 2
    FAILED = 3


class Lookup:
    """The state of one lookup of ``key``."""

    def __init__(self, me: PeerId, key: int, *, k: int = K, alpha: int = ALPHA) -> None:
        self._me = me
        self._key = key
        self._k = k
        self._alpha = alpha
        self._order: list[tuple[int, PeerId]] = []  # distance, peer; the nearest first
        self._state: dict[PeerId, _State] = {}
        self._endpoints: dict[PeerId, tuple[Endpoint, ...]] = {}
        self._asked = 0
        self._waiting = 0

    def hear(self, peer: PeerId, endpoints: Iterable[Endpoint]) -> None:
        """Somebody to ask. The farthest falls out where there are too many."""
        if peer == self._me:
            return
        if peer in self._state:
            if self._state[peer] is _State.HEARD:
                self._endpoints[peer] = tuple(dict.fromkeys((*self._endpoints[peer], *endpoints)))[:MAX_ENDPOINTS]
            return
        if len(self._state) >= MAX_HEARD and not self._make_room(peer):
            return
        bisect.insort(self._order, (peer_key(peer) ^ self._key, peer))
        self._state[peer] = _State.HEARD
        self._endpoints[peer] = tuple(dict.fromkeys(endpoints))[:MAX_ENDPOINTS]

    def _make_room(self, peer: PeerId) -> bool:
        for position in range(len(self._order) - 1, -1, -1):
            distance, farthest = self._order[position]
            if self._state[farthest] is _State.HEARD:
                if distance <= peer_key(peer) ^ self._key:
                    return False
                del self._order[position], self._state[farthest], self._endpoints[farthest]
                return True
        return False

    def take(self) -> list[tuple[PeerId, tuple[Endpoint, ...]]]:
        """Whom to ask now, with the addresses that are known; each is given out once."""
        room = min(self._alpha - self._waiting, MAX_ASKED - self._asked)
        found: list[tuple[PeerId, tuple[Endpoint, ...]]] = []
        for peer in self._candidates():
            if len(found) >= room:
                break
            if self._state[peer] is _State.HEARD:
                found.append((peer, self._endpoints[peer]))
        for peer, _ in found:
            self._state[peer] = _State.ASKED
        self._asked += len(found)
        self._waiting += len(found)
        return found

    def answered(self, peer: PeerId, closer: Iterable[tuple[PeerId, tuple[Endpoint, ...]]]) -> None:
        """A peer that was taken answered."""
        self._settle(peer, _State.ANSWERED)
        for number, (each, endpoints) in enumerate(closer):
            if number > self._k:  # Go adds the key's own peer to the k nearest
                break
            self.hear(each, endpoints)

    def failed(self, peer: PeerId) -> None:
        """A peer that was taken could not be reached, or did not answer."""
        self._settle(peer, _State.FAILED)

    def _settle(self, peer: PeerId, state: _State) -> None:
        if self._state[peer] is _State.ASKED:
            self._state[peer] = state
            self._waiting -= 1

    def _candidates(self) -> list[PeerId]:
        """The k nearest that have not failed."""
        found = []
        for _, peer in self._order:
            if self._state[peer] is not _State.FAILED:
                found.append(peer)
                if len(found) == self._k:
                    break
        return found

    @property
    def over(self) -> bool:
        """The k nearest have answered, or nobody is left to ask. A question to somebody farther may be given up."""
        states = {self._state[peer] for peer in self._candidates()}
        return _State.ASKED not in states and (_State.HEARD not in states or self._asked >= MAX_ASKED)

    @property
    def asked(self) -> int:
        """How many were asked."""
        return self._asked

    def nearest(self) -> list[PeerId]:
        """The k nearest of those that answered, the nearest first."""
        answered = (peer for _, peer in self._order if self._state[peer] is _State.ANSWERED)
        return [peer for peer, _ in zip(answered, range(self._k), strict=False)]
