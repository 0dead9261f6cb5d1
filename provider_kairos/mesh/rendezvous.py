"""Where and when nodes of one network meet in a DHT (spec/edgevpn.md 6.2, 15.2 nos. 35 and 36).

The token gives a rendezvous for every epoch of ``otp.dht``; its SHA-256 is the key under which nodes announce
themselves. EdgeVPN announces and looks at its rounds only, under the current rendezvous and that of its last round
before: with the usual six-minute epochs and rounds up to 18 minutes apart a newcomer often finds nobody. So here

* every epoch is announced, the next one shortly before it begins, so that whoever computes the current rendezvous at
  any moment finds us, also with a clock that is a little ahead;
* the current and the previous epoch are looked into, the next one when it is announced, and while nobody of ours is
  connected also the older ones in which an EdgeVPN node may have announced itself last.

Rounds come at once at the start and soon again while we are alone, and at least every ``interval`` seconds otherwise;
a record lives a day or longer, so that renews it many times over. Sans-IO; asking the DHT is
:mod:`provider_kairos.mesh.dht`'s business.
"""

from __future__ import annotations

import hashlib
import math
import random
from dataclasses import dataclass

from provider_kairos.clock import Now
from provider_kairos.token.codec import NetworkToken
from provider_kairos.token.otp import rendezvous_at

__all__ = ["Point", "Rendezvous", "key_of"]

MOST_LEAD = 30.0
"""Seconds before an epoch at which it is announced; never more than a third of it."""

FIRST_PAUSE, LONGEST_PAUSE_ALONE = 2.0, 240.0
"""Seconds between rounds while nobody of ours is connected; they double.

Whoever comes new looks often and finds our record, so a node that is alone for long need not hurry.
"""

SLACK = 1.5
"""EdgeVPN's rounds are at most this many intervals apart."""

MAX_OLDER = 5
"""Epochs before the previous one that are looked into while we are alone."""

SHORTEST = 1.0
"""Seconds between rounds, whatever the clock and the token say."""


def key_of(rendezvous: str) -> bytes:
    """The DHT key of a rendezvous: the SHA-256 multihash of its text."""
    return b"\x12\x20" + hashlib.sha256(rendezvous.encode()).digest()


@dataclass(frozen=True, slots=True)
class Point:
    """One rendezvous to look into and, with ``provide``, to be announced at."""

    rendezvous: str
    provide: bool

    @property
    def key(self) -> bytes:
        """Its key in the DHT."""
        return key_of(self.rendezvous)


class Rendezvous:
    """The schedule of one node. ``interval`` is ``--discovery-interval`` in seconds."""

    def __init__(self, token: NetworkToken, interval: float, rng: random.Random) -> None:
        self._token = token
        self._interval = max(interval, SHORTEST)
        self._rng = rng
        self._epoch = float(token.dht.interval) if token.dht.key and token.dht.interval > 0 else 0.0
        self._lead = min(MOST_LEAD, self._epoch / 3)
        self._announced: set[str] = set()
        self._last: float | None = None
        self._pause = FIRST_PAUSE / 2
        self._spread = 1.0

    def points(self, now: Now, *, alone: bool) -> list[Point]:
        """Where to look in a round at ``now``; the most promising first, each once."""
        unix = now.unix_float
        found = {point.rendezvous: point for point in (self._current(now), *self._following(now))}
        older = (min(math.ceil(SLACK * self._interval / self._epoch), MAX_OLDER) if alone else 0) if self._epoch else -1
        for steps in range(1, older + 2):
            moment = unix - steps * self._epoch
            if moment >= 0:
                point = Point(rendezvous_at(self._token, moment), provide=False)
                found.setdefault(point.rendezvous, point)
        return list(found.values())

    def new_points(self, now: Now) -> list[Point]:
        """Those of them that have not been announced yet."""
        return [
            point for point in (self._current(now), *self._following(now)) if point.rendezvous not in self._announced
        ]

    def _current(self, now: Now) -> Point:
        return Point(rendezvous_at(self._token, now.unix_float), provide=True)

    def _following(self, now: Now) -> list[Point]:
        unix = now.unix_float
        if not self._epoch or self._epoch - unix % self._epoch > self._lead:
            return []
        return [Point(rendezvous_at(self._token, unix + self._epoch), provide=True)]

    def announced(self, point: Point) -> None:
        """Some node holds our record of ``point``."""
        self._announced.add(point.rendezvous)

    def hurry(self) -> None:
        """All points are due now: somebody may have forgotten us."""
        self._last = None

    def done(self, now: Now, *, alone: bool) -> None:
        """A full round is over."""
        self._last = now.mono
        self._announced &= {point.rendezvous for point in (self._current(now), *self._following(now))}
        self._pause = min(self._pause * 2, LONGEST_PAUSE_ALONE) if alone else FIRST_PAUSE / 2
        self._spread = self._rng.uniform(0.75, 1.0)

    def full_round_due(self, now: Now, *, alone: bool) -> bool:
        """Whether all points are due, not only the new ones."""
        return self._due_in(now, alone=alone) <= 0

    def wait(self, now: Now, *, alone: bool) -> float:
        """Seconds until there is something to do; at most 60, because clocks are set."""
        wait = self._due_in(now, alone=alone)
        if self._epoch:
            left = self._epoch - now.unix_float % self._epoch
            wait = min(wait, left - self._lead if left > self._lead else left)
        return min(max(wait, SHORTEST), 60.0) + 0.01

    def _due_in(self, now: Now, *, alone: bool) -> float:
        if self._last is None:
            return 0.0
        pause = min(self._pause, self._interval) if alone else self._interval
        return self._last + pause * self._spread - now.mono
