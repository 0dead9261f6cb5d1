"""Whose clock is wrong: seen in the times that others write (spec/provider.md 4.1, 4.10, 13 #42).

A time in the future can only come from a clock that is ahead of ours. A time in the past may be a node that is gone;
it is a slow clock only when it was written anew before our eyes.
"""

from __future__ import annotations

from provider_kairos.clock import NANO, Now
from provider_kairos.ids import NodeUuid
from provider_kairos.roles.model import View
from provider_kairos.roles.reasons import ClocksDiffer

__all__ = ["CLOCKS_DIFFER", "Clocks"]

CLOCKS_DIFFER = 300.0
"""Seconds from which a difference is worth a word; at 900 two nodes no longer see each other."""


class Clocks:
    """Remembers what the ledger showed, so that a new time is known from an old one."""

    def __init__(self, me: NodeUuid) -> None:
        self.me = me
        self._shown: dict[NodeUuid, int] = {}
        self._late: dict[NodeUuid, float] = {}

    def differ(self, view: View, now: Now) -> tuple[ClocksDiffer, ...]:
        """The node whose clock differs most, when that matters; at most one."""
        found: list[tuple[float, NodeUuid, float]] = []
        for uuid, node in view.nodes.items():
            if uuid == self.me or node.advertised is None:
                continue
            ahead = (node.advertised - now.unix_ns) / NANO
            if uuid in self._shown and self._shown[uuid] != node.advertised:
                self._late[uuid] = ahead
            self._shown[uuid] = node.advertised
            seconds = ahead if ahead > 0 else self._late.get(uuid, 0.0)
            if abs(seconds) >= CLOCKS_DIFFER:
                found.append((abs(seconds), uuid, seconds))
        if not found:
            return ()
        _, uuid, seconds = max(found)
        return (ClocksDiffer(uuid, round(seconds / 60)),)
