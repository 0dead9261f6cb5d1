"""What peers do wrong: counted by kind, logged once per peer, kind and minute (nothing here ends anything)."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict

import trio

from provider_kairos.ids import PeerId

__all__ = ["Complaints"]

log = logging.getLogger(__name__)

EVERY = 60.0
MAX_REMEMBERED = 1024


class Complaints:
    """Counts and logs."""

    def __init__(self) -> None:
        self.counters: Counter[str] = Counter()
        self._said: OrderedDict[tuple[PeerId, str], float] = OrderedDict()

    def complain(self, peer: PeerId, kind: str, detail: str) -> None:
        """``kind`` is a stable word, ``detail`` a sentence without secrets."""
        self.counters[kind] += 1
        self.say(peer, kind, detail)

    def say(self, peer: PeerId, kind: str, detail: str) -> None:
        """The same for what somebody else has counted."""
        if self.due(peer, kind):
            log.warning("peer %s: %s: %s", peer, kind, detail)

    def due(self, peer: PeerId, kind: str) -> bool:
        """Whether something about ``peer`` may be logged now; at most once a minute."""
        now = trio.current_time()
        last = self._said.get((peer, kind))
        if last is not None and now - last < EVERY:
            return False
        self._said[peer, kind] = now
        self._said.move_to_end((peer, kind))
        if len(self._said) > MAX_REMEMBERED:
            self._said.popitem(last=False)
        return True
