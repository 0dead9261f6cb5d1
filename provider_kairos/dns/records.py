"""The records of the ledger's ``dns`` bucket: read, bounded, and found by name.

Specification: spec/edgevpn.md 8.6 and 10. A key is a regular expression, its value a JSON object from the number of a
record type to zone-file text. EdgeVPN takes any of several patterns that match, by chance; here the most specific one
wins, everywhere alike (docs/decisions/0013).

Peers write these records: what cannot be read is counted and left out, each author gets a share of the room, and a
pattern that takes too long for a name does not match it.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import Any, Final

from provider_kairos.dns.pattern import MAX_STEPS, Pattern, TooCostlyError, compile_pattern
from provider_kairos.dns.pattern_syntax import PatternError

__all__ = ["MAX_RECORDS", "Complaint", "RecordSet", "Row", "Zone", "build"]

MAX_RECORDS = 4096
"""Patterns that are asked; of more each author's are taken in turn."""

MAX_VALUE = 4096
"""Characters of one record set."""

MAX_NAMES = 1024
"""Names whose patterns are remembered until the records change."""

STEPS_OF_ONE: Final = 2 * MAX_STEPS
"""Steps that one author's patterns together may take for one name."""

STEPS_OF_ALL: Final = 10 * MAX_STEPS
"""Steps that all patterns together may take for one name, some 50 ms; only hostile records come near."""


@dataclass(frozen=True, slots=True)
class Row:
    """A record as the ledger has it. ``owner`` is its author's peer ID; may be empty."""

    key: str
    text: str
    owner: str = ""


@dataclass(frozen=True, slots=True)
class RecordSet:
    """What one pattern stands for: record type (a number) to zone-file text."""

    pattern: Pattern
    records: Mapping[int, str]
    owner: str = ""

    @property
    def rank(self) -> tuple[int, bool, int, str]:
        """Sorts the most specific pattern to the front.

        By the number of characters that a name has to hold, by being tied to start and end, by length, by text.
        """
        pattern = self.pattern
        return -pattern.literal, not pattern.whole, -len(pattern.text), pattern.text


@dataclass(frozen=True, slots=True)
class Complaint:
    """Something that an author should mend. ``kind`` is the name of its counter."""

    kind: str
    owner: str
    detail: str


@dataclass(slots=True)
class Zone:
    """All record sets, the most specific first.

    ``say`` is told what authors should mend, as often as it happens; ``refused`` are rows that hold no record set.
    """

    sets: tuple[RecordSet, ...] = ()
    counters: Counter[str] = field(default_factory=Counter)
    say: Callable[[Complaint], None] = lambda _complaint: None
    refused: frozenset[Row] = frozenset()
    _names: OrderedDict[str, tuple[RecordSet, ...]] = field(default_factory=OrderedDict)

    def find(self, name: str) -> tuple[RecordSet, ...]:
        """Record sets whose pattern matches ``name`` (printable ASCII with a dot at its end), the most specific first."""
        known = self._names.get(name)
        if known is not None:
            self._names.move_to_end(name)
            return known
        found = self._names[name] = tuple(self._matching(name))
        if len(self._names) > MAX_NAMES:
            self._names.popitem(last=False)
        return found

    def _matching(self, name: str) -> Iterator[RecordSet]:
        taken: Counter[str] = Counter()
        total = 0
        for each in self.sets:
            allowed = min(MAX_STEPS, STEPS_OF_ONE - taken[each.owner], STEPS_OF_ALL - total)
            if allowed <= 0:
                continue
            try:
                matches, steps = each.pattern.search(name, allowed)
            except TooCostlyError as error:
                self.complain("dns_patterns_too_costly", each.owner, f"pattern {each.pattern.text[:80]!r}: {error}")
                matches, steps = False, allowed
            taken[each.owner] += steps
            total += steps
            if matches:
                yield each

    def complain(self, kind: str, owner: str, detail: str) -> None:
        """Count it and say it."""
        self.counters[kind] += 1
        self.say(Complaint(kind, owner, detail))


def build(rows: Iterable[Row], before: Zone) -> Iterator[Zone | None]:
    """The zone of ``rows``, in slices: None after each slice of work, the zone at the end.

    What did not change is taken from ``before``, and so are its counters.
    """
    zone = Zone(counters=before.counters, say=before.say)
    known = {each.pattern.text: each.pattern for each in before.sets}
    sets: list[RecordSet] = []
    refused: set[Row] = set()
    for number, row in enumerate(_fair(rows, zone)):
        if number % 8 == 7:  # some 3 ms
            yield None
        if row in before.refused:
            refused.add(row)  # said and counted before
            continue
        try:
            pattern = known.get(row.key) or compile_pattern(row.key)
            records = _read(row.text)
        except PatternError as error:
            zone.complain("dns_patterns_bad", row.owner, f"pattern {row.key[:80]!r}: {error}")
            refused.add(row)
        except ValueError as error:
            zone.complain("dns_records_malformed", row.owner, f"record {row.key[:80]!r}: {error}")
            refused.add(row)
        else:
            sets.append(RecordSet(pattern, records, row.owner))
    zone.refused = frozenset(refused)
    zone.sets = tuple(sorted(sets, key=lambda each: each.rank))
    yield zone


def _fair(rows: Iterable[Row], zone: Zone) -> Iterator[Row]:
    """Each author's rows in turn, until there is no room."""
    by_owner: dict[str, list[Row]] = {}
    for row in rows:
        by_owner.setdefault(row.owner, []).append(row)
    for own in by_owner.values():
        own.sort(key=lambda row: row.key)
    turns = zip_longest(*(by_owner[owner] for owner in sorted(by_owner)))
    yield from islice((row for turn in turns for row in turn if row is not None), MAX_RECORDS)
    total = sum(map(len, by_owner.values()))
    if total > MAX_RECORDS:
        most = max(sorted(by_owner), key=lambda owner: len(by_owner[owner]))
        zone.complain("dns_records_left_out", most, f"{total} records of all nodes; {MAX_RECORDS} are used")


def _read(text: str) -> dict[int, str]:
    """Type to text. As in Go a member that does not fit is left out and the others count. Raises ValueError."""
    if len(text) > MAX_VALUE:
        raise ValueError(f"{len(text)} characters; {MAX_VALUE} are allowed")
    try:
        value: Any = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("no object from record type to text")  # noqa: TRY004 - a wrong value, not a wrong call
    return {
        int(number): item
        for number, item in value.items()
        if isinstance(item, str) and number.isascii() and number.isdigit() and len(number) < 10 and int(number) <= 65535
    }
