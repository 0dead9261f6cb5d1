"""One record's entry: value, author, version, signature, and both of its JSON forms (spec/edgevpn.md 5.3, 5.10).

Versions are unsigned 64-bit integers above 2^53: they are never a float here. Whether a signature is right is
:mod:`provider_kairos.ledger.signing`'s question, whether an entry may be stored is
:mod:`provider_kairos.ledger.policy`'s.
"""

from __future__ import annotations

import base64
import binascii
import functools
import struct
from dataclasses import dataclass, field
from typing import Any

from provider_kairos.errors import PeerError
from provider_kairos.ledger.gojson import quote

__all__ = ["Entry", "EntryError", "LedgerError", "canonical_bytes", "from_json", "render", "to_json"]

UINT64_MAX = 2**64 - 1
REMEMBERED = 8 * 1024
"""Characters of an entry up to which its renderings and verdicts are remembered: peers choose how long it is."""

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


class LedgerError(PeerError):
    """What a peer sent is no ledger: dropped whole."""


class EntryError(LedgerError):
    """An entry whose JSON Go would refuse; with it the whole block is unreadable."""


@dataclass(frozen=True, slots=True)
class Entry:
    """``value`` is JSON text; ``version`` usually Unix nanoseconds; ``updated_at`` Unix seconds; ``sig`` raw bytes.

    An unsigned (legacy) entry has a value alone. A tombstone is ``deleted`` with an empty value.
    """

    value: str = field(repr=False)
    owner: str = ""
    version: int = 0
    updated_at: int = 0
    deleted: bool = False
    sig: bytes = field(default=b"", repr=False)

    @property
    def size(self) -> int:
        """About how much memory it holds, in bytes."""
        return len(self.value) + len(self.owner) + len(self.sig)

    @property
    def legacy(self) -> bool:
        """Whether it is written as a bare string: no author, no signature, no version, no tombstone."""
        return not (self.owner or self.sig or self.deleted or self.version)


def canonical_bytes(bucket: str, key: str, entry: Entry) -> bytes:
    """What the signature covers: lengths and numbers as 8 bytes big-endian, texts as UTF-8 (spec 5.10)."""
    parts = []
    for text in (bucket, key, entry.owner):
        raw = text.encode()
        parts += [struct.pack(">Q", len(raw)), raw]
    value = entry.value.encode()
    parts += [struct.pack(">QqBQ", entry.version, entry.updated_at, entry.deleted, len(value)), value]
    return b"".join(parts)


def to_json(entry: Entry) -> str:
    """The entry as Go writes it: a bare string when legacy, else an object in field order."""
    return _to_json(entry) if entry.size > REMEMBERED else _to_json_remembered(entry)


def _to_json(entry: Entry) -> str:
    if entry.legacy:
        return quote(entry.value)
    deleted = "true" if entry.deleted else "false"
    # Go writes a nil slice as null and an empty one as ""; an unsigned tombstone's is nil.
    sig = f'"{base64.b64encode(entry.sig).decode("ascii")}"' if entry.sig else "null"
    return (
        f'{{"Value":{quote(entry.value)},"Owner":{quote(entry.owner)},"Version":{entry.version},'
        f'"UpdatedAt":{entry.updated_at},"Deleted":{deleted},"Sig":{sig}}}'
    )


_to_json_remembered = functools.lru_cache(maxsize=4096)(_to_json)


def from_json(value: Any) -> Entry:
    """Read what a JSON parser made of an entry. Raises EntryError where Go would refuse."""
    if isinstance(value, str):
        return Entry(value)
    if value is None:
        return Entry("")
    if not isinstance(value, dict):
        raise EntryError(f"an entry is a {type(value).__name__}, neither a text nor an object")
    fields = value
    if not value.keys() <= _FIELDS:  # Go matches field names in any case and ignores the ones it does not know
        fields = {_BY_LOWER_CASE[name.lower()]: item for name, item in value.items() if name.lower() in _BY_LOWER_CASE}
    return Entry(
        value=_text("Value", fields.get("Value")),
        owner=_text("Owner", fields.get("Owner")),
        version=_integer("Version", fields.get("Version"), 0, UINT64_MAX),
        updated_at=_integer("UpdatedAt", fields.get("UpdatedAt"), INT64_MIN, INT64_MAX),
        deleted=_boolean("Deleted", fields.get("Deleted")),
        sig=_signature("Sig", fields.get("Sig")),
    )


_FIELDS = frozenset({"Value", "Owner", "Version", "UpdatedAt", "Deleted", "Sig"})
_BY_LOWER_CASE = {name.lower(): name for name in _FIELDS}

# Absent and null read as zero values, as in Go.


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise EntryError(f"{name} is a {type(value).__name__}, not a text")
    return value


def _integer(name: str, value: Any, least: int, most: int) -> int:
    if value is None:
        return 0
    # 1.0e18 arrives as a float and true as a bool: Go refuses both, and a float would corrupt a version.
    if type(value) is not int or not least <= value <= most:
        raise EntryError(f"{name} is no integer between {least} and {most}")
    return value


def _boolean(name: str, value: Any) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise EntryError(f"{name} is a {type(value).__name__}, not true or false")
    return value


def _signature(name: str, value: Any) -> bytes:
    text = _text(name, value).replace("\r", "").replace("\n", "")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise EntryError(f"{name} is not base64") from None


def render(entry: Entry, legacy_form: bool = False) -> str:
    """The entry as Go's ``fmt`` prints it, for the block hash (spec 5.4); up to v0.34 that is the value alone."""
    if legacy_form:
        return entry.value
    return _render(entry) if entry.size > REMEMBERED else _render_remembered(entry)


def _render(entry: Entry) -> str:
    deleted = "true" if entry.deleted else "false"
    sig = " ".join(map(str, entry.sig))
    return f"{{{entry.value} {entry.owner} {entry.version} {entry.updated_at} {deleted} [{sig}]}}"


_render_remembered = functools.lru_cache(maxsize=4096)(_render)
