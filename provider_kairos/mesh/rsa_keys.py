"""RSA identities of peers, on the cryptography package (libp2p specs/peer-ids).

EdgeVPN's nodes have Ed25519 keys, but some bootstrap peers of the public DHT have RSA keys: their signature must be
checked in both handshakes. py-libp2p does that with pycryptodome, which costs 4 MB and stays out
(:mod:`provider_kairos.mesh.parts`). Nobody here signs with RSA.
"""

from __future__ import annotations

from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from provider_kairos.errors import PeerError

__all__ = ["make_rsa_public_key"]

SMALLEST, LARGEST = 2048, 8192
"""Bits, as go-libp2p has them."""

MAX_DER = 2048


def make_rsa_public_key(base: Any, rsa_type: Any) -> Any:
    """A class for py-libp2p's table of key types; ``base`` is its ``PublicKey``, ``rsa_type`` its ``KeyType.RSA``."""

    class RsaPublicKey(base):  # type: ignore[misc]  # the base is py-libp2p's, which has no types here
        """A public key that can check signatures."""

        def __init__(self, key: rsa.RSAPublicKey) -> None:
            self._key = key

        def to_bytes(self) -> bytes:
            return self._key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)

        @classmethod
        def from_bytes(cls, data: bytes) -> RsaPublicKey:
            if len(data) > MAX_DER:
                raise PeerError(f"an RSA key of {len(data)} bytes")
            key = serialization.load_der_public_key(data)
            if not isinstance(key, rsa.RSAPublicKey) or not SMALLEST <= key.key_size <= LARGEST:
                raise PeerError(f"an RSA key must have {SMALLEST} to {LARGEST} bits")
            return cls(key)

        def get_type(self) -> Any:
            return rsa_type

        def verify(self, data: bytes, signature: bytes) -> bool:
            try:
                self._key.verify(signature, data, padding.PKCS1v15(), hashes.SHA256())
            except InvalidSignature:
                return False
            return True

    return RsaPublicKey
