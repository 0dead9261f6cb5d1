"""Signing and verifying entries with the libp2p identity key (spec/edgevpn.md 5.10).

Ed25519 only: the peer ID embeds the public key, so a signature needs nothing but the entry. RSA identities cannot take
part in EdgeVPN either; secp256k1 ones could, and count as unsigned here.
"""

from __future__ import annotations

import functools

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from provider_kairos.errors import LocalError, PeerError
from provider_kairos.ids import PeerId, peer_id_of_public_key, public_key_of_peer_id
from provider_kairos.ledger.entry import REMEMBERED, Entry, canonical_bytes

__all__ = ["SEED_LENGTH", "Signer", "verify"]

SEED_LENGTH = 32
MAX_OWNER = 128
"""Characters; no peer ID is as long, and one that is cut is none."""


class Signer:
    """Writes entries in the name of one identity. The seed is kept out of ``repr``."""

    __slots__ = ("_key", "peer_id")

    def __init__(self, private_key_seed: bytes) -> None:
        if len(private_key_seed) != SEED_LENGTH:
            raise LocalError(f"an Ed25519 seed has {SEED_LENGTH} bytes, not {len(private_key_seed)}")
        self._key = Ed25519PrivateKey.from_private_bytes(private_key_seed)
        self.peer_id: PeerId = peer_id_of_public_key(self._key.public_key().public_bytes_raw())

    def __repr__(self) -> str:
        return f"Signer({self.peer_id})"

    def sign(self, bucket: str, key: str, value: str, version: int, updated_at: int, *, deleted: bool = False) -> Entry:
        """The signed entry. ``version`` is unsigned 64-bit, ``updated_at`` Unix seconds."""
        unsigned = Entry(value, self.peer_id, version, updated_at, deleted)
        sig = self._key.sign(canonical_bytes(bucket, key, unsigned))
        return Entry(value, self.peer_id, version, updated_at, deleted, sig)


def verify(bucket: str, key: str, entry: Entry) -> bool:
    """Whether the signature is the owner's. Remembered, because every broadcast repeats every entry.

    Large entries are not: peers choose their size, and what is remembered stays.
    """
    if not entry.sig or not entry.owner:
        return False
    if len(bucket) + len(key) + entry.size > REMEMBERED:
        return _verify(bucket, key, entry)
    return _verify_remembered(bucket, key, entry)


def _verify(bucket: str, key: str, entry: Entry) -> bool:
    try:
        public = _public_key(entry.owner[:MAX_OWNER])
        public.verify(entry.sig, canonical_bytes(bucket, key, entry))
    except (InvalidSignature, PeerError, ValueError):
        return False
    return True


_verify_remembered = functools.lru_cache(maxsize=8192)(_verify)


@functools.lru_cache(maxsize=1024)
def _public_key(peer_id: str) -> Ed25519PublicKey:
    return Ed25519PublicKey.from_public_bytes(public_key_of_peer_id(peer_id))
