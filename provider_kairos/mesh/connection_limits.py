"""How many connections there are, and which go first when there are too many (spec/edgevpn.md 6.4).

Above the high mark a keeper closes connections down to the low one: those of strangers before those of peers on our
topic, of the most crowded address first, idle ones before others, the youngest first, none within its grace. At the
hard limit a newcomer takes the place of the oldest stranger, so that somebody who fills all places cannot keep members
out. Members (peers that the ledger knows, bootstrap peers) and exempt addresses are never closed. Values and choices
only; :mod:`provider_kairos.mesh.swarm` opens, counts and closes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Generic, TypeVar

__all__ = ["Candidate", "ConnectionLimits", "ConnectionStats", "Standing", "to_make_room", "to_trim"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Marks and limits; ``grace`` in seconds.

    ``most`` is the hard limit of all connections, ``most_per_address`` that of inbound ones from one address whose peers
    nobody knows, ``most_per_peer`` that of one peer. ``exempt`` names addresses and networks without such limits.
    """

    low: int = 160
    high: int = 192
    grace: float = 60.0
    most: int = 512
    most_per_address: int = 32
    most_per_peer: int = 4
    exempt: tuple[str, ...] = ()


class Standing(IntEnum):
    """What a peer is to us; lower ones are closed first."""

    STRANGER = 0
    ON_TOPIC = 1
    """it says that it is in our ledger room, which anybody can say"""
    MEMBER = 2


@dataclass(frozen=True, slots=True)
class Candidate(Generic[T]):
    """One connection as the choice sees it. ``age`` in seconds, ``host`` the address without port."""

    connection: T
    standing: Standing
    host: str
    age: float
    outbound: bool
    idle: bool
    exempt: bool = False

    @property
    def spared(self) -> bool:
        """Never closed."""
        return self.exempt or self.standing is Standing.MEMBER


@dataclass(frozen=True, slots=True)
class ConnectionStats:
    """How full it is; for ``status``."""

    open: int
    inbound: int
    members: int
    known: int
    limits: ConnectionLimits


def to_trim(candidates: Sequence[Candidate[T]], limits: ConnectionLimits) -> list[T]:
    """What to close now: nothing up to the high mark, else as many as it takes to the low one, where that is possible."""
    excess = len(candidates) - limits.low
    if len(candidates) <= limits.high:
        return []
    left = [each for each in candidates if not each.spared and each.age >= limits.grace]
    crowd = Counter(each.host for each in candidates if not each.spared)
    chosen: list[T] = []
    while left and len(chosen) < excess:
        worst = min(left, key=lambda each: (each.standing, -crowd[each.host], not each.idle, each.outbound, each.age))
        left.remove(worst)
        crowd[worst.host] -= 1
        chosen.append(worst.connection)
    return chosen


def to_make_room(candidates: Iterable[Candidate[T]]) -> T | None:
    """What a newcomer replaces when every place is taken, whatever its grace; None when all are spared."""
    left = [each for each in candidates if not each.spared]
    if not left:
        return None
    crowd = Counter(each.host for each in left)
    return min(left, key=lambda each: (each.standing, -crowd[each.host], not each.idle, -each.age)).connection
