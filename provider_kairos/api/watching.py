"""The state of watched buckets, and where a watcher stands; shared by the long poll and the stream of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provider_kairos.api.model import ValueCodingError, decode_value

__all__ = ["WatchCursor", "WatchResult"]


@dataclass(frozen=True, slots=True)
class WatchCursor:
    """What a watcher has seen: pass the one of the last result to the next call. Opaque."""

    instance: str = ""
    revision: int = -1


@dataclass(frozen=True, slots=True)
class WatchResult:
    """State of the watched buckets; ``texts`` are ledger texts, None for an absent bucket."""

    cursor: WatchCursor
    texts: Mapping[str, Mapping[str, str] | None] = field(repr=False)
    native: bool = True

    def value(self, bucket: str, key: str) -> Any | None:
        """One decoded value; None when absent or garbage."""
        text = (self.texts.get(bucket) or {}).get(key)
        if not text:
            return None
        try:
            return decode_value(text)
        except ValueCodingError:
            return None

    def values(self, bucket: str) -> dict[str, Any]:
        """All values of a bucket that decode."""
        found = ((key, self.value(bucket, key)) for key in self.texts.get(bucket) or {})
        return {key: value for key, value in found if value is not None}
