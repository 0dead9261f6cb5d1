"""How many streams a server takes at once, in all and from one peer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId

__all__ = ["Gate", "GateFullError"]


class GateFullError(PeerError):
    """As many streams as are taken at once are open."""


class Gate:
    """Counts what is open."""

    def __init__(self, total: int, per_peer: int) -> None:
        self.total = total
        self.per_peer = per_peer
        self._open: Counter[PeerId] = Counter()

    @property
    def open(self) -> int:
        """Streams that are open."""
        return self._open.total()

    @contextmanager
    def pass_through(self, peer: PeerId) -> Iterator[None]:
        """Count one stream while the block runs. Raises GateFullError."""
        if self.open >= self.total:
            raise GateFullError(f"{self.total} streams are open, more are not taken")
        if self._open[peer] >= self.per_peer:
            raise GateFullError(f"{self.per_peer} streams of one peer are open, more are not taken")
        self._open[peer] += 1
        try:
            yield
        finally:
            self._open[peer] -= 1
            if not self._open[peer]:
                del self._open[peer]
