"""Who leads: the advertising node with the largest hash claims ``leader-auto`` and keeps it (spec/provider.md 4.5.1).

The rule is the original's, so that Go nodes agree: the highest FNV-1a hash of the UUID leads once nobody who still
advertises is recorded. What differs is time. Where the original backs off for one pass of 10 s, a claim is made when
the set of advertising nodes has been still for ``settle`` seconds, and counts when it has stood for ``settle``
seconds more. Peers that have a heartbeat and no advertisement are nodes that are about to appear (or strangers on
the token): they are waited for, up to ``patience``.

The leader hands out roles; who may be first master is decided in :mod:`provider_kairos.roles.founding`.
"""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.clock import Now
from provider_kairos.errors import Waiting
from provider_kairos.ids import NodeUuid
from provider_kairos.ledger.leader import leader as highest
from provider_kairos.roles.effects import PutKey
from provider_kairos.roles.model import LEADER, View
from provider_kairos.roles.reasons import ConfirmingLeadership, LeaderHasNotClaimed, MoreNodes, Settling

__all__ = ["Leadership", "Leading"]


@dataclass(frozen=True, slots=True)
class Leading:
    """``leader`` as recorded and alive (or empty); ``mine``: this node leads and may assign now."""

    leader: str = ""
    mine: bool = False
    writes: tuple[PutKey, ...] = ()
    waiting: tuple[Waiting, ...] = ()
    wake: float | None = None


class Leadership:
    """The claim of one node. ``settle`` and ``patience`` in seconds."""

    def __init__(self, uuid: NodeUuid, minimum_nodes: int = 2, settle: float = 1.0, patience: float = 4.0) -> None:
        self.uuid = uuid
        self.minimum_nodes = minimum_nodes
        self.settle = settle
        self.patience = patience
        self._set: tuple[NodeUuid, ...] = ()
        self._set_since = 0.0
        self._enough_since: float | None = None
        self._recorded: str | None = None
        self._recorded_since = 0.0

    def step(self, view: View, now: Now) -> Leading:
        """Look at the ledger as it is now."""
        nodes = view.advertising(now)
        if nodes != self._set or self._enough_since is None:
            self._set, self._set_since = nodes, now.mono
        if len(nodes) < self.minimum_nodes or self.uuid not in nodes:
            self._enough_since = None
            self._recorded = None
            # Our own advertisement may not be in the ledger yet.
            seen = len({*nodes, self.uuid})
            return Leading(waiting=(MoreNodes(seen, self.minimum_nodes),) if seen < self.minimum_nodes else ())
        if self._enough_since is None:
            self._enough_since = now.mono

        lead = view.leader if view.leader in nodes else ""
        if lead != self._recorded:
            self._recorded, self._recorded_since = lead, now.mono
        if lead and lead != self.uuid:
            return Leading(leader=lead)
        ready = self._ready_at(view, nodes, now)
        if not lead:
            chosen = highest(list(nodes))
            if chosen != self.uuid:
                return Leading(waiting=(LeaderHasNotClaimed(chosen),))
            if now.mono < ready:
                return Leading(waiting=(Settling(len(nodes), view.active(now)),), wake=ready)
            return Leading(
                writes=(PutKey(LEADER, str(self.uuid)),),
                waiting=(ConfirmingLeadership(),),
                wake=now.mono + self.settle,
            )
        stands = max(self._recorded_since + self.settle, ready)
        if now.mono < stands:
            return Leading(leader=lead, waiting=(ConfirmingLeadership(),), wake=stands)
        return Leading(leader=lead, mine=True)

    def _ready_at(self, view: View, nodes: tuple[NodeUuid, ...], now: Now) -> float:
        """When the set counts as still: after ``settle``, later while peers without advertisement are waited for.

        A stream of newcomers may not hold the first decision up for ever, hence the bound.
        """
        assert self._enough_since is not None
        bound = self._enough_since + self.patience
        if view.active(now) > len(nodes):
            return bound
        return min(self._set_since + self.settle, max(bound, self._enough_since + self.settle))
