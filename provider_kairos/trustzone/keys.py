"""Key pairs of the trust zone in EdgeVPN's text form (spec/edgevpn.md 13.2).

A key is URL-safe base64 (with padding) of a PEM block: P-521, the private one as SEC1 under ``EC PRIVATE KEY``, the
public one as SPKI under ``EC PUBLIC KEY``, a label that ordinary PEM loaders refuse. Go looks at neither label nor
curve; we take the three NIST curves that it knows. No error shows any part of a key.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from provider_kairos.errors import ConfigError

__all__ = [
    "MAX_KEY_TEXT",
    "KeyPair",
    "KeyTextError",
    "fingerprint",
    "generate",
    "load_private",
    "load_public",
    "pem_block",
    "pem_bytes",
    "public_text",
]

MAX_KEY_TEXT = 4096
"""Characters; a P-521 key of EdgeVPN's has 488 (private) and 368 (public)."""

CURVES = ("secp521r1", "secp384r1", "secp256r1")

_URL_BASE64 = re.compile(r"[A-Za-z0-9_-]+={0,2}")
_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]{1,40})-----\s+([A-Za-z0-9+/=\s]*?)-----END \1-----")
_REMEDY = "make a pair with: kairos-p2p peergater ecdsa-genkey"


class KeyTextError(ConfigError):
    """A text that is no key of the trust zone; says why, never what."""


@dataclass(frozen=True, slots=True)
class KeyPair:
    """Both texts, as EdgeVPN prints them."""

    private: str = field(repr=False)
    public: str


def generate() -> KeyPair:
    """A fresh P-521 pair."""
    key = ec.generate_private_key(ec.SECP521R1())
    sec1 = key.private_bytes(
        serialization.Encoding.DER, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return KeyPair(pem_block("EC PRIVATE KEY", sec1), public_text(key.public_key()))


def load_private(text: str) -> ec.EllipticCurvePrivateKey:
    """The private key of a text. Raises KeyTextError."""
    der = _der(text, "private")
    try:
        key = serialization.load_der_private_key(der, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise KeyTextError("the private key is damaged, or it is a public one", hint=_REMEDY) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name not in CURVES:
        raise KeyTextError("the private key is not one of P-521", hint=_REMEDY)
    return key


def load_public(text: str) -> ec.EllipticCurvePublicKey:
    """The public key of a text. Raises KeyTextError."""
    der = _der(text, "public")
    try:
        key = serialization.load_der_public_key(der)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyTextError("the public key is damaged, or it is a private one", hint=_REMEDY) from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name not in CURVES:
        raise KeyTextError("the public key is not one of P-521", hint=_REMEDY)
    return key


def public_text(key: ec.EllipticCurvePublicKey) -> str:
    """The text of a public key."""
    return pem_block("EC PUBLIC KEY", _spki(key))


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """16 hexadecimal digits that name a public key; the same for every spelling of it."""
    return hashlib.sha256(_spki(key)).hexdigest()[:16]


def _spki(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


def pem_block(label: str, data: bytes) -> str:
    """URL-safe base64 of a PEM block, byte for byte as Go writes it."""
    body = base64.b64encode(data).decode("ascii")
    lines = [body[start : start + 64] for start in range(0, len(body), 64)]
    pem = "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""])
    return base64.urlsafe_b64encode(pem.encode("ascii")).decode("ascii")


def pem_bytes(text: str, limit: int = MAX_KEY_TEXT) -> bytes:
    """What is inside of the PEM block that ``text`` is base64 of, whatever its label. Raises ValueError."""
    if len(text) > limit:
        raise ValueError("too long")
    compact = text.replace("\r", "").replace("\n", "")  # Go's decoder skips them
    if not _URL_BASE64.fullmatch(compact) or len(compact) % 4:
        raise ValueError("not URL-safe base64 with padding")
    pem = base64.urlsafe_b64decode(compact).decode("ascii", "replace")
    block = _PEM.search(pem)
    if block is None:
        raise ValueError("no PEM block inside of the base64")
    try:
        return base64.b64decode("".join(block[2].split()), validate=True)
    except binascii.Error:
        raise ValueError("the PEM block is damaged") from None


def _der(text: str, which: str) -> bytes:
    try:
        return pem_bytes(text.strip())
    except ValueError as error:
        raise KeyTextError(f"the {which} key cannot be read: {error}", hint=_REMEDY) from None
