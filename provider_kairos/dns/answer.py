"""What the mesh says to a question, and the bytes of every answer; no socket, no clock.

Specification: spec/edgevpn.md 10. An answer of the mesh is byte for byte EdgeVPN's, but for the bits RA and AA; where
else we differ, and why, is listed in tests/interop/test_dns_recordings.py and docs/decisions/0013.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

import dns.exception
import dns.name
import dns.rdata
import dns.rdataclass
import dns.rdatatype
import dns.rrset
import dns.tokenizer

from provider_kairos.dns.question import AA, CD, MAX_UDP, QR, RA, RD, TC, Question, Rcode, Refused, presentation
from provider_kairos.dns.records import RecordSet, Zone

__all__ = ["TTL", "Elsewhere", "Reply", "decide", "encode", "encode_cut", "encode_refusal", "readable", "udp_limit"]

TTL: Final = 3600
"""Seconds for which others may keep a record of the mesh; EdgeVPN's figure."""

MAX_CHAIN: Final = 8
"""CNAMEs that are followed."""

_IN, _CLASSIC_UDP = 1, 512
_A, _CNAME, _AAAA, _OPT, _ANY = 1, 5, 28, 41, 255
_ADDRESSES: Final = frozenset({_A, _AAAA})
_LEADS_TO_ADDRESS: Final = frozenset({_A, _AAAA, 64, 65})
"""A, AAAA, and SVCB and HTTPS with their address hints: a client asks for several of them and takes any."""

_REFUSED_TYPES: Final = frozenset({_OPT, 128, *range(249, 255)})
"""Not names' records: OPT, NXNAME, TKEY, TSIG, zone transfers, mail of 1983."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer before it becomes bytes."""

    rcode: int = Rcode.NOERROR
    answers: tuple[dns.rrset.RRset, ...] = ()
    authority: tuple[dns.rrset.RRset, ...] = ()


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """The mesh does not have it: ask the forward servers ``question``.

    ``aliases`` are the mesh's CNAMEs that lead to it; ``exists`` says that the mesh has other records of the name.
    """

    question: Question
    aliases: tuple[dns.rrset.RRset, ...] = ()
    exists: bool = False

    def complete(self, found: Reply) -> Reply:
        """The whole answer. A name of which the mesh has records exists, whatever the world outside says."""
        if found.rcode == Rcode.NXDOMAIN and self.exists:
            return Reply(answers=(*self.aliases, *found.answers))
        if found.rcode not in {Rcode.NOERROR, Rcode.NXDOMAIN}:
            return found
        return replace(found, answers=(*self.aliases, *found.answers))


def decide(question: Question, zone: Zone, *, forwarding: bool) -> Reply | Elsewhere:
    """The mesh's answer, or what to ask elsewhere."""
    if question.rdclass != _IN or question.rdtype in _REFUSED_TYPES:
        return Reply(Rcode.REFUSED)
    aliases: list[dns.rrset.RRset] = []
    asked = question
    while True:
        sets = zone.find(asked.name)
        if (found := _first(sets, asked.rdtype, zone)) is not None:
            return Reply(answers=(*aliases, _rrset(asked, found)))
        if asked.rdtype in {_CNAME, _ANY} or len(aliases) == MAX_CHAIN:
            break
        alias = _first(sets, _CNAME, zone)
        if alias is None:
            break
        aliases.append(_rrset(asked, alias))
        wire = alias.target.to_wire()  # type: ignore[attr-defined]
        asked = replace(asked, wire=wire, name=presentation(wire))
    # who has an address of one family from the mesh gets none of another from outside: it would be another machine
    ours = asked.rdtype in _LEADS_TO_ADDRESS and any(_first(sets, each, zone) is not None for each in _ADDRESSES)
    if ours or not forwarding or len(aliases) == MAX_CHAIN:
        return Reply(answers=tuple(aliases))
    return Elsewhere(asked, tuple(aliases), exists=any(each.records for each in sets))


def _first(sets: Iterable[RecordSet], rdtype: int, zone: Zone) -> dns.rdata.Rdata | None:
    """The record of a type in the most specific set that has one that can be read."""
    for each in sets:
        text = each.records.get(rdtype)
        if text is None:
            continue
        rdata = _rdata(rdtype, text)
        if rdata is not None:
            return rdata
        zone.complain(
            "dns_values_malformed",
            each.owner,
            f"record {each.pattern.text[:80]!r}: {text[:80]!r} is no value of type {rdtype}",
        )
    return None


def readable(rdtype: int, text: str) -> bool:
    """Whether zone-file text is a value of a record type."""
    return _rdata(rdtype, text) is not None


@functools.lru_cache(maxsize=1024)
def _rdata(rdtype: int, text: str) -> dns.rdata.Rdata | None:
    """Zone-file text as a record; of several lines the first counts, as in EdgeVPN."""
    try:
        return dns.rdata.from_text(
            dns.rdataclass.IN,
            dns.rdatatype.RdataType.make(rdtype),
            dns.tokenizer.Tokenizer(text),
            dns.name.root,
            relativize=False,
        )
    except dns.exception.DNSException:
        return None


def _rrset(question: Question, rdata: dns.rdata.Rdata) -> dns.rrset.RRset:
    name, _ = dns.name.from_wire(question.wire, 0)
    return dns.rrset.from_rdata(name, TTL, rdata)


# --- bytes ------------------------------------------------------------------------------------------------------------


def udp_limit(question: Question) -> int:
    """Bytes that the asker takes over UDP, within what passes every path."""
    return min(max(_CLASSIC_UDP, question.edns.payload), MAX_UDP) if question.edns else _CLASSIC_UDP


def encode(question: Question, reply: Reply, *, forwarding: bool, limit: int) -> bytes:
    """The answer in at most ``limit`` bytes; what does not fit leaves the TC bit, and the asker comes back over TCP.

    RA says that we forward. Where we do not, the mesh is all there is, and AA says so: a Go program takes an empty
    answer with neither bit for that of a broken server.
    """
    flags = _flags(question, forwarding=forwarding) | reply.rcode & 15
    opt = _opt(dnssec=question.edns.dnssec) if question.edns else b""
    head = question.raw
    for compress in (False, True):
        sections = _sections(question, reply, compress=compress)
        if 12 + len(head) + len(sections) + len(opt) <= limit:
            counts = (1, _count(reply.answers), _count(reply.authority), int(bool(opt)))
            return struct.pack("!6H", question.id, flags, *counts) + head + sections + opt
    return encode_cut(question, forwarding=forwarding)


def encode_cut(question: Question, *, forwarding: bool) -> bytes:
    """The answer that asks for the same question over TCP; not larger than the question with its EDNS record."""
    flags = _flags(question, forwarding=forwarding) | TC
    opt = _opt(dnssec=question.edns.dnssec) if question.edns else b""
    return struct.pack("!6H", question.id, flags, 1, 0, 0, int(bool(opt))) + question.raw + opt


def _flags(question: Question, *, forwarding: bool) -> int:
    return QR | question.flags & (RD | CD) | (RA if forwarding else AA)


def encode_refusal(refused: Refused) -> bytes:
    """A header with an error, as EdgeVPN's library writes it; to an unknown EDNS version also the one that we know."""
    flags = QR | refused.flags & (0x7800 | RD | CD) | refused.rcode & 15
    opt = _opt(rcode=refused.rcode) if refused.edns else b""
    return struct.pack("!6H", refused.id, flags, 0, 0, 0, int(bool(opt))) + opt


def _opt(*, dnssec: bool = False, rcode: int = 0) -> bytes:
    return struct.pack("!BHHBBHH", 0, _OPT, MAX_UDP, rcode >> 4, 0, 0x8000 if dnssec else 0, 0)


def _count(rrsets: Iterable[dns.rrset.RRset]) -> int:
    return sum(map(len, rrsets))


def _sections(question: Question, reply: Reply, *, compress: bool) -> bytes:
    """Answer and authority section. EdgeVPN does not compress; where it has to be, owners become pointers."""
    found = bytearray()
    start = 12 + len(question.raw)
    places = {question.wire: 12}
    for rrset in (*reply.answers, *reply.authority):
        for rdata in rrset:
            owner = rrset.name.to_wire() or b""
            if owner.lower() == question.wire.lower():
                owner = question.wire  # in the case of the asker, also from the cache
            here = start + len(found)
            if compress and places.setdefault(owner, here) != here and places[owner] < 0x4000:
                found += struct.pack("!H", 0xC000 | places[owner])
            else:
                found += owner
            body = rdata.to_wire() or b""
            found += struct.pack("!HHIH", rdata.rdtype, rdata.rdclass, rrset.ttl, len(body))
            if rdata.rdtype == _CNAME:
                places.setdefault(body, start + len(found))
            found += body
    return bytes(found)
