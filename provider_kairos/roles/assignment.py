"""What the leader gives to all the others (spec/provider.md 4.5.2 with 13 #3, #4, #5).

Pure: a view in, writes out. Roles on disk are never written over; nodes that run the original are written to only while
they have no role. Additional masters are all named at once (two may join together, spec/k3s.md 6); when fewer nodes
are free than masters missing, nobody becomes a worker yet.
"""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.clock import Now
from provider_kairos.errors import Waiting
from provider_kairos.ids import NodeUuid
from provider_kairos.roles.effects import PutKey
from provider_kairos.roles.founding import Decision
from provider_kairos.roles.model import Node, Role, View, role_key
from provider_kairos.roles.reasons import HaIncomplete

__all__ = ["Assignment", "assign"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Roles to write, and why more nodes would be welcome."""

    writes: tuple[PutKey, ...] = ()
    waiting: tuple[Waiting, ...] = ()


def _free(node: Node, first: NodeUuid) -> bool:
    """Without a role, or named first master in vain (ours, undecided: it never started)."""
    if node.role in {None, Role.AUTO}:
        return True
    return node.uuid != first and node.ours and not node.held and node.role is not None and _vain(node)


def _vain(node: Node) -> bool:
    return node.role is not None and node.role.first and node.meta is not None and not node.meta.forced


def assign(view: View, decision: Decision, *, additional_masters: int, now: Now) -> Assignment:
    """Roles for everyone who has none, given that a first master is named or a cluster exists.

    ``additional_masters`` is the number wanted beside the first, 0 without HA.
    """
    if decision.first is None and not decision.refused:
        return Assignment()
    first = decision.first or NodeUuid("")
    free = [u for u in view.advertising(now) if u != first and _free(view.nodes[u], first)]
    have = sum(1 for n in view.nodes.values() if n.role is Role.HA and (n.held or n.advertises(now)))
    missing = max(0, additional_masters - have)
    roles = {uuid: Role.HA if index < missing else Role.WORKER for index, uuid in enumerate(free)}
    short = missing - len(free)
    waiting = (HaIncomplete(additional_masters - short, additional_masters),) if short > 0 else ()
    return Assignment(tuple(PutKey(role_key(u), str(r)) for u, r in roles.items()), waiting)
