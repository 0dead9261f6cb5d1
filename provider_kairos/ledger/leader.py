"""The leader function: the highest FNV-1a hash wins (spec/edgevpn.md 5.14).

Used for reaping, for leases among Go nodes and for Kairos' role scheduling; the candidates are the caller's.
"""

from __future__ import annotations

from collections.abc import Iterable

from provider_kairos.errors import LocalError

__all__ = ["fnv1a32", "leader"]

_OFFSET = 0x811C9DC5
_PRIME = 0x01000193


def fnv1a32(data: bytes) -> int:
    """FNV-1a, 32 bit."""
    value = _OFFSET
    for byte in data:
        value = ((value ^ byte) * _PRIME) & 0xFFFFFFFF
    return value


def leader(candidates: Iterable[str]) -> str:
    """The candidate with the highest hash; of equal hashes the earlier one. Raises LocalError when there is none."""
    best, best_hash = None, -1
    for candidate in candidates:
        value = fnv1a32(candidate.encode())
        if value > best_hash:
            best, best_hash = candidate, value
    if best is None:
        raise LocalError("a leader of nobody")
    return best
