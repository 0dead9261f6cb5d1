"""Which peer is behind a virtual IP (spec/edgevpn.md 8.1, 8.2).

The ledger's ``machines`` says so. Where our own lease notes say otherwise they win: two nodes that once had the same
address can leave a record in ``machines`` that names the wrong one of them for good (:mod:`provider_kairos.vpn.lease`),
while a note is its peer's own and current.

With a static peer table (EdgeVPN's ``--static-peertable``) that table alone says where packets go and whose are taken.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from collections.abc import Set as AbstractSet

from provider_kairos.ids import PeerId
from provider_kairos.vpn.records import LeaseNote, LeaseState, parse_machines, parse_notes

__all__ = ["RouteTable"]


class RouteTable:
    """Packed address → peer. ``revision`` grows with every change, so that callers may cache beside it.

    Args:
        peer_id: Ours.
        router: EdgeVPN's ``--router``: the virtual IP that gets what no machine has, if it comes from ourselves.
        require_live: Peers without a fresh heartbeat get nothing (EdgeVPN with ownership on).
        static: Address to peer; when not empty, nothing else counts, alive or not.
    """

    def __init__(
        self,
        peer_id: PeerId,
        router: str | None = None,
        *,
        require_live: bool = True,
        static: Mapping[str, PeerId] | None = None,
    ) -> None:
        self.peer_id = peer_id
        self.revision = 0
        self._router = ipaddress.ip_address(router).packed if router else None
        self._require_live = require_live
        self._static = {ipaddress.ip_address(address).packed: peer for address, peer in (static or {}).items()}
        self._peers: dict[bytes, PeerId] = {}
        self._recorded: frozenset[bytes] = frozenset()
        self._own: frozenset[bytes] = frozenset()
        self._members: frozenset[PeerId] = frozenset()
        self._source: tuple[Mapping[str, str], Mapping[str, str], AbstractSet[PeerId]] | None = None

    def __len__(self) -> int:
        return len(self._peers)

    @property
    def own(self) -> frozenset[bytes]:
        """Our own addresses, packed."""
        return self._own

    def update(
        self, machines: Mapping[str, str], live: AbstractSet[PeerId], notes: Mapping[str, str] | None = None
    ) -> bool:
        """Take the ledger's ``machines`` and lease-note buckets (key → JSON text) and who is live; True if it changed."""
        source = (dict(machines), dict(notes or {}), frozenset(live))
        if source == self._source:
            return False
        self._source = source
        members = parse_machines(machines)
        by_text = _correct(members, parse_notes(notes or {}), live)
        peers: dict[bytes, PeerId] = {}
        for address, peer in by_text.items():
            packed = _packed(address)
            if packed is not None and (not self._require_live or peer in live or peer == self.peer_id):
                peers[packed] = peer
        own = frozenset(address for address, peer in peers.items() if peer == self.peer_id)
        known = frozenset(members.values()) | frozenset(by_text.values())
        if self._static:
            # our own address need not be in the table
            peers = self._static | {address: self.peer_id for address in own if address not in self._static}
            own = frozenset(address for address, peer in peers.items() if peer == self.peer_id)
            known = frozenset(self._static.values())
        changed = peers != self._peers
        self._peers = peers
        self._recorded = frozenset(packed for each in by_text if (packed := _packed(each)) is not None)
        self._own = own
        self._members = known
        self.revision += changed
        return changed

    def lookup(self, destination: bytes | str, *, from_us: bool = False) -> PeerId | None:
        """The peer for a destination; ``from_us`` says that the source is our own address (the router then counts).

        The router gets what nobody ever had (spec/edgevpn.md 8.1, 4), not what belongs to a node that is gone.
        """
        packed = destination if isinstance(destination, bytes) else _packed(destination)
        if packed is None:
            return None
        peer = self._peers.get(packed)
        if peer is None and from_us and self._router is not None and packed not in self._recorded:
            peer = self._peers.get(self._router)
        return peer

    def owner(self, address: bytes) -> PeerId | None:
        """Who may send from ``address``; None when nobody has it."""
        return self._peers.get(address)

    def is_member(self, peer: PeerId) -> bool:
        """Whether the peer is named by any machine record: EdgeVPN's condition for taking packets from it."""
        return peer in self._members

    def addresses(self) -> dict[str, PeerId]:
        """Address text → peer; for status and the API."""
        return {str(ipaddress.ip_address(packed)): peer for packed, peer in self._peers.items()}


def _packed(address: str) -> bytes | None:
    try:
        return ipaddress.ip_address(address).packed
    except ValueError:
        return None


def _correct(
    machines: Mapping[str, PeerId], notes: Mapping[PeerId, LeaseNote], live: AbstractSet[PeerId]
) -> dict[str, PeerId]:
    """``machines``, put right by what live peers say about themselves."""
    found = dict(machines)
    held: dict[str, PeerId] = {}
    for peer, note in notes.items():
        if note.state is not LeaseState.HELD or peer not in live:
            continue
        rival = held.get(note.address)
        if rival is None or note.rank(peer) < notes[rival].rank(rival):
            held[note.address] = peer
    for address, peer in held.items():
        named = found.get(address)
        # A Go node has no note and is believed; one of ours that is named is asked for its own word.
        if named is None or named in notes:
            found[address] = peer
    return found
