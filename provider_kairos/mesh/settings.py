"""Settings of a mesh (spec/edgevpn.md 7). Where they come from is the daemon's business."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from provider_kairos.errors import LocalError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.bootstrap import DEFAULT_PEERS
from provider_kairos.mesh.connection_limits import ConnectionLimits
from provider_kairos.token.codec import NetworkToken

__all__ = ["DhtMode", "DhtSettings", "MeshSettings"]


class DhtMode(StrEnum):
    """Whether this node answers others in the DHT."""

    AUTO = "auto"
    CLIENT = "client"
    SERVER = "server"


@dataclass(frozen=True, slots=True)
class DhtSettings:
    """Discovery over a DHT (spec/edgevpn.md 6.2).

    ``interval`` is the longest time between two rounds in seconds. ``announce``, when not empty, are the addresses that
    others are told instead of our own. ``defaults`` are the bootstrap peers of a node that names none.
    """

    mode: DhtMode = DhtMode.AUTO
    interval: float = 720.0
    announce: tuple[str, ...] = ()
    defaults: tuple[str, ...] = DEFAULT_PEERS


@dataclass(frozen=True, slots=True)
class MeshSettings:
    """What a mesh is made from.

    ``seed`` is the 32-byte Ed25519 seed of the identity. ``blocked_networks`` (the VPN) are neither dialled nor
    advertised. ``interfaces`` limits what is advertised and where mDNS speaks; empty means all. ``overlap`` is how
    many seconds the previous topic and key live on after a boundary, ``lead`` how many seconds before one the next
    topic is joined. ``gossip`` messages are limited by the token's ``max_message_size``. ``public_room``: be in the
    room of challenges too. ``only_peers``, when not empty, are those whose gossip is heard (the static peer table);
    ``blocked_peers`` are not connected with. ``dht`` is None where there is no discovery over a DHT.
    """

    seed: bytes = field(repr=False)
    token: NetworkToken
    listen: tuple[str, ...] = ("/ip4/0.0.0.0/tcp/0", "/ip6/::/tcp/0")
    bootstrap_peers: tuple[str, ...] = ()
    mdns: bool = True
    dht: DhtSettings | None = None
    blocked_networks: tuple[str, ...] = ("10.1.0.0/24",)
    interfaces: tuple[str, ...] = ()
    user_agent: str = "edgevpn"
    overlap: float = 30.0
    lead: float = 5.0
    public_room: bool = False
    only_peers: frozenset[PeerId] = frozenset()
    blocked_peers: frozenset[PeerId] = frozenset()
    limits: ConnectionLimits = field(default_factory=ConnectionLimits)

    def __post_init__(self) -> None:
        if len(self.seed) != 32:
            raise LocalError(f"an Ed25519 seed has 32 bytes, not {len(self.seed)}")
