"""How many bytes went where: per protocol, per peer, and in all (spec/edgevpn.md 11.2, the metrics routes).

Streams count for themselves and hand their sums over when they end; live ones are added when somebody asks. Rates are
those between two questions at least a second apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import trio

from provider_kairos.api.model import Traffic
from provider_kairos.ids import PeerId

__all__ = ["Count", "TrafficMeter"]

Count = tuple[PeerId, str, int, int]
"""Peer, protocol, bytes in, bytes out."""

MAX_KEYS = 4096
RATE_OVER = 1.0


@dataclass(slots=True)
class _Series:
    """Sums of one key, and what is needed for its rate."""

    received: int = 0
    sent: int = 0
    sampled: tuple[float, int, int] = (float("-inf"), 0, 0)
    rate: tuple[float, float] = (0.0, 0.0)


@dataclass(slots=True)
class _Table:
    series: dict[str, _Series] = field(default_factory=dict)

    def add(self, key: str, received: int, sent: int) -> None:
        entry = self.series.get(key)
        if entry is None:
            if len(self.series) >= MAX_KEYS:
                return
            entry = self.series[key] = _Series()
        entry.received += received
        entry.sent += sent


class TrafficMeter:
    """Traffic of all streams since start."""

    def __init__(self, live: Callable[[], Iterable[Count]]) -> None:
        """``live`` gives the counts of the streams that are open now."""
        self._live = live
        self._tables = {name: _Table() for name in ("total", "protocol", "peer")}

    def ended(self, count: Count) -> None:
        """A stream ended with these sums."""
        peer, protocol, received, sent = count
        self._tables["total"].add("", received, sent)
        self._tables["protocol"].add(protocol, received, sent)
        self._tables["peer"].add(peer, received, sent)

    def total(self) -> Traffic:
        """All streams together."""
        return self._read("total", lambda _count: "").get("") or _record(0, 0, (0.0, 0.0))

    def by_protocol(self) -> Mapping[str, Traffic]:
        """Per protocol ID; streams that agreed on none count for the empty one."""
        return self._read("protocol", lambda count: count[1])

    def by_peer(self) -> Mapping[str, Traffic]:
        """Per peer ID."""
        return self._read("peer", lambda count: count[0])

    def _read(self, name: str, key: Callable[[Count], str]) -> dict[str, Traffic]:
        series = self._tables[name].series
        sums = {each: [entry.received, entry.sent] for each, entry in series.items()}
        for count in self._live():
            here = sums.setdefault(key(count), [0, 0])
            here[0] += count[2]
            here[1] += count[3]
        now = trio.current_time()
        found = {}
        for each, (received, sent) in sums.items():
            entry = series.setdefault(each, _Series())
            then, received_then, sent_then = entry.sampled
            if now - then >= RATE_OVER:
                past = max(now - then, RATE_OVER)
                entry.rate = (
                    (0.0, 0.0)
                    if past == float("inf")
                    else ((received - received_then) / past, (sent - sent_then) / past)
                )
                entry.sampled = (now, received, sent)
            found[each] = _record(received, sent, entry.rate)
        return found


def _record(received: int, sent: int, rate: tuple[float, float]) -> Traffic:
    return {"TotalIn": received, "TotalOut": sent, "RateIn": rate[0], "RateOut": rate[1]}
