"""The trust zone's values: records, what the engine is told, what it wants done, and its reasons to wait.

Buckets ``trustzone`` and ``trustzoneAuth`` are EdgeVPN's (spec/edgevpn.md 8.8); :data:`NOTES_BUCKET` is ours: which key
a peer was admitted by, so that it can be taken off when the key is. EdgeVPN nodes carry it and ignore it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId

__all__ = [
    "AUTH_BUCKET",
    "NOTES_BUCKET",
    "ZONE_BUCKET",
    "ZONE_TEXT",
    "Admit",
    "Effect",
    "Expel",
    "NoKeyToAskWith",
    "NoTrustedKey",
    "NotAdmitted",
    "Say",
    "TrustRules",
    "TrustView",
    "note_text",
    "read_keys",
    "read_notes",
]

ZONE_BUCKET = "trustzone"
AUTH_BUCKET = "trustzoneAuth"
NOTES_BUCKET = "kairos-p2p.trust"

ZONE_TEXT = '""'
"""Value of a record of the zone, as EdgeVPN writes it."""

MAX_RECORDS = 4096
"""Notes that are read."""


@dataclass(frozen=True, slots=True)
class TrustRules:
    """How this node takes part. Times in seconds.

    ``interval`` is the longest pause between two challenges. ``strict``: only nodes like us are in the network, so
    only challenges bound to their author count. ``autoclean`` takes peers off that are gone for ``offline_after``.
    """

    interval: float = 120.0
    strict: bool = False
    autoclean: bool = False
    offline_after: float = 900.0


@dataclass(frozen=True, slots=True)
class TrustView:
    """What the ledger and the mesh show. ``keys``: name to public key text; ``notes``: peer to key fingerprint.

    ``room`` are the peers in the ledger room, ``live`` those with a heartbeat younger than ``offline_after``.
    """

    zone: frozenset[PeerId] = frozenset()
    keys: Mapping[str, str] = field(default_factory=dict)
    notes: Mapping[PeerId, str] = field(default_factory=dict)
    room: frozenset[PeerId] = frozenset()
    live: frozenset[PeerId] = frozenset()


@dataclass(frozen=True, slots=True)
class Say:
    """Publish the word ``challenge`` with these annotations in the public room."""

    annotations: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Admit:
    """Write the peer into the zone, with a note of the key (fingerprint) that it proved; no note without one."""

    peer: PeerId
    key: str


@dataclass(frozen=True, slots=True)
class Expel:
    """Delete the peer from the zone, and its note."""

    peer: PeerId
    why: str


Effect = Say | Admit | Expel


def read_keys(records: Mapping[str, str]) -> dict[str, str]:
    """Public key texts of ``trustzoneAuth`` (key to JSON text): names with ``ecdsa`` in them, as EdgeVPN has it."""
    found = {}
    for name in sorted(records):
        if "ecdsa" in name and isinstance(text := _plain(records[name]), str):
            found[name] = text
    return found


def read_notes(records: Mapping[str, str]) -> dict[PeerId, str]:
    """Peer to key fingerprint, of our notes (key to JSON text); garbage is left out."""
    found = {}
    for peer in sorted(records)[:MAX_RECORDS]:
        value = _plain(records[peer])
        if isinstance(value, dict) and isinstance(key := value.get("key"), str) and len(key) == 16:
            found[PeerId(peer)] = key
    return found


def note_text(key: str) -> str:
    """The JSON text of a note."""
    return json.dumps({"key": key}, separators=(",", ":"))


def _plain(text: str) -> Any:
    if len(text) > 8192:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


@dataclass(frozen=True, slots=True)
class NoKeyToAskWith(Waiting):
    """We are not in the trust zone and have no private key."""

    code: ClassVar[str] = "trust-no-key"

    def text(self) -> str:
        """One sentence for people."""
        return "this node is not in the trust zone and has no key to ask with: others do not hear what it writes"


@dataclass(frozen=True, slots=True)
class NoTrustedKey(Waiting):
    """There is no trusted key in the ledger."""

    code: ClassVar[str] = "trust-no-trusted-key"

    def text(self) -> str:
        """One sentence for people."""
        return "the ledger holds no trusted key: nobody can be admitted to the trust zone"


@dataclass(frozen=True, slots=True)
class NotAdmitted(Waiting):
    """We ask and nobody lets us in. ``key`` is our key's fingerprint, ``known`` whether the ledger that we see has it."""

    key: str
    known: bool
    asked: int

    code: ClassVar[str] = "trust-not-admitted"

    def text(self) -> str:
        """One sentence for people."""
        if not self.known:
            return f"this node is not in the trust zone: its key {self.key} is not among the trusted ones"
        return f"this node is not in the trust zone yet: it has asked {self.asked} times"
