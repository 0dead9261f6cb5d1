"""Who is there: heartbeats, judged by two clocks (spec/edgevpn.md 5.9, 8.7, 15.2 point 15).

EdgeVPN compares a remote timestamp with the local clock, so a peer whose clock is eight minutes behind is dead to
everybody, and one whose clock is ahead stays alive after it is gone. Here a peer is also alive when its heartbeat
*advanced* within the window by our own monotonic clock, whatever its clock shows, and a timestamp from far in the future
proves nothing. The leader function and what follows from being dead are elsewhere.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from datetime import UTC, datetime

from provider_kairos.clock import Now
from provider_kairos.ids import PeerId
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import ClockSkew

__all__ = ["Liveness", "heartbeat_text", "parse_heartbeat"]

SKEW_WORTH_SAYING = 30.0
"""Seconds. Below this the rotation overlap copes and delivery delays could explain it."""


def heartbeat_text(unix: int) -> str:
    """The value of a heartbeat: RFC 3339 in UTC with whole seconds, as JSON text."""
    return f'"{datetime.fromtimestamp(unix, UTC):%Y-%m-%dT%H:%M:%SZ}"'


def parse_heartbeat(value: str) -> float | None:
    """Unix seconds of a heartbeat's value, or None when it is none."""
    try:
        text = json.loads(value)
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        return moment.timestamp() if moment is not None and moment.tzinfo is not None else None
    except (ValueError, RecursionError, OverflowError):
        return None


@dataclass(slots=True)
class _Presence:
    timestamp: float  # what the peer's clock said
    version: int  # of the entry that said so; 0 when unsigned
    seen: float  # our monotonic time that corresponds to it
    skew: float | None = None  # peer's clock minus ours when its heartbeat last advanced before our eyes


class Liveness:
    """Heartbeats seen. ``ttl`` is the ownership window in seconds."""

    def __init__(self, ttl: float) -> None:
        self._ttl = ttl
        self._peers: dict[PeerId, _Presence] = {}

    def observe(self, peer: str, entry: Entry, now: Now) -> None:
        """A record of the heartbeat bucket is stored now: first sight, an advance, or a withdrawal by its owner."""
        if entry.deleted:
            if entry.owner == peer:
                self._peers.pop(PeerId(peer), None)
            return
        timestamp = parse_heartbeat(entry.value)
        if timestamp is None:
            return
        known = self._peers.get(PeerId(peer))
        if known is None:
            # On first sight nothing but the timestamp tells the age; one in the future counts as now.
            age = max(0.0, now.unix_float - timestamp)
            self._peers[PeerId(peer)] = _Presence(timestamp, entry.version, now.mono - age)
        elif self._advances(known, timestamp, entry.version, now):
            known.timestamp, known.version = timestamp, entry.version
            known.seen, known.skew = now.mono, timestamp - now.unix_float

    @staticmethod
    def _advances(known: _Presence, timestamp: float, version: int, now: Now) -> bool:
        """Whether a heartbeat is a later one. A peer whose clock was set back shows an earlier time in a later version.

        Unsigned entries have no version, and an adopted block may bring old ones back: there the earlier time must be
        about now, and the known one in the future.
        """
        if version and known.version:
            return version > known.version
        set_back = abs(timestamp - now.unix_float) < SKEW_WORTH_SAYING < known.timestamp - now.unix_float
        return timestamp > known.timestamp or set_back

    def is_live(self, peer: str, now: Now, within: float | None = None) -> bool:
        """Whether the peer's heartbeat is younger than ``within`` seconds (the ownership window when not given)."""
        presence = self._peers.get(PeerId(peer))
        return presence is not None and self._is_live(presence, now, self._ttl if within is None else within)

    @staticmethod
    def _is_live(presence: _Presence, now: Now, within: float) -> bool:
        if now.mono - presence.seen < within:
            return True
        ahead = presence.timestamp - now.unix_float
        return -within < ahead <= within

    def live_peers(self, now: Now, within: float | None = None) -> dict[PeerId, float]:
        """Live peers (this node included) and the age of their heartbeat in seconds."""
        window = self._ttl if within is None else within
        return {
            peer: max(0.0, now.mono - presence.seen)
            for peer, presence in self._peers.items()
            if self._is_live(presence, now, window)
        }

    def forget_older_than(self, age: float, now: Now) -> None:
        """Drop peers unseen for ``age`` seconds, so that the table does not grow for ever."""
        for peer in [peer for peer, presence in self._peers.items() if not self._is_live(presence, now, age)]:
            del self._peers[peer]

    def skews(self, now: Now, ourselves: str) -> list[ClockSkew]:
        """Clocks that disagree; when (nearly) all others agree among themselves, the wrong clock is ours."""
        known = {
            peer: presence.skew
            for peer, presence in self._peers.items()
            if peer != ourselves and presence.skew is not None and self._is_live(presence, now, self._ttl)
        }
        if len(known) >= 2:
            middle = statistics.median(known.values())
            if abs(middle) > SKEW_WORTH_SAYING:
                return [ClockSkew("", round(middle))]
        return [ClockSkew(peer, round(skew)) for peer, skew in known.items() if abs(skew) > SKEW_WORTH_SAYING]
