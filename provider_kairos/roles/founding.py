"""The decision that must not be made twice: which node is first master (spec/provider.md 4.5.2, 4.10, 13 #1 #2 #6).

This is the one seam for it: :class:`Founding`. A caller passes what the ledger shows and what this machine knows and
gets a :class:`Decision`; it configures a first master only when ``certain`` says so. :class:`LeaderFounding` decides
the way the original does, by the leader's choice, made safe as far as a leader's choice can be:

* what a node holds on disk wins over every word in the ledger, and is known to all through its ``-meta`` record;
* while any node holds a role for this network id, no second first master is made;
* the chosen node starts only after the choice has stood undisputed for a moment; of two choices the same one gives way
  on every node;
* ``p2p.role: master`` is an operator's word: it needs no leader and no other nodes, and founds again where the old
  first master is gone; but beside a first master that is there it would be a second cluster, and waits.

Condition: nodes that are up see one another within the settle times. Islands of ``minimum_nodes`` nodes each that meet
only later may each have founded; that is for a quorum to prevent, which then takes this place.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Protocol

from provider_kairos.clock import Now
from provider_kairos.errors import Waiting
from provider_kairos.ids import NodeUuid
from provider_kairos.ledger.leader import fnv1a32
from provider_kairos.roles.effects import PutKey
from provider_kairos.roles.leader import Leading
from provider_kairos.roles.model import LocalTruth, Node, Role, View, role_key
from provider_kairos.roles.reasons import (
    AnotherFirstMaster,
    ClusterExists,
    ConfirmingFounding,
    ForcedBesideFirst,
    MoreNodes,
    NoCandidate,
    NoVirtualIp,
)

__all__ = ["Decision", "Founding", "LeaderFounding", "first_master", "holder_of", "stranger_of"]


@dataclass(frozen=True, slots=True)
class Decision:
    """Who is first master, as far as this node can tell.

    ``first`` may be named before anybody may act on it; ``certain`` is true only on that node itself, and only when
    it may configure itself. ``refused`` means that no first master may be made at all now.
    """

    first: NodeUuid | None = None
    certain: bool = False
    refused: bool = False
    writes: tuple[PutKey, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    wake: float | None = None


class Founding(Protocol):
    """Decides the first master. Called at every step; keeps its own memory between calls."""

    def decide(self, view: View, local: LocalTruth, leading: Leading, now: Now) -> Decision:
        """Look at the world as it is now."""
        ...


def _started_by_go(node: Node, view: View) -> bool:
    """A node that is not ours tells nobody what it holds; a published token and address say that it founded."""
    return not node.ours and bool(view.node_token) and bool(view.ip_master)


def first_master(view: View, now: Now) -> NodeUuid | None:
    """The one first master among all that are named; the same on every node with the same view.

    A node that holds the role on disk comes first (the earliest generation of them), then a Go node, then one that
    its own configuration forces, then the undecided one with the highest hash. Nodes that were named, hold nothing
    and went away no longer count.
    """
    best: tuple[int, bool, str, int, str] | None = None
    for node in view.nodes.values():
        if node.role is None or not node.role.first:
            continue
        if node.held:
            rank = 0
        elif _started_by_go(node, view):
            rank = 1
        elif not node.advertises(now):
            continue
        else:
            rank = 1 if not node.ours else 2
        generation = node.meta.generation if rank == 0 and node.meta else ""
        forced = rank > 0 and node.meta is not None and node.meta.forced
        key = (rank, not forced, generation, -fnv1a32(node.uuid.encode("utf-8")), node.uuid)
        if best is None or key < best:
            best = key
    return NodeUuid(best[4]) if best else None


def holder_of(view: View, me: NodeUuid) -> NodeUuid | None:
    """Another node that holds a role on disk for this bucket, if any."""
    return min((n.uuid for n in view.nodes.values() if n.held and n.uuid != me), default=None)


def stranger_of(view: View, generation: str, now: Now) -> NodeUuid | None:
    """A node that is there and holds a role of another founding; generations that nobody named say nothing."""
    if not generation:
        return None
    return min(
        (
            node.uuid
            for node in view.nodes.values()
            if node.held and node.meta and node.meta.generation not in {"", generation} and node.advertises(now)
        ),
        default=None,
    )


class LeaderFounding:
    """The leader chooses at random, the chosen one confirms."""

    def __init__(
        self,
        uuid: NodeUuid,
        *,
        role: Role,
        forced: Role | None,
        rng: random.Random,
        minimum_nodes: int = 2,
        settle: float = 1.0,
    ) -> None:
        self.uuid = uuid
        self.role = role
        self.forced = forced
        self.rng = rng
        self.minimum_nodes = minimum_nodes
        self.settle = settle
        self._ground: tuple[object, ...] | None = None
        self._since = 0.0

    def decide(self, view: View, local: LocalTruth, leading: Leading, now: Now) -> Decision:
        """See :class:`Founding`."""
        if local.held is not None:
            self._ground = None
            mine = local.held.role.first
            return Decision(first=first_master(view, now) or (self.uuid if mine else None), refused=True)
        first = first_master(view, now)
        if self.forced is not None and self.forced.first:
            return self._forced(view, local, first, now)
        named = view.nodes.get(self.uuid)
        named_role = named.ledger_role if named else None
        if first == self.uuid:
            return self._confirm(view, now)
        self._ground = None
        if first is not None:
            waits = (AnotherFirstMaster(first),) if named_role is not None and named_role.first else ()
            return Decision(first=first, waiting=waits)
        if holder := holder_of(view, self.uuid):
            return Decision(refused=True, waiting=(ClusterExists(holder),))
        if not leading.mine:
            return Decision()
        return self._choose(view, now)

    def _forced(self, view: View, local: LocalTruth, first: NodeUuid | None, now: Now) -> Decision:
        """The operator's word: certain when no other first master showed up for ``settle`` seconds."""
        if first is not None and first != self.uuid and view.nodes[first].advertises(now):
            self._ground = None
            return Decision(first=first, waiting=(ForcedBesideFirst(first),))
        if not local.ip:
            # Without an address the daemon has hardly met anybody: a silence that says nothing.
            self._ground = None
            return Decision(first=self.uuid, waiting=(NoVirtualIp(),))
        return self._stands(("forced",), now)

    def _choose(self, view: View, now: Now) -> Decision:
        """The leader's part: one of the nodes without a role, never itself when its own role is fixed."""
        free = [
            uuid
            for uuid in view.advertising(now)
            if view.nodes[uuid].role in {None, Role.AUTO} and not (uuid == self.uuid and self.forced is not None)
        ]
        if not free:
            return Decision(waiting=(NoCandidate(),))
        chosen = free[0] if len(free) == 1 else self.rng.choice(free)
        return Decision(first=chosen, writes=(PutKey(role_key(chosen), str(self.role)),), wake=now.mono)

    def _confirm(self, view: View, now: Now) -> Decision:
        """The chosen node's part: the same choice, the same leader, nobody new, for ``settle`` seconds."""
        if holder := holder_of(view, self.uuid):
            self._ground = None
            return Decision(first=self.uuid, refused=True, waiting=(ClusterExists(holder),))
        nodes = view.advertising(now)
        if len(nodes) < self.minimum_nodes:
            self._ground = None
            return Decision(first=self.uuid, waiting=(MoreNodes(len(nodes), self.minimum_nodes),))
        named = frozenset(n.uuid for n in view.nodes.values() if n.role is not None and n.role.first)
        return self._stands((view.leader, named), now)

    def _stands(self, ground: tuple[object, ...], now: Now) -> Decision:
        """Certain once the grounds were the same for ``settle`` seconds."""
        if ground != self._ground:
            self._ground, self._since = ground, now.mono
        ready = self._since + self.settle
        if now.mono < ready:
            return Decision(first=self.uuid, waiting=(ConfirmingFounding(),), wake=ready)
        return Decision(first=self.uuid, certain=True)
