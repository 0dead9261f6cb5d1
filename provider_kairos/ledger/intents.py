"""What this node wants the ledger to say: re-asserted until it holds (spec/edgevpn.md 5.6, 5.7, 15.3).

EdgeVPN's loops poll: ``AnnounceUpdate`` for ever, ``Persist`` and the announced deletes every 5 s for at most 20 s. Here
the same wishes are kept in a table and looked at as soon as a foreign block may have undone one, with a growing gap so
that two nodes which want different things do not shout at each other. In ``off`` mode a plain write is kept too, until
an adopted block shows it: there a concurrent block may have displaced it for good.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum

from provider_kairos.ledger.model import RecordKey

__all__ = ["Intent", "Intents", "Lasting"]

PERSIST_INTERVAL = 5.0
PERSIST_FOR = 20.0
PLAIN_WRITE_FOR = 60.0
FIRST_GAP = 0.1


class Lasting(Enum):
    """How long a wish lasts."""

    UNTIL_SEEN = "a plain write in mode off: until an adopted block shows it"
    WHILE_PERSISTING = "until a later look finds it, 20 s at most"
    FOR_EVER = "until it is retracted"


@dataclass(slots=True)
class Intent:
    """``text`` is the JSON text wanted; None wants the record to be gone. Times are monotonic seconds."""

    bucket: str
    key: str
    text: str | None
    lasting: Lasting
    look_at: float
    ends: float
    gap: float = FIRST_GAP


class Intents:
    """The table of wishes. Announced ones and passing ones about the same record live side by side."""

    def __init__(self, announce_interval: float, rng: random.Random, *, until_seen: bool) -> None:
        """``until_seen``: mode ``off``, in which nothing has arrived before an adopted block shows it."""
        self._announce_interval = announce_interval
        self._rng = rng
        self._until_seen = until_seen
        self._table: dict[tuple[RecordKey, bool], Intent] = {}

    def want(self, bucket: str, key: str, text: str | None, lasting: Lasting, mono: float) -> None:
        """Put a wish down; the caller has just written it once, so the next look is a gap away."""
        ends = {
            Lasting.UNTIL_SEEN: mono + PLAIN_WRITE_FOR,
            Lasting.WHILE_PERSISTING: mono + PERSIST_FOR,
            Lasting.FOR_EVER: float("inf"),
        }[lasting]
        look_at = {
            Lasting.UNTIL_SEEN: float("inf"),  # only when a block was adopted
            Lasting.WHILE_PERSISTING: mono + PERSIST_INTERVAL * self._rng.uniform(0.5, 1.5),
            Lasting.FOR_EVER: mono + self._announce_interval * self._rng.uniform(0.5, 1.5),
        }[lasting]
        self._table[(bucket, key), lasting is Lasting.FOR_EVER] = Intent(bucket, key, text, lasting, look_at, ends)

    def retract(self, bucket: str, key: str) -> None:
        """Stop announcing a record."""
        self._table.pop(((bucket, key), True), None)

    def supersede(self, bucket: str, key: str) -> None:
        """A newer local write replaces a passing wish about the same record."""
        self._table.pop(((bucket, key), False), None)

    def announced(self) -> dict[RecordKey, str | None]:
        """What is announced at present."""
        return {where: intent.text for (where, lasting), intent in self._table.items() if lasting}

    def touched(self, keys: frozenset[RecordKey], mono: float) -> None:
        """Foreign data changed these records: look at the wishes about them soon."""
        for intent in self._about(keys):
            intent.look_at = min(intent.look_at, mono + intent.gap * self._rng.uniform(0.5, 1.5))

    def adopted(self, values: dict[RecordKey, str | None], mono: float) -> None:
        """A foreign block was adopted whole (mode ``off``). ``values`` are those it has for our keys.

        Plain writes that it shows have arrived; everything else that it lost is due soon.
        """
        for slot, intent in list(self._table.items()):
            if values.get(slot[0]) == intent.text:
                if intent.lasting is Lasting.UNTIL_SEEN:
                    del self._table[slot]
            else:
                intent.look_at = min(intent.look_at, mono + intent.gap * self._rng.uniform(0.5, 1.5))

    def wanted(self) -> set[RecordKey]:
        """Every record that some wish is about."""
        return {where for where, _ in self._table}

    def due(self, mono: float) -> list[Intent]:
        """Wishes to look at now; those past their end are dropped."""
        for slot in [slot for slot, intent in self._table.items() if mono >= intent.ends]:
            del self._table[slot]
        return [intent for intent in self._table.values() if mono >= intent.look_at]

    def looked(self, intent: Intent, *, holds: bool, mono: float) -> None:
        """A wish was looked at: ``holds`` when nothing had to be written. Sets the next look."""
        if intent.lasting is Lasting.WHILE_PERSISTING:
            if holds:
                self.supersede(intent.bucket, intent.key)
                if self._until_seen:
                    self.want(intent.bucket, intent.key, intent.text, Lasting.UNTIL_SEEN, mono)
                return
            intent.look_at = mono + PERSIST_INTERVAL * self._rng.uniform(0.5, 1.5)
        elif intent.lasting is Lasting.UNTIL_SEEN:
            intent.look_at = float("inf")
        else:
            intent.look_at = mono + self._announce_interval * self._rng.uniform(0.5, 1.5)
        intent.gap = FIRST_GAP if holds else min(intent.gap * 2, self._announce_interval)

    def next_wakeup(self) -> float | None:
        """The earliest look."""
        earliest = min((min(intent.look_at, intent.ends) for intent in self._table.values()), default=float("inf"))
        return None if earliest == float("inf") else earliest

    def _about(self, keys: frozenset[RecordKey]) -> list[Intent]:
        if not self._table:
            return []
        return [intent for (where, _), intent in self._table.items() if where in keys]
