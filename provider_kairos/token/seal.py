"""Sealing as EdgeVPN does it: AES-256-GCM, hexadecimal text (spec/edgevpn.md 3.1).

The key is 32 ASCII characters (an MD5 text), the nonce 12 random bytes in front, no associated data. Which epoch's key
to use is the caller's choice.
"""

from __future__ import annotations

import binascii
import functools
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from provider_kairos.errors import LocalError, PeerError

__all__ = ["NONCE_LENGTH", "OVERHEAD", "SealError", "seal", "unseal"]

KEY_LENGTH = 32
NONCE_LENGTH = 12
TAG_LENGTH = 16
OVERHEAD = NONCE_LENGTH + TAG_LENGTH
"""Bytes that sealing adds, before hexadecimal doubles everything."""


class SealError(PeerError):
    """A sealed text that does not open: not hexadecimal, too short, or sealed with another key."""


@functools.lru_cache(maxsize=8)
def _cipher(key: bytes) -> AESGCM:
    if len(key) != KEY_LENGTH:
        raise LocalError(f"a seal key has {KEY_LENGTH} bytes, not {len(key)}")
    return AESGCM(key)


def seal(key: bytes, plaintext: bytes, nonce: bytes | None = None) -> str:
    """Lower-case hexadecimal of ``nonce + ciphertext + tag``. Give a ``nonce`` only to repeat a recording."""
    if nonce is None:
        nonce = secrets.token_bytes(NONCE_LENGTH)
    elif len(nonce) != NONCE_LENGTH:
        raise LocalError(f"a nonce has {NONCE_LENGTH} bytes, not {len(nonce)}")
    return (nonce + _cipher(key).encrypt(nonce, plaintext, None)).hex()


def unseal(key: bytes, text: str) -> bytes:
    """The plaintext. Raises SealError; the text itself is never part of the message."""
    cipher = _cipher(key)
    try:
        sealed = binascii.unhexlify(text)
    except (binascii.Error, ValueError):
        raise SealError(f"sealed text of {len(text)} characters is not hexadecimal") from None
    if len(sealed) < OVERHEAD:
        raise SealError(f"sealed text of {len(sealed)} bytes is shorter than nonce and tag")
    try:
        return cipher.decrypt(sealed[:NONCE_LENGTH], sealed[NONCE_LENGTH:], None)
    except InvalidTag:
        raise SealError("sealed with another key, or changed on the way") from None
