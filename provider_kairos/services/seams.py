"""What services need of the node that they run on: its ledger and its streams. The daemon's parts fit; so do fakes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from provider_kairos.clock import Now
from provider_kairos.ids import PeerId
from provider_kairos.ledger.model import Written
from provider_kairos.mesh.streams import MeshStream, StreamHandler

__all__ = ["LedgerAccess", "MeshAccess", "Records"]


class Records(Protocol):
    """The ledger's records."""

    def bucket(self, name: str) -> Mapping[str, str] | None:
        """Key to JSON text."""
        ...

    def live_peers(self, now: Now, within: float | None = None) -> Mapping[PeerId, float]:
        """Peers with a heartbeat younger than ``within`` seconds, and its age."""
        ...


class LedgerAccess(Protocol):
    """Reading, waiting and announcing (:class:`provider_kairos.daemon.ledger_service.LedgerService`)."""

    @property
    def ledger(self) -> Records:
        """The records."""
        ...

    @property
    def revision(self) -> int:
        """Grows at every change."""
        ...

    async def wait_revision(self, since: int, buckets: frozenset[str]) -> int:
        """Wait for a change of one of ``buckets`` after ``since``."""
        ...

    def announce(self, bucket: str, key: str, text: str) -> Written:
        """Keep a record as it is."""
        ...

    def retract(self, bucket: str, key: str) -> None:
        """Announce it no longer."""
        ...


class MeshAccess(Protocol):
    """Streams to peers (:class:`provider_kairos.mesh.node.Mesh`)."""

    @property
    def peer_id(self) -> PeerId:
        """Our own."""
        ...

    async def open_stream(self, peer: PeerId, protocol: str) -> MeshStream:
        """Raises UnreachableError, PeerError."""
        ...

    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve a protocol."""
        ...

    def remove_handler(self, protocol: str) -> None:
        """Serve it no longer."""
        ...
