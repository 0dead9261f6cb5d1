"""Typed identifiers: one word for one thing (docs/reference/words.md).

A :data:`PeerId` is the base58 text of an identity multihash; for Ed25519 it embeds the public key, so a
signature can be checked with nothing but the peer ID (spec/edgevpn.md 5.10, 7).
"""

from __future__ import annotations

from typing import NewType

import base58

from provider_kairos.errors import PeerError

__all__ = ["NetworkId", "NodeUuid", "PeerId", "parse_peer_id", "peer_id_of_public_key", "public_key_of_peer_id"]

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


def parse_peer_id(text: str) -> PeerId:
    """A peer ID of any key type, as people write it (base58). Raises PeerError.

    It has to be a multihash: the key itself (identity, at most 42 bytes), or a SHA-256 (``Qm...``, RSA keys).
    """
    try:
        raw: bytes = base58.b58decode(text) if len(text) <= 64 else b""
    except ValueError:
        raw = b""
    inline = raw[:1] == b"\x00" and 4 < len(raw) <= 44 and raw[1] == len(raw) - 2
    hashed = raw[:2] == b"\x12\x20" and len(raw) == 34
    if not (inline or hashed):
        shown = text if len(text) <= 64 else text[:61] + "..."
        raise PeerError(f"{shown!r} is no peer ID")
    return PeerId(base58.b58encode(raw).decode("ascii"))
