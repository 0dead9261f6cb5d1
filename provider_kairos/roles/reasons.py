"""Typed reasons for which a node waits; status, log and API print the same sentences (design: errors and Waiting)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from provider_kairos.errors import Waiting

__all__ = [
    "AnotherFirstMaster",
    "ClocksDiffer",
    "ClusterExists",
    "ConfirmingFounding",
    "ConfirmingLeadership",
    "ForcedBesideFirst",
    "HaIncomplete",
    "LeaderHasNotClaimed",
    "MoreNodes",
    "NoCandidate",
    "NoJoinToken",
    "NoMasterAddress",
    "NoRoleYet",
    "NoVirtualIp",
    "OtherNetwork",
    "RoleNone",
    "Settling",
    "TokenNotWritten",
    "TwoClusters",
]


@dataclass(frozen=True, slots=True)
class MoreNodes(Waiting):
    """Fewer nodes advertise than ``minimum_nodes``."""

    code: ClassVar[str] = "more-nodes"
    seen: int
    needed: int

    def text(self) -> str:
        """One sentence for people."""
        missing = self.needed - self.seen
        return f"waiting for {missing} more node{'' if missing == 1 else 's'}: {self.seen} of {self.needed} seen"


@dataclass(frozen=True, slots=True)
class Settling(Waiting):
    """Nodes are still appearing."""

    code: ClassVar[str] = "settling"
    seen: int
    active: int

    def text(self) -> str:
        """One sentence for people."""
        return f"nodes are still appearing: {self.seen} seen, {self.active} peers active"


@dataclass(frozen=True, slots=True)
class LeaderHasNotClaimed(Waiting):
    """The node that is to lead has not said so yet."""

    code: ClassVar[str] = "leader-not-claimed"
    leader: str

    def text(self) -> str:
        """One sentence for people."""
        return f"{self.leader} is to lead and has not claimed it yet"


@dataclass(frozen=True, slots=True)
class ConfirmingLeadership(Waiting):
    """This node has claimed the lead and looks whether the claim stands."""

    code: ClassVar[str] = "confirming-leadership"

    def text(self) -> str:
        """One sentence for people."""
        return "this node claimed the lead and waits a moment for other claims"


@dataclass(frozen=True, slots=True)
class NoRoleYet(Waiting):
    """The leader has not given this node a role."""

    code: ClassVar[str] = "no-role"
    leader: str

    def text(self) -> str:
        """One sentence for people."""
        return f"leader {self.leader} has not assigned a role yet"


@dataclass(frozen=True, slots=True)
class NoCandidate(Waiting):
    """Nobody without a role is left who could become first master."""

    code: ClassVar[str] = "no-candidate"

    def text(self) -> str:
        """One sentence for people."""
        return "no node is free to become first master: every node has a fixed role"


@dataclass(frozen=True, slots=True)
class ConfirmingFounding(Waiting):
    """This node is chosen as first master and looks whether the choice stands."""

    code: ClassVar[str] = "confirming-founding"

    def text(self) -> str:
        """One sentence for people."""
        return "this node is chosen as first master and waits a moment for other choices"


@dataclass(frozen=True, slots=True)
class AnotherFirstMaster(Waiting):
    """Two first masters were named; the other one stands."""

    code: ClassVar[str] = "another-first-master"
    first: str

    def text(self) -> str:
        """One sentence for people."""
        return f"{self.first} is first master; this node waits for another role"


@dataclass(frozen=True, slots=True)
class TwoClusters(Waiting):
    """Nodes of two foundings meet under one network id: islands that were apart when they formed."""

    code: ClassVar[str] = "two-clusters"
    other: str

    def text(self) -> str:
        """One sentence for people."""
        return (
            f"{self.other} belongs to another cluster of the same network id, founded apart from this node's; "
            "neither changes by itself: reset the nodes of one, or give them another p2p.network_id"
        )


@dataclass(frozen=True, slots=True)
class ForcedBesideFirst(Waiting):
    """``p2p.role: master`` where another first master is: that would be a second cluster."""

    code: ClassVar[str] = "forced-beside-first"
    first: str

    def text(self) -> str:
        """One sentence for people."""
        return (
            f"{self.first} is first master of this network id and p2p.role: master here would found a second cluster; "
            "take p2p.role out on one of the two, or give this node another p2p.network_id"
        )


@dataclass(frozen=True, slots=True)
class ClocksDiffer(Waiting):
    """Another node's clock is far from this one's; ``minutes`` are positive when it is ahead."""

    code: ClassVar[str] = "clocks-differ"
    other: str
    minutes: int

    def text(self) -> str:
        """One sentence for people."""
        side = "ahead of" if self.minutes > 0 else "behind"
        return (
            f"the clock of {self.other} is {abs(self.minutes)} minutes {side} this machine's; nodes whose clocks differ "
            "by 15 minutes do not see each other: set the clock of one of the two"
        )


@dataclass(frozen=True, slots=True)
class ClusterExists(Waiting):
    """Somebody holds a role on disk, so no second cluster is founded under this network id."""

    code: ClassVar[str] = "cluster-exists"
    holder: str

    def text(self) -> str:
        """One sentence for people."""
        return (
            f"{self.holder} already belongs to a cluster of this network id, but no first master is known; "
            "a second one is only founded on an operator's word (p2p.role: master)"
        )


@dataclass(frozen=True, slots=True)
class HaIncomplete(Waiting):
    """Fewer additional masters than asked for."""

    code: ClassVar[str] = "ha-incomplete"
    have: int
    want: int

    def text(self) -> str:
        """One sentence for people."""
        return f"waiting for nodes to become additional masters: {self.have} of {self.want}"


@dataclass(frozen=True, slots=True)
class NoJoinToken(Waiting):
    """A joiner has nothing to join with."""

    code: ClassVar[str] = "no-join-token"
    first: str = ""

    def text(self) -> str:
        """One sentence for people."""
        return f"first master{f' {self.first}' if self.first else ''} has not published a join token yet"


@dataclass(frozen=True, slots=True)
class NoMasterAddress(Waiting):
    """A joiner does not know where to."""

    code: ClassVar[str] = "no-master-address"

    def text(self) -> str:
        """One sentence for people."""
        return "first master has not published its address yet"


@dataclass(frozen=True, slots=True)
class NoVirtualIp(Waiting):
    """The daemon has no lease yet."""

    code: ClassVar[str] = "no-virtual-ip"

    def text(self) -> str:
        """One sentence for people."""
        return "no virtual IP yet"


@dataclass(frozen=True, slots=True)
class TokenNotWritten(Waiting):
    """k3s runs, but its token file is not there yet."""

    code: ClassVar[str] = "token-not-written"

    def text(self) -> str:
        """One sentence for people."""
        return "k3s has not written its join token yet"


@dataclass(frozen=True, slots=True)
class OtherNetwork(Waiting):
    """This node was bootstrapped into another network id."""

    code: ClassVar[str] = "other-network"
    network_id: str

    def text(self) -> str:
        """One sentence for people."""
        return (
            f"this node was bootstrapped for network id {self.network_id}; "
            "reset it, or remove /usr/local/.kairos/deployed and /usr/local/.kairos/state, to join another"
        )


@dataclass(frozen=True, slots=True)
class RoleNone(Waiting):
    """``p2p.role: none``."""

    code: ClassVar[str] = "role-none"

    def text(self) -> str:
        """One sentence for people."""
        return "p2p.role is none: this node takes no Kubernetes role"
