"""Messages of ``/ipfs/kad/1.0.0``: bytes to values and back, with a bound on everything (libp2p specs/kad-dht).

The protobuf is py-libp2p's (:mod:`provider_kairos.mesh.parts`). Addresses stay binary: a server passes on what it was
given, also what it could not dial itself. Values (IPNS, public keys) are neither stored nor asked for; their messages
are read as far as the key. What is answered to what is :mod:`provider_kairos.mesh.kad_server`'s business.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import multiaddr, parts
from provider_kairos.mesh.addresses import Endpoint

__all__ = [
    "MAX_REQUEST",
    "MAX_RESPONSE",
    "PROTOCOL",
    "KadMessage",
    "KadPeer",
    "Kind",
    "decode",
    "distance_key",
    "encode",
    "peer_key",
]

PROTOCOL = "/ipfs/kad/1.0.0"

MAX_REQUEST = 16 * 1024
"""Longest request in bytes that is read: one peer with its addresses fits several times."""

MAX_RESPONSE = 512 * 1024
"""Longest answer in bytes that is read. Go would send 4 MiB; twenty peers with many addresses take 30 KB."""

MAX_KEY = 128
MAX_CLOSER = 32
MAX_PROVIDERS = 256
MAX_ADDRESSES = 48
"""Of one message, and of one peer in it; what comes after them is left out."""


class Kind(IntEnum):
    """What a message asks or tells."""

    PUT_VALUE = 0
    GET_VALUE = 1
    ADD_PROVIDER = 2
    GET_PROVIDERS = 3
    FIND_NODE = 4
    PING = 5


@dataclass(frozen=True, slots=True)
class KadPeer:
    """A peer that a message speaks of. ``addresses`` are binary multiaddresses."""

    peer: PeerId
    addresses: tuple[bytes, ...] = ()
    connected: bool = False

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Those of its addresses that TCP can dial."""
        found = (multiaddr.endpoint_of(address) for address in self.addresses)
        return tuple(dict.fromkeys(each for each in found if each is not None))


@dataclass(frozen=True, slots=True)
class KadMessage:
    """One message. Of an answer ``closer`` and ``providers`` count, of a request ``key`` (and, to add, ``providers``)."""

    kind: Kind
    key: bytes = b""
    closer: tuple[KadPeer, ...] = ()
    providers: tuple[KadPeer, ...] = ()


def distance_key(key: bytes) -> int:
    """Where a key lies: distances are taken between SHA-256 hashes, as numbers."""
    return int.from_bytes(hashlib.sha256(key).digest(), "big")


@lru_cache(maxsize=1024)
def peer_key(peer: PeerId) -> int:
    """Where a peer lies. Raises ValueError for what is no peer ID."""
    return distance_key(multiaddr.peer_id_bytes(peer))


def encode(message: KadMessage) -> bytes:
    """The protobuf, without a length."""
    made = parts.load().KadMessage(type=int(message.kind), clusterLevelRaw=1)
    if message.key:
        made.key = message.key
    _fill(made.closerPeers, message.closer)
    _fill(made.providerPeers, message.providers)
    data: bytes = made.SerializeToString()
    return data


def _fill(field: Any, peers: Iterable[KadPeer]) -> None:
    for each in peers:
        field.add(
            id=multiaddr.peer_id_bytes(each.peer), addrs=each.addresses[:MAX_ADDRESSES], connection=int(each.connected)
        )


def decode(data: bytes) -> KadMessage:
    """Read a message. Raises PeerError. Peers and addresses that make no sense are left out, and what is too much."""
    taken = parts.load()
    message = taken.KadMessage()
    try:
        message.ParseFromString(data)
    except (taken.DecodeError, ValueError) as error:
        raise PeerError(f"DHT message is malformed: {type(error).__name__}") from error
    try:
        kind = Kind(message.type)
    except ValueError:
        raise PeerError(f"DHT message of the unknown type {message.type}") from None
    if len(message.key) > MAX_KEY:
        raise PeerError(f"DHT key of {len(message.key)} bytes")
    return KadMessage(
        kind,
        bytes(message.key),
        closer=_read(message.closerPeers, MAX_CLOSER),
        providers=_read(message.providerPeers, MAX_PROVIDERS),
    )


def _read(peers: Sequence[Any], limit: int) -> tuple[KadPeer, ...]:
    found: dict[PeerId, KadPeer] = {}
    for each in peers[:limit]:
        peer = multiaddr.peer_id(bytes(each.id))
        if peer is None or peer in found:
            continue
        addresses = (bytes(raw) for raw in each.addrs[:MAX_ADDRESSES])
        found[peer] = KadPeer(
            peer, tuple(raw for raw in addresses if multiaddr.split(raw) is not None), each.connection == 1
        )
    return tuple(found.values())
