"""Bounds the time that blocks of the room may cost (spec/edgevpn.md 15.3 "bounded").

A member may fill the ledger of every EdgeVPN node with a million records, and each of these then shows all of them every
ten seconds. Reading one such block takes the better part of a second, in which nothing else happens here. So an author
whose large block was costly is not heard with large blocks for a while (10 % of the time at most), nor is anybody when
they together take half of it. What is put off comes again: blocks are whole, and are repeated. Small blocks always pass.

Sans-IO; :mod:`provider_kairos.daemon.ledger_service` asks before it reads a block and tells how long it took.
"""

from __future__ import annotations

from collections import OrderedDict

from provider_kairos.ids import PeerId

__all__ = ["CostlyBlocks"]

LARGE = 64 * 1024
"""Bytes on the wire from which a block may be put off: more than three hundred signed records."""

COSTLY = 0.25
"""Seconds of the processor from which a block counts as costly. Not of the clock: others may be busy too."""

AUTHOR_SHARE, ALL_SHARE = 0.1, 0.5
MAX_AUTHORS = 512


class CostlyBlocks:
    """Who may show a large block when; all times are monotonic seconds."""

    def __init__(self) -> None:
        self._authors: OrderedDict[PeerId, float] = OrderedDict()
        self._all = 0.0

    def puts_off(self, author: PeerId, size: int, now: float) -> bool:
        """Whether a block of ``size`` bytes is not to be read now."""
        return size >= LARGE and now < max(self._all, self._authors.get(author, 0.0))

    def took(self, author: PeerId, seconds: float, now: float) -> None:
        """Remember that a block of ``author`` cost so many seconds of the processor, until now."""
        if seconds < COSTLY:
            return
        self._all = now + seconds * (1 / ALL_SHARE - 1)
        self._authors[author] = now + seconds * (1 / AUTHOR_SHARE - 1)
        self._authors.move_to_end(author)
        while len(self._authors) > MAX_AUTHORS:
            self._authors.popitem(last=False)
