"""EdgeVPN's turns: whose turn it is to take an address while a Go node waits for one (spec/edgevpn.md 9, 17).

A Go node takes "the highest address plus one" without looking at anything but ``machines``, and only when the turn,
``dhcp/leader``, is its own. So while one waits our nodes stand in the same queue. They do so as a group: when the
turn falls to any of ours, all of ours lease at once, because no Go node moves meanwhile.

Nobody announces that it is a Go node that waits. It is concluded: a heartbeat, no address, and none of our notes. A
peer without VPN looks the same and would be waited for by Go nodes for ever; here, a peer that made no headway for
``patience`` seconds while it was nobody else's turn is called plain, in our note too, so that later comers do not
wait for it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from provider_kairos.ids import PeerId
from provider_kairos.ledger.leader import leader
from provider_kairos.vpn.records import LeaseNote, LeaseState

__all__ = ["Turn", "Turns"]


@dataclass(frozen=True, slots=True)
class Turn:
    """The verdict: may our nodes lease now, for whom do we wait otherwise, and should we write ``dhcp/leader``."""

    ours: bool
    waiting_for: tuple[PeerId, ...] = ()
    take_lead: bool = False


class Turns:
    """Remembers since when foreign peers wait. All times are ``Now.mono`` seconds."""

    def __init__(self, peer_id: PeerId, marker_wait: float, patience: float) -> None:
        self.peer_id = peer_id
        self.marker_wait = marker_wait
        self.patience = patience
        self._seen: dict[PeerId, float] = {}
        self._plain: set[PeerId] = set()
        self._headway = float("-inf")
        self._progress: tuple[frozenset[PeerId], PeerId | None] | None = None

    @property
    def plain(self) -> tuple[str, ...]:
        """Peers that we found to want no address."""
        return tuple(sorted(self._plain))

    def judge(
        self,
        others: frozenset[PeerId],
        with_address: frozenset[PeerId],
        notes: Mapping[PeerId, LeaseNote],
        lead: PeerId | None,
        mono: float,
    ) -> Turn:
        """Whose turn it is. ``others`` are live peers but us."""
        foreign = {peer for peer in others if peer not in notes and peer not in with_address}
        self._seen = {peer: self._seen.get(peer, mono) for peer in foreign}
        self._plain &= foreign
        told = {plain for peer, note in notes.items() if peer in others for plain in note.plain}
        # Before marker_wait it may be one of ours whose note is on its way; lease.py holds its confirmation for that.
        waiting = {peer for peer in foreign if peer not in told and mono - self._seen[peer] >= self.marker_wait}

        progress = (
            frozenset(peer for peer in with_address if peer in others and peer not in notes),
            lead if lead in waiting else None,
        )
        if progress != self._progress:
            self._progress = progress
            self._headway = mono
        for peer in sorted(waiting - self._plain):
            if mono - max(self._seen[peer], self._headway) >= self.patience:
                self._plain.add(peer)
        waiting -= self._plain
        if not waiting:
            return Turn(ours=True)

        mine = {
            peer
            for peer, note in notes.items()
            if peer in others and note.state in {LeaseState.SEEKING, LeaseState.CLAIMED}
        }
        queue = sorted(waiting | (mine - with_address) | {self.peer_id})
        should = leader(queue)
        holder = lead if lead in queue else None
        turn = holder or should
        if turn in waiting:
            return Turn(ours=False, waiting_for=tuple(sorted(waiting)))
        return Turn(ours=True, waiting_for=tuple(sorted(waiting)), take_lead=should == self.peer_id and holder is None)

    def next_change(self, mono: float) -> float | None:
        """When the verdict can change with nothing happening."""
        times = [self._seen[peer] + self.marker_wait for peer in self._seen]
        times += [
            max(self._seen[peer], self._headway) + self.patience for peer in self._seen if peer not in self._plain
        ]
        return min((at for at in times if at > mono), default=None)
