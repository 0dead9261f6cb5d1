"""Questions as they come over the wire: read without trust, without a library and without ever raising.

Specification: spec/edgevpn.md 10 and 17; RFC 1035 4.1, RFC 6891. What EdgeVPN's DNS library answers with FORMERR or
NOTIMP, or not at all, is treated the same way here. NOTIFY, which ends an EdgeVPN process, is NOTIMP as well.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

__all__ = ["MAX_UDP", "Edns", "Ignored", "Question", "Rcode", "Refused", "presentation", "read_message"]

MAX_UDP = 1232
"""Bytes of the largest UDP answer: what passes every path unfragmented (the DNS flag day's figure)."""

_HEADER: Final = struct.Struct("!6H")
_SPECIAL: Final = frozenset(b" '@;()\"\\.")
_OPT: Final = 41

QR, AA, TC, RD, RA, AD, CD = 0x8000, 0x0400, 0x0200, 0x0100, 0x0080, 0x0020, 0x0010
"""Bits of the header."""


class Rcode(IntEnum):
    """How an answer ends."""

    NOERROR = 0
    FORMERR = 1
    SERVFAIL = 2
    NXDOMAIN = 3
    NOTIMP = 4
    REFUSED = 5
    BADVERS = 16


@dataclass(frozen=True, slots=True)
class Edns:
    """The asker's OPT record: bytes that it takes over UDP, and whether it wants DNSSEC's records."""

    payload: int
    dnssec: bool


@dataclass(frozen=True, slots=True)
class Question:
    """One question. ``wire`` is the name uncompressed, in the case in which it came; ``name`` the same as text."""

    id: int
    flags: int
    wire: bytes
    name: str
    rdtype: int
    rdclass: int
    edns: Edns | None = None

    @property
    def recursion(self) -> bool:
        """Whether the asker wants it looked up elsewhere."""
        return bool(self.flags & RD)

    @property
    def raw(self) -> bytes:
        """The question section."""
        return self.wire + struct.pack("!HH", self.rdtype, self.rdclass)


@dataclass(frozen=True, slots=True)
class Refused:
    """A message that is answered with an error and nothing else."""

    id: int
    flags: int
    rcode: Rcode
    edns: bool = False


@dataclass(frozen=True, slots=True)
class Ignored:
    """What gets no answer; ``why`` is a stable word."""

    why: str


def presentation(wire: bytes) -> str:
    r"""An uncompressed name as EdgeVPN matches it: with a dot at its end, printable ASCII, else ``\DDD``."""
    text, at = [], 0
    while length := wire[at]:
        for byte in wire[at + 1 : at + 1 + length]:
            if byte in _SPECIAL:
                text.append(f"\\{chr(byte)}")
            else:
                text.append(chr(byte) if 32 <= byte < 127 else f"\\{byte:03d}")
        text.append(".")
        at += 1 + length
    return "".join(text) or "."


def read_message(data: bytes) -> Question | Refused | Ignored:
    """What one message asks. Bytes behind it are ignored."""
    if len(data) < _HEADER.size:
        return Ignored("malformed")
    id_, flags, questions, answers, authorities, additionals = _HEADER.unpack_from(data)
    if flags & QR:
        return Ignored("answers")
    if flags >> 11 & 15:
        return Refused(id_, flags, Rcode.NOTIMP)
    bad = Refused(id_, flags, Rcode.FORMERR)
    if questions != 1 or answers > 1 or authorities > 1 or additionals > 2:
        return bad
    try:
        wire, at = _read_name(data, _HEADER.size)
        rdtype, rdclass = struct.unpack_from("!HH", data, at)
        edns, version = _read_edns(data, at + 4, answers + authorities, additionals)
    except (IndexError, struct.error, ValueError):
        return bad
    if version:
        return Refused(id_, flags, Rcode.BADVERS, edns=True)
    return Question(id_, flags, wire, presentation(wire), rdtype, rdclass, edns)


def _read_name(data: bytes, at: int) -> tuple[bytes, int]:
    """An uncompressed name and where it ends; the first name of a message has nothing to point to."""
    start = at
    while length := data[at]:
        at += 1 + length
        if length > 63 or at + 1 - start > 255:
            raise ValueError("no name")
    at += 1
    return data[start:at], at


def _skip_name(data: bytes, at: int) -> int:
    while length := data[at]:
        if length >= 0xC0:
            return at + 2
        if length > 63:
            raise ValueError("no name")
        at += 1 + length
    return at + 1


def _read_edns(data: bytes, at: int, others: int, additionals: int) -> tuple[Edns | None, int]:
    """The OPT record among the records behind the question, and its version. Raises ValueError for two of them."""
    found, version = None, 0
    for number in range(others + additionals):
        end = _skip_name(data, at)
        rdtype, payload, ttl, length = struct.unpack_from("!HHIH", data, end)
        if rdtype == _OPT:
            if found is not None or number < others or end != at + 1:
                raise ValueError("OPT out of place")
            found, version = Edns(payload, bool(ttl & 0x8000)), ttl >> 16 & 0xFF
        at = end + 10 + length
        if at > len(data):
            raise ValueError("cut short")
    return found, version
