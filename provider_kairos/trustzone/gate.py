"""The peer gate: whose ledger messages are heard (spec/edgevpn.md 13.1).

As in EdgeVPN the *neighbour* that delivers a message is judged; here its author too, because a trusted EdgeVPN node
passes on what strangers write. The gate knows the trust list and two switches, nothing of keys.
"""

from __future__ import annotations

from provider_kairos.ids import PeerId

__all__ = ["PeerGate"]


class PeerGate:
    """One gate. ``enabled`` may be switched at any time (``PUT /api/peergate/:state``)."""

    def __init__(self, *, enabled: bool = True, relaxed: bool = False) -> None:
        self.enabled = enabled
        self.relaxed = relaxed
        self.trusted: frozenset[PeerId] = frozenset()

    @property
    def closed(self) -> bool:
        """Whether anybody is turned away at all."""
        return self.enabled and not (self.relaxed and not self.trusted)

    def switch(self, *, on: bool) -> None:
        """Close it to strangers, or open it to everybody."""
        self.enabled = on

    def allows(self, via: PeerId, author: PeerId | None = None) -> bool:
        """Whether a ledger message that ``via`` delivered is heard; ``author`` None asks for the neighbour alone."""
        if not self.closed:
            return True
        return via in self.trusted and (author is None or author in self.trusted)
