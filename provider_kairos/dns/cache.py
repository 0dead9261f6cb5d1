"""Answers of forward servers, kept for as long as they say and no longer.

EdgeVPN keeps them for ever (spec/edgevpn.md 15.2 no. 45); its ``DNSCACHESIZE`` bounds their number here as there.
Negative answers are kept as RFC 2308 has it: for the SOA's minimum, not at all without one.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_SECONDS", "Cache", "Key", "Kept"]

MAX_SECONDS: Final = 86400.0
"""An answer is kept no longer than a day."""

MAX_BYTES: Final = 8192
"""A larger answer is not kept."""

Key = tuple[bytes, int, int, int, bool]
"""Name (lower case, wire form), type, class, the bits RD and CD, whether DNSSEC's records are wanted."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A message as the server sent it; times are monotonic seconds."""

    message: bytes
    since: float
    until: float


class Cache:
    """The last ``size`` answers that were used; 0 keeps none."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._kept: OrderedDict[Key, Kept] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Key, now: float) -> Kept | None:
        """The answer, unless it is over."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        if kept.until <= now:
            del self._kept[key]
            return None
        self._kept.move_to_end(key)
        return kept

    def put(self, key: Key, message: bytes, seconds: float, now: float) -> None:
        """Keep an answer for ``seconds``."""
        if seconds <= 0 or not self._size or len(message) > MAX_BYTES:
            return
        self._kept[key] = Kept(message, now, now + min(seconds, MAX_SECONDS))
        self._kept.move_to_end(key)
        if len(self._kept) > self._size:
            self._kept.popitem(last=False)
