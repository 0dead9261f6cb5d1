"""Whose gossip is heard, and who may connect at all (spec/edgevpn.md 3.3, 12.3, 13, 15.2 no. 1 to 5).

Gossip is judged by the neighbour that delivers it: the static peer table for every message, the trust zone's gate for
those of the ledger room. Who is not heard is not passed on either, nor remembered as seen: the same message counts when
somebody else delivers it. Lives as long as the mesh, through all its hosts.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Protocol

from provider_kairos.ids import PeerId
from provider_kairos.mesh.settings import MeshSettings

__all__ = ["Admission", "LedgerGate"]


class LedgerGate(Protocol):
    """What the trust zone says."""

    def allows(self, via: PeerId, author: PeerId | None = None) -> bool:
        """Whether a ledger message that ``via`` delivered is heard; ``author`` None: one of whatever author."""
        ...


class Admission:
    """The rules of one mesh. ``gate`` may be set at any time."""

    def __init__(self, settings: MeshSettings) -> None:
        self.gate: LedgerGate | None = None
        self._only = settings.only_peers
        self._blocked = settings.blocked_peers

    def connects(self, peer: PeerId) -> bool:
        """Whether a connection with the peer is held."""
        return peer not in self._blocked

    def hears(self, via: PeerId, author: PeerId | None = None, *, public: bool = False) -> bool:
        """Whether gossip that ``via`` delivers is taken, in the public room or in the ledger's."""
        if self._only and via not in self._only:
            return False
        return public or self.gate is None or self.gate.allows(via, author)

    def deaf_to_all(self, room: Collection[PeerId]) -> str:
        """What keeps us from hearing every one of the peers in the ledger room; empty when somebody is heard."""
        if not room or any(self.hears(peer) for peer in room):
            return ""
        return "static peer table" if self._only and not self._only & set(room) else "trust zone"
