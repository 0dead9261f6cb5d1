"""Which peers sign their records and which do not (spec/edgevpn.md 5.9 compatibility matrix, 16 riskiest points).

A heartbeat is written by its peer alone, so its form tells what that peer speaks. When both kinds are fresh in one
network, nodes are invisible to each other without any sign of it; this is where the sign comes from.
"""

from __future__ import annotations

from provider_kairos.clock import Now
from provider_kairos.ids import PeerId
from provider_kairos.ledger.block import Storage
from provider_kairos.ledger.liveness import parse_heartbeat
from provider_kairos.ledger.model import MixedFormats
from provider_kairos.ledger.policy import OwnershipMode

__all__ = ["Formats"]

MAX_PEERS = 4096


class Formats:
    """The latest heartbeat's form per peer."""

    def __init__(self) -> None:
        self._seen: dict[PeerId, tuple[float, bool, float]] = {}  # timestamp, signed, monotonic time of the advance

    def observe(self, storage: Storage, now: Now) -> None:
        """Look at the heartbeats of a received block, whether they are accepted or not."""
        for key, entry in storage.get("healthcheck", {}).items():
            peer = PeerId(key)
            known = self._seen.get(peer)
            timestamp = parse_heartbeat(entry.value)
            if timestamp is None or (known is not None and timestamp <= known[0]):
                continue
            if known is None and len(self._seen) >= MAX_PEERS:
                continue
            self._seen[peer] = (timestamp, not entry.legacy, now.mono)

    def others_unsigned(self, ourselves: PeerId | None, now: Now, within: float) -> bool:
        """Whether another node's heartbeat advanced unsigned within the last ``within`` seconds."""
        fresh = (peer for peer, (_, signed, mono) in self._seen.items() if not signed and now.mono - mono < within)
        return any(peer != ourselves for peer in fresh)

    def mixed(self, mode: OwnershipMode, ourselves: PeerId | None, now: Now, within: float) -> MixedFormats | None:
        """The notice, when both kinds advanced within the last ``within`` seconds; this node counts as its mode."""
        fresh = {peer: signed for peer, (_, signed, mono) in self._seen.items() if now.mono - mono < within}
        if ourselves is not None:
            fresh[ourselves] = mode is not OwnershipMode.OFF
        signing = tuple(sorted(peer for peer, signed in fresh.items() if signed))
        unsigned = tuple(sorted(peer for peer, signed in fresh.items() if not signed))
        return MixedFormats(mode.value, signing, unsigned) if signing and unsigned else None
