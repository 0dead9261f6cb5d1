"""The address lease: which virtual IP this node uses (spec/edgevpn.md 9, done better as 15.3 allows).

Between our own nodes: claim, then confirm. Each node writes what it claims into its own note (:mod:`records`); all see
all notes, and of two notes with one address everybody finds the same one better (:meth:`LeaseNote.rank`): pinned,
then held, then older. A claim that nobody bettered for ``confirm`` seconds after the newest peer became visible is
held. That takes about a second for any number of nodes at once. A node that hears nobody takes its address after
``lone_wait``: neighbours on the same link are found well below a second, so that waiting longer would only delay the
first box of a cluster.

What no protocol can prevent, two partitions that lease the same address, is mended when they meet: the lower rank steps
aside, unless it is pinned (a control-plane node's address is for life, spec/k3s.md 0.10). A Go node never moves, so we
do. Two pinned ones both stay, and both say so.

An address in the ledger is not given to anybody else while another is free, also when its peer is gone; a pinned one
never. While a Go node waits, :mod:`turns` says when it is our turn.

Sans-IO: :meth:`LeaseEngine.step` after every change and at :meth:`LeaseEngine.next_wakeup`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_interface
from random import Random

from provider_kairos.clock import Now
from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.vpn.lease_values import (
    AddressConflict,
    Assigned,
    ConfirmingAddress,
    Effect,
    LeaseView,
    ListeningForPeers,
    PoolExhausted,
    PublishNote,
    RefreshMachine,
    Released,
    TakeLead,
    WaitingForTurn,
    WithdrawMachine,
)
from provider_kairos.vpn.pool import Pool
from provider_kairos.vpn.records import (
    LeaseNote,
    LeaseState,
    dhcp_leader,
    highest_host,
    machine_hostname,
    parse_machines,
    parse_notes,
)
from provider_kairos.vpn.turns import Turn, Turns

__all__ = [
    "AddressConflict",
    "Assigned",
    "ConfirmingAddress",
    "LeaseEngine",
    "LeaseSettings",
    "LeaseView",
    "ListeningForPeers",
    "PoolExhausted",
    "PublishNote",
    "RefreshMachine",
    "Released",
    "TakeLead",
    "WaitingForTurn",
    "WithdrawMachine",
]

# The winner of a conflict writes its machines record anew, so that its version is above the loser's tombstone: once
# the loser's clock is passed, and some times more because a broadcast can be lost. Each is one small record.
_REFRESH_AFTER = (0.05, 2.0, 6.0)
_MOST_SKEW = 600.0


@dataclass(frozen=True, slots=True)
class LeaseSettings:
    """``address`` in EdgeVPN's notation: the subnet and the first address to give, or, with ``static``, our own.

    ``hostname`` is this machine's, to know the records of an EdgeVPN that ran here before.
    """

    address: str = "10.1.0.1/24"
    static: bool = False
    lone_wait: float = 2.5
    confirm: float = 0.7
    longest_confirm: float = 4.0
    marker_wait: float = 1.2
    foreign_patience: float = 20.0
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class _Facts:
    """A view, read: address → peer, peer → note, and the live peers but us.

    ``predecessor`` is who was this machine before us, where the record of our address says so.
    """

    machines: Mapping[str, PeerId]
    notes: Mapping[PeerId, LeaseNote]
    others: frozenset[PeerId]
    predecessor: PeerId | None = None


class LeaseEngine:
    """One node's lease.

    Args:
        settings: Subnet and patience.
        peer_id: Ours.
        saved: The address of last time (with or without prefix length), used at once; None for a new node.
        rng: For jitter, so that claims that collided do not collide again in step.
        pinned: The address may never change (a control-plane node). Can be set later through :attr:`pinned`.
    """

    def __init__(
        self,
        settings: LeaseSettings,
        peer_id: PeerId,
        saved: str | None = None,
        rng: Random | None = None,
        *,
        pinned: bool = False,
    ) -> None:
        self.settings = settings
        self.peer_id = peer_id
        self.pinned = pinned or settings.static
        self.counters: dict[str, int] = {"claims": 0, "lost_claims": 0, "stepped_aside": 0, "refreshes": 0}
        self._rng = rng or Random(peer_id)
        # a fixed address needs no pool, and may be IPv6
        self._pool = None if settings.static else Pool.parse(settings.address)
        self._network = ip_interface(settings.address).network
        self._turns = Turns(peer_id, settings.marker_wait, settings.foreign_patience)
        self._note = LeaseNote(LeaseState.SEEKING)
        self._published = ""
        self._start: float | None = None
        self._saved = self._usable(saved)
        self._claimed_at = 0.0
        self._seen: dict[PeerId, float] = {}
        self._outdone: set[tuple[PeerId, int]] = set()
        self._left: dict[str, int] = {}
        self._refresh: list[float] = []
        self._lead_at = float("-inf")
        self._waiting: tuple[Waiting, ...] = ()
        self._wakeup: float | None = None

    @property
    def address(self) -> str | None:
        """The address in use, without prefix length; None while there is none."""
        return self._note.address if self._note.state is LeaseState.HELD else None

    @property
    def prefix(self) -> int:
        """The subnet's prefix length."""
        return self._network.prefixlen

    def waiting(self) -> tuple[Waiting, ...]:
        """Why there is no address yet, or what is wrong with it; as of the last step."""
        return self._waiting

    def next_wakeup(self) -> float | None:
        """Monotonic time of the next :meth:`step` when nothing changes; None when only a change matters."""
        return self._wakeup

    def _usable(self, saved: str | None) -> str | None:
        if self._pool is None:
            return str(ip_interface(self.settings.address).ip)
        address = (saved or "").strip().partition("/")[0]
        # Saved by a daemon with another subnet, or EdgeVPN's broadcast address: worthless, unless it can never change.
        return address if address and (address in self._pool or self.pinned) else None

    # ------------------------------------------------------------------ step

    def step(self, view: LeaseView, now: Now) -> tuple[Effect, ...]:
        """Look at the ledger as it is now. Call after every change and at :meth:`next_wakeup`."""
        effects: list[Effect] = []
        others = (view.live | view.connected) - {self.peer_id}
        machines = parse_machines(view.machines)
        facts = _Facts(machines, parse_notes(view.notes), others, self._predecessor(view, machines))
        self._seen = {peer: self._seen.get(peer, now.mono) for peer in others}
        self._waiting = ()
        if self._start is None:
            self._begin(facts, now, effects)
        turn = self._turns.judge(
            others, frozenset(facts.machines.values()), facts.notes, dhcp_leader(view.dhcp), now.mono
        )
        if self._note.state is LeaseState.HELD:
            self._keep(facts, now, effects)
        if self._note.state is not LeaseState.HELD:
            self._seek(facts, turn, now, effects)
        self._withdraw_old(facts, effects)
        self._publish(effects)
        self._schedule(now)
        return tuple(effects)

    def _predecessor(self, view: LeaseView, machines: Mapping[str, PeerId]) -> PeerId | None:
        """The EdgeVPN that ran on this machine until ours took its place: it left our address and a heartbeat behind.

        Its identity was new at every start, so it looks like somebody else who lives; but its host name is ours, and
        nobody is connected with it.
        """
        address = self._note.address or self._saved or ""
        owner = machines.get(address)
        if owner is None or owner in view.connected or not self.settings.hostname:
            return None
        return owner if machine_hostname(view.machines, address) == self.settings.hostname else None

    def _begin(self, facts: _Facts, now: Now, effects: list[Effect]) -> None:
        self._start = now.mono
        if self._saved is None:
            return
        # The ledger outlives the daemon: our own note in it knows since when.
        before = facts.notes.get(self.peer_id)
        known = before is not None and before.address == self._saved and before.state is LeaseState.HELD
        self._hold(self._saved, before.since_ms if known and before else _milliseconds(now), effects)

    def _hold(self, address: str, since_ms: int, effects: list[Effect]) -> None:
        self._note = LeaseNote(LeaseState.HELD, address, since_ms, self.pinned)
        effects.append(Assigned(address, self.prefix))

    def _keep(self, facts: _Facts, now: Now, effects: list[Effect]) -> None:
        """We hold an address: does anybody else?"""
        notes, others = facts.notes, facts.others
        address = self._note.address
        mine = LeaseNote(LeaseState.HELD, address, self._note.since_ms, self.pinned)
        rivals = {
            peer
            for peer in others
            if (note := notes.get(peer)) is not None and note.state is LeaseState.HELD and note.address == address
        }
        owner = facts.machines.get(address)
        foreign = {owner} if owner is not None and owner in others and owner not in notes else set()
        foreign.discard(facts.predecessor)
        if not self.pinned:
            better = foreign | {peer for peer in rivals if notes[peer].rank(peer) < mine.rank(self.peer_id)}
            if better:
                self.counters["stepped_aside"] += 1
                self._release(f"peer {min(better)} holds it with more right", now, effects)
                return
        stuck = foreign | {peer for peer in rivals if notes[peer].pinned and self.pinned}
        if stuck:
            self._waiting = (AddressConflict(address, min(stuck)),)
        self._outdo_tombstones(facts, now, effects)
        self._note = mine

    def _outdo_tombstones(self, facts: _Facts, now: Now, effects: list[Effect]) -> None:
        """Whoever stepped aside for us left a tombstone in ``machines`` that hides our older record from third nodes."""
        mine = self._note.address
        left = {
            (peer, at)
            for peer, note in facts.notes.items()
            for address, at in note.left
            if address == mine and note.address != mine and peer in facts.others
        }
        for _peer, at in left - self._outdone:
            ahead = min(max(at / 1000 - now.unix_float, 0.0), _MOST_SKEW)
            self._refresh += [now.mono + ahead + after for after in _REFRESH_AFTER]
        self._outdone |= left
        if any(at <= now.mono for at in self._refresh):
            self._refresh = [at for at in self._refresh if at > now.mono]
            self.counters["refreshes"] += 1
            effects.append(RefreshMachine(self._note.address))

    def _release(self, reason: str, now: Now, effects: list[Effect]) -> None:
        address = self._note.address
        self._left.pop(address, None)
        self._left[address] = _milliseconds(now)
        effects += [Released(address, reason), WithdrawMachine(address)]
        self._note = LeaseNote(LeaseState.SEEKING)
        self._refresh = []

    def _seek(self, facts: _Facts, turn: Turn, now: Now, effects: list[Effect]) -> None:
        if not turn.ours:
            if self._note.state is LeaseState.CLAIMED:
                self._note = LeaseNote(LeaseState.SEEKING)
            self._waiting = (WaitingForTurn(turn.waiting_for),)
            return
        if turn.take_lead and now.mono - self._lead_at >= 5.0:
            self._lead_at = now.mono
            effects.append(TakeLead(f'"{self.peer_id}"'))
        next_for_go = self._next_for_go(facts) if turn.waiting_for else ""
        if self._note.state is LeaseState.CLAIMED and self._is_lost(facts, next_for_go):
            self.counters["lost_claims"] += 1
            self._note = LeaseNote(LeaseState.SEEKING)
        if self._note.state is LeaseState.SEEKING:
            assert self._pool is not None, "a fixed address is held from the start"
            address = self._choose(self._pool, facts, next_for_go)
            if address is None:
                self._waiting = (PoolExhausted(str(self._pool.network), self._pool.size),)
                return
            self.counters["claims"] += 1
            self._note = LeaseNote(LeaseState.CLAIMED, address, _milliseconds(now))
            self._claimed_at = now.mono + self._rng.uniform(0.0, 0.1)
        due = self._confirm_at(facts)
        if now.mono >= due:
            self._hold(self._note.address, self._note.since_ms, effects)
        elif facts.others:
            self._waiting = (ConfirmingAddress(self._note.address),)
        else:
            self._waiting = (ListeningForPeers(self.settings.lone_wait),)

    def _next_for_go(self, facts: _Facts) -> str:
        """What a waiting Go node would take at this moment: the highest plus one, the first address when there is none."""
        highest = highest_host(facts.machines)
        if not facts.machines:
            return str(ip_interface(self.settings.address).ip)
        return str(IPv4Address(highest + 1)) if 0 < highest < 0xFFFFFFFF else ""

    def _is_lost(self, facts: _Facts, next_for_go: str) -> bool:
        address = self._note.address
        owner = facts.machines.get(address)
        if address == next_for_go or (owner is not None and owner != self.peer_id and owner in facts.others):
            return True
        mine = self._note.rank(self.peer_id)
        return any(
            note.address == address and (peer in facts.others or note.pinned) and note.rank(peer) < mine
            for peer, note in facts.notes.items()
            if peer != self.peer_id
        )

    def _choose(self, pool: Pool, facts: _Facts, next_for_go: str) -> str | None:
        """An address for a new claim: unused ones first, then those of peers that are gone for long."""
        taken: set[str] = set()
        gone: set[str] = set()
        for address, peer in facts.machines.items():
            if peer != self.peer_id:
                (taken if peer in facts.others else gone).add(address)
        for peer, note in facts.notes.items():
            if peer != self.peer_id and note.address:
                (taken if peer in facts.others or note.pinned else gone).add(note.address)
        gone.add(next_for_go)
        return pool.choose(self.peer_id, taken, gone)

    def _confirm_at(self, facts: _Facts) -> float:
        settings = self.settings
        if not facts.others:
            return max((self._start or 0.0) + settings.lone_wait, self._claimed_at + settings.confirm)
        due = max(self._claimed_at, *self._seen.values()) + settings.confirm
        # Somebody of whom there is a sign of life but no note yet: it may be on its way, with the same address in it.
        unknown = [self._seen[peer] + settings.marker_wait for peer in facts.others if peer not in facts.notes]
        return min(max([due, *unknown]), self._claimed_at + settings.longest_confirm)

    def _withdraw_old(self, facts: _Facts, effects: list[Effect]) -> None:
        """Records that name us at another address are of an earlier lease."""
        if self.address is None:
            return
        for address, peer in facts.machines.items():
            if peer == self.peer_id and address != self.address:
                effects.append(WithdrawMachine(address))

    def _publish(self, effects: list[Effect]) -> None:
        text = replace(self._note, plain=self._turns.plain, left=tuple(self._left.items())).text()
        if text != self._published:
            self._published = text
            effects.append(PublishNote(text, self.peer_id))

    def _schedule(self, now: Now) -> None:
        times: list[float] = list(self._refresh)
        if self._note.state is not LeaseState.HELD:
            if (change := self._turns.next_change(now.mono)) is not None:
                times.append(change)
            if self._note.state is LeaseState.CLAIMED:
                times.append(max(now.mono + 0.02, self._claimed_at + self.settings.confirm))
                times.append((self._start or 0.0) + self.settings.lone_wait)
                times += [
                    at + wait
                    for at in self._seen.values()
                    for wait in (self.settings.confirm, self.settings.marker_wait)
                ]
                times.append(self._claimed_at + self.settings.longest_confirm)
            times.append(now.mono + 5.0)
        self._wakeup = min((at for at in times if at > now.mono), default=None)


def _milliseconds(now: Now) -> int:
    return now.unix_ns // 1_000_000
