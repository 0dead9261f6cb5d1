"""Typed identifiers: one word for one thing (docs/reference/words.md).

A :data:`PeerId` is the base58 text of an identity multihash; for Ed25519 it embeds the public key, so a
signature can be checked with nothing but the peer ID (spec/edgevpn.md 5.10, 7).
"""

from __future__ import annotations

from typing import NewType

import base58

from provider_kairos.errors import PeerError

__all__ = ["NetworkId", "NodeUuid", "PeerId", "peer_id_of_public_key", "public_key_of_peer_id"]

PeerId = NewType("PeerId", str)
"""libp2p identity, ``12D3KooW...``."""

NodeUuid = NewType("NodeUuid", str)
"""``<machine-id>-<hostname>``, as the ledger shows a node (spec/provider.md 4.2)."""

NetworkId = NewType("NetworkId", str)
"""The ledger bucket of one cluster (spec/provider.md 4.3)."""

# identity multihash (00), length 36, protobuf: type field (08) Ed25519 (01), data field (12) length 32 (20)
_ED25519_PREFIX = bytes.fromhex("002408011220")


def peer_id_of_public_key(public_key: bytes) -> PeerId:
    """The peer ID of a raw 32-byte Ed25519 public key."""
    if len(public_key) != 32:
        raise PeerError(f"an Ed25519 public key has 32 bytes, not {len(public_key)}")
    return PeerId(base58.b58encode(_ED25519_PREFIX + public_key).decode("ascii"))


def public_key_of_peer_id(peer_id: str) -> bytes:
    """The raw 32-byte Ed25519 public key inside a peer ID.

    Raises PeerError when the text is not base58 or embeds no Ed25519 key (RSA identities are hashes).
    """
    if len(peer_id) > 64:
        raise PeerError("peer ID is too long")
    try:
        raw: bytes = base58.b58decode(peer_id)
    except ValueError as error:
        raise PeerError(f"peer ID {peer_id!r} is not base58") from error
    if not raw.startswith(_ED25519_PREFIX) or len(raw) != len(_ED25519_PREFIX) + 32:
        raise PeerError(f"peer ID {peer_id!r} embeds no Ed25519 key")
    return raw[len(_ED25519_PREFIX) :]
