"""When to broadcast: at once on change, seldom when all show the same state (spec/edgevpn.md 5.6, 15.3).

EdgeVPN broadcasts the whole ledger every 5-15 s from every node. This paces like Trickle (RFC 6206) instead: changes and
newcomers are answered within fractions of a second, several in one tick become one broadcast, a neighbour that shows an
older state is answered (once per lack), and the periodic broadcast is left out when another one has just shown our
state, its gap doubling from ``sync_interval`` to ``quiet_interval``. Heartbeats are broadcasts anyhow, so a quiet
network of our own nodes sends little else.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from typing import TypeVar

from provider_kairos.ledger.model import LedgerSettings

__all__ = ["Pacing"]

ANSWER_DELAY = (0.1, 0.6)
"""Seconds, at random, before answering a neighbour that is behind: somebody else may be quicker."""

NEWCOMER_DELAY = (0.02, 0.1)
"""Seconds before the broadcast for a new subscriber."""

MAX_REMEMBERED = 512


_Value = TypeVar("_Value")


class Pacing:
    """The broadcast's timers; all times are monotonic seconds."""

    def __init__(self, settings: LedgerSettings, rng: random.Random) -> None:
        self._settings = settings
        self._rng = rng
        self._urgent: float | None = None  # a change, a newcomer
        self._answer: float | None = None  # somebody is behind; cancelled when another shows our state
        self._gap = settings.sync_interval
        self._periodic: float | None = None
        self._shown_since = False  # somebody else showed our state since the last periodic deadline
        self._sent = float("-inf")
        self._answered: OrderedDict[str, int] = OrderedDict()
        self._synced: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def changed(self, mono: float, *, routine: bool = False) -> None:
        """We changed something: tell everybody, together with what changes in the same instant.

        A ``routine`` change (a heartbeat) does not bring the quick repeats that guard a real one against loss: the next
        heartbeat repeats it.
        """
        due = max(mono + self._settings.coalesce, self._sent + self._settings.burst_gap)
        self._urgent = due if self._urgent is None else min(self._urgent, due)
        if not routine:
            self._gap = self._settings.sync_interval

    def joined(self, peer: str, revision: int, mono: float) -> None:
        """A peer subscribed. One that showed our present state a moment ago needs nothing (topics rotate)."""
        known = self._synced.get(peer)
        if known is not None and known[0] == revision and mono - known[1] < self._settings.quiet_interval:
            return
        due = mono + self._rng.uniform(*NEWCOMER_DELAY)
        self._urgent = due if self._urgent is None else min(self._urgent, due)

    def left(self, peer: str) -> None:
        """A peer is gone: when it returns it may have lost everything."""
        self._synced.pop(peer, None)
        self._answered.pop(peer, None)

    def shows_our_state(self, peer: str, revision: int, mono: float) -> None:
        """A broadcast showed nothing less than what we have."""
        self._answer = None
        self._shown_since = True
        self._answered.pop(peer, None)
        _remember(self._synced, peer, (revision, mono))

    def is_behind(self, peer: str, lack: object, mono: float) -> None:
        """A broadcast lacked something: answer it, but the same lack of the same peer once only.

        After that the periodic broadcast must do: the peer may be refusing the record for good.
        """
        self._synced.pop(peer, None)
        fingerprint = hash(lack)  # a lack may be the whole ledger; one per peer would be a lot to keep
        if self._answered.get(peer) == fingerprint:
            return
        _remember(self._answered, peer, fingerprint)
        due = max(mono + self._rng.uniform(*ANSWER_DELAY), self._sent + self._settings.burst_gap)
        self._answer = due if self._answer is None else min(self._answer, due)
        self._gap = self._settings.sync_interval

    def due(self, mono: float) -> bool:
        """Whether to broadcast now. When True the caller broadcasts and calls :meth:`sent`."""
        if self._periodic is None:
            self._arm(mono)
        if (self._urgent is not None and mono >= self._urgent) or (self._answer is not None and mono >= self._answer):
            return True
        assert self._periodic is not None
        if mono < self._periodic:
            return False
        if not self._shown_since:
            return True
        self._slow_down()
        self._arm(mono)
        return False

    def sent(self, mono: float) -> None:
        """A broadcast went out; it served every purpose."""
        self._urgent = self._answer = None
        self._sent = mono
        self._slow_down()
        self._arm(mono)

    def next_wakeup(self) -> float | None:
        """The earliest timer; None before the first :meth:`due`."""
        return min((t for t in (self._urgent, self._answer, self._periodic) if t is not None), default=None)

    def _slow_down(self) -> None:
        self._gap = min(self._gap * 2, self._settings.quiet_interval)

    def _arm(self, mono: float) -> None:
        self._shown_since = False
        self._periodic = mono + self._gap * self._rng.uniform(0.75, 1.25)


def _remember(table: OrderedDict[str, _Value], key: str, value: _Value) -> None:
    table[key] = value
    table.move_to_end(key)
    if len(table) > MAX_REMEMBERED:
        table.popitem(last=False)
