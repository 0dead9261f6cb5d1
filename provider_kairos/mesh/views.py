"""What the mesh tells others: messages, events, a view of each peer, and what it waits for.

Values only; :class:`~provider_kairos.mesh.node.Mesh` hands them out.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId

__all__ = [
    "AllGatedOut",
    "ClockSkew",
    "ConnectionsFull",
    "DiscoveryDown",
    "EpochChanged",
    "HostDown",
    "MeshEvent",
    "Message",
    "NoDiscovery",
    "NoPeers",
    "NobodyOnTopic",
    "PeerConnected",
    "PeerDisconnected",
    "PeerSubscribed",
    "PeerUnsubscribed",
    "PeerView",
]


@dataclass(frozen=True, slots=True)
class Message:
    """One opened message. ``author`` signed it, ``via`` is the neighbour that delivered it.

    ``annotations`` travel in clear. ``room`` is ``ledger`` or ``public`` (the room of challenges).
    """

    author: PeerId
    via: PeerId
    data: bytes = field(repr=False)
    annotations: dict[str, Any] | None = None
    room: Literal["ledger", "public"] = "ledger"


@dataclass(frozen=True, slots=True)
class PeerConnected:
    """The first connection to a peer is up."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerDisconnected:
    """The last connection to a peer is gone."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerSubscribed:
    """A peer is in the current ledger room and did not say so before: tell it what we know."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class PeerUnsubscribed:
    """A peer left the ledger room."""

    peer: PeerId


@dataclass(frozen=True, slots=True)
class EpochChanged:
    """Topic and seal key changed; ``counter`` is the OTP counter."""

    counter: int


MeshEvent = PeerConnected | PeerDisconnected | PeerSubscribed | PeerUnsubscribed | EpochChanged


@dataclass(frozen=True, slots=True)
class PeerView:
    """One known peer. ``failures`` are dials in a row that failed; ``rtt_ms`` is 0 until measured.

    ``found_by`` is mdns, dht, bootstrap or inbound; ``dht-node`` for one that is connected for the DHT's sake alone, and
    empty for what something else told us of.
    """

    peer_id: PeerId
    connected: bool
    on_topic: bool
    addresses: tuple[str, ...]
    direction: str
    security: str
    rtt_ms: float
    last_error: str
    failures: int
    agent: str = ""
    protocols: tuple[str, ...] = ()
    found_by: str = ""


@dataclass(frozen=True, slots=True)
class HostDown(Waiting):
    """The libp2p host is not up."""

    code: ClassVar[str] = "mesh-host-down"
    reason: str

    def text(self) -> str:
        """One sentence."""
        return f"the mesh host is starting again: {self.reason}" if self.reason else "the mesh host is starting"


@dataclass(frozen=True, slots=True)
class NoPeers(Waiting):
    """Nobody is connected."""

    code: ClassVar[str] = "mesh-no-peers"
    known: int

    def text(self) -> str:
        """One sentence."""
        if self.known:
            return f"no peer is connected; {self.known} known, dialling goes on"
        return "no other node has been found yet"


@dataclass(frozen=True, slots=True)
class DiscoveryDown(Waiting):
    """mDNS cannot work at the moment; other ways of being found go on."""

    code: ClassVar[str] = "mesh-discovery-down"
    reason: str

    def text(self) -> str:
        """One sentence."""
        return f"no discovery on the local network: {self.reason}"


@dataclass(frozen=True, slots=True)
class NoDiscovery(Waiting):
    """Nothing looks for other nodes: they have to dial us."""

    code: ClassVar[str] = "mesh-no-discovery"

    def text(self) -> str:
        """One sentence."""
        return "nothing looks for other nodes: mDNS and the DHT are off, and there is no bootstrap peer"


@dataclass(frozen=True, slots=True)
class DhtNoBootstrap(Waiting):
    """There is no way into the DHT. Of ``tried`` bootstrap peers ``connected`` answer, but serve no DHT."""

    code: ClassVar[str] = "dht-no-bootstrap"
    tried: int
    connected: int = 0

    def text(self) -> str:
        """One sentence."""
        if self.connected:
            return f"no bootstrap peer serves the DHT: {self.tried} tried, {self.connected} answer without"
        return f"no bootstrap peer answers: {self.tried} tried" if self.tried else "there is no bootstrap peer to try"


@dataclass(frozen=True, slots=True)
class DhtNobodyFound(Waiting):
    """The DHT answers, but no other node of our network could be found and reached through it."""

    code: ClassVar[str] = "dht-nobody-found"
    nodes: int

    def text(self) -> str:
        """One sentence."""
        return f"the DHT answers ({self.nodes} nodes known), but no other node of this network was reached through it"


@dataclass(frozen=True, slots=True)
class NobodyOnTopic(Waiting):
    """Peers are connected, but none is in our ledger room."""

    code: ClassVar[str] = "mesh-nobody-on-topic"
    connected: int

    def text(self) -> str:
        """One sentence."""
        return f"{self.connected} peers are connected, none is in our ledger room: other token, or a wrong clock"


@dataclass(frozen=True, slots=True)
class AllGatedOut(Waiting):
    """There are peers in the ledger room, and we are told to listen to none of them."""

    code: ClassVar[str] = "mesh-all-gated-out"
    gated: int
    by: str

    def text(self) -> str:
        """One sentence."""
        return f"all {self.gated} peers in the ledger room are gated out by the {self.by}: what they write is not heard"


@dataclass(frozen=True, slots=True)
class ConnectionsFull(Waiting):
    """Every connection is in use."""

    code: ClassVar[str] = "mesh-connections-full"
    most: int

    def text(self) -> str:
        """One sentence."""
        return f"all {self.most} connections are in use: newcomers take the places of strangers, or find none"


@dataclass(frozen=True, slots=True)
class ClockSkew(Waiting):
    """A peer is in the room of another epoch: its clock or ours is wrong by about ``seconds`` (ours minus theirs)."""

    code: ClassVar[str] = "mesh-clock-skew"
    peer: PeerId
    seconds: int

    def text(self) -> str:
        """One sentence."""
        way = "ahead of" if self.seconds > 0 else "behind"
        return f"our clock is about {abs(self.seconds)} s {way} that of {self.peer}: set the clocks right"
