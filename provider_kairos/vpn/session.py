"""The seam between packets and the ways to a peer, and the choice among those ways.

There are three, best first: a direct connection of the fast data plane (session keys agreed over an authenticated
stream; its implementation is not here), our own framed stream (:mod:`provider_kairos.vpn.streams`), and EdgeVPN's one
packet per stream. What a peer speaks is learnt by asking: multistream negotiates :data:`PACKETS_PROTOCOL`, and a peer
that refuses it is asked for :data:`EDGEVPN_PROTOCOL`. :class:`PeerPaths` remembers the answers per connection and says
what to try next and when; it opens nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Protocol

from provider_kairos.ids import PeerId

__all__ = [
    "EDGEVPN_PROTOCOL",
    "PACKETS_PROTOCOL",
    "DataPath",
    "DataPlane",
    "PathKind",
    "PathState",
    "PeerPaths",
]

PACKETS_PROTOCOL = "/kairos-p2p/packets/1"
"""Framed packets over one long-lived stream, between our own nodes."""

EDGEVPN_PROTOCOL = "/edgevpn/0.1"
"""EdgeVPN's packet streams (spec/edgevpn.md 8.1)."""

SESSION_PROTOCOL = "/kairos-p2p/session/1"
"""Where two of our nodes will agree on keys for a direct connection; reserved."""


class PathKind(IntEnum):
    """The ways to a peer; a smaller one is better."""

    DIRECT = 0
    STREAM = 1
    EDGEVPN = 2


class PathState(Enum):
    """What is known about one way to one peer."""

    UNTRIED = "untried"
    OPENING = "opening"
    UP = "up"
    FAILED = "failed"
    """to be tried again after a while"""
    UNSUPPORTED = "unsupported"
    """the peer does not speak it; not asked again on this connection"""


class DataPath(Protocol):
    """One way to one peer that is up."""

    kind: PathKind

    def send(self, packets: Sequence[bytes]) -> int:
        """Take packets (a super-packet of up to 64 KiB counts as one) in order without waiting.

        Returns how many of them were taken; the rest may be offered again once the path says that it has room.
        """
        ...

    def close(self) -> None:
        """Give the path up."""
        ...


class DataPlane(Protocol):
    """A provider of paths; the fast one registers itself beside the streams."""

    kind: PathKind

    def on_packets(self, callback: Callable[[PeerId, Sequence[bytes]], None]) -> None:
        """Set who gets what arrives: authenticated sender, whole packets; called from the event loop."""
        ...

    async def open(self, peer: PeerId) -> DataPath | None:
        """A path to the peer, or None when it does not speak this kind. Raises PeerError or HostError if it fails now."""
        ...


@dataclass(slots=True)
class _Path:
    state: PathState = PathState.UNTRIED
    failures: int = 0
    retry_at: float = 0.0


@dataclass(slots=True)
class PeerPaths:
    """What is known about all ways to one peer. Times are ``Now.mono`` seconds."""

    kinds: tuple[PathKind, ...] = (PathKind.STREAM, PathKind.EDGEVPN)
    first_retry: float = 0.5
    last_retry: float = 30.0
    _paths: dict[PathKind, _Path] = field(default_factory=dict)

    def state(self, kind: PathKind) -> PathState:
        """The state of one way."""
        return self._path(kind).state

    def best(self) -> PathKind | None:
        """The best way that is up."""
        return next((kind for kind in sorted(self.kinds) if self.state(kind) is PathState.UP), None)

    def to_try(self, mono: float) -> PathKind | None:
        """The way to open now: the best that is better than what is up, not being opened, and due.

        A worse way is tried only when all better ones are known not to work at the moment, so that a peer that speaks
        ours never gets EdgeVPN's streams merely because they were quicker.
        """
        for kind in sorted(self.kinds):
            path = self._path(kind)
            if path.state in {PathState.UP, PathState.OPENING}:
                return None
            if path.state is PathState.UNTRIED or (path.state is PathState.FAILED and path.retry_at <= mono):
                return kind
        return None

    def next_retry(self) -> float | None:
        """When :meth:`to_try` may say something new with nothing happening."""
        return min((path.retry_at for path in self._paths.values() if path.state is PathState.FAILED), default=None)

    def opening(self, kind: PathKind) -> None:
        """It is being opened."""
        self._path(kind).state = PathState.OPENING

    def opened(self, kind: PathKind) -> None:
        """It is up."""
        self._paths[kind] = _Path(PathState.UP)

    def refused(self, kind: PathKind) -> None:
        """The peer does not speak it (multistream said ``na``)."""
        self._paths[kind] = _Path(PathState.UNSUPPORTED)

    def failed(self, kind: PathKind, mono: float) -> None:
        """Opening failed, or it broke: again after a pause that doubles."""
        path = self._path(kind)
        pause = min(self.first_retry * 2**path.failures, self.last_retry)
        self._paths[kind] = _Path(PathState.FAILED, min(path.failures + 1, 16), mono + pause)

    def disconnected(self) -> None:
        """The connection is gone: all is forgotten, for the peer may come back as another version."""
        self._paths.clear()

    def _path(self, kind: PathKind) -> _Path:
        return self._paths.setdefault(kind, _Path())
