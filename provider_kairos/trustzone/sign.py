"""Signatures of the trust zone: EdgeVPN's, and one of our own that cannot be taken for it (spec/edgevpn.md 13.2).

EdgeVPN hands the 64 *characters* of a hexadecimal SHA-256 to ECDSA as if they were the digest; the signature is
ASN.1 in a PEM block in URL-safe base64. It verifies against whatever text a message holds, so a signature of this kind
admits whoever shows it with its text. What we sign for our own nodes is therefore made over a real SHA-512: no text
exists whose EdgeVPN digest is that, and no EdgeVPN node can be made to accept it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from provider_kairos.trustzone.keys import pem_block, pem_bytes

__all__ = ["MAX_SIGNATURE_TEXT", "sign", "sign_native", "verify", "verify_native"]

MAX_SIGNATURE_TEXT = 1024
"""Characters; EdgeVPN's have 330 or so."""

_EDGEVPN = ec.ECDSA(Prehashed(hashes.SHA512()))  # 64 bytes, which happen to be text
_NATIVE = ec.ECDSA(hashes.SHA512())


def _digest(message: bytes) -> bytes:
    return hashlib.sha256(message).hexdigest().encode("ascii")


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> str:
    """EdgeVPN's signature text of a message."""
    return pem_block("SIGNATURE", key.sign(_digest(message), _EDGEVPN))


def verify(key: ec.EllipticCurvePublicKey, signature: str, message: bytes) -> bool:
    """Whether EdgeVPN would accept ``signature`` for ``message``; nonsense is False."""
    try:
        key.verify(pem_bytes(signature, MAX_SIGNATURE_TEXT), _digest(message), _EDGEVPN)
    except (ValueError, InvalidSignature):
        return False
    return True


def sign_native(key: ec.EllipticCurvePrivateKey, message: bytes) -> str:
    """Our own signature text: base64 of ASN.1."""
    return base64.b64encode(key.sign(message, _NATIVE)).decode("ascii")


def verify_native(key: ec.EllipticCurvePublicKey, signature: str, message: bytes) -> bool:
    """Whether :func:`sign_native` made it; nonsense is False."""
    if len(signature) > MAX_SIGNATURE_TEXT or not signature.isascii():
        return False
    try:
        key.verify(base64.b64decode(signature, validate=True), message, _NATIVE)
    except (binascii.Error, InvalidSignature):
        return False
    return True
