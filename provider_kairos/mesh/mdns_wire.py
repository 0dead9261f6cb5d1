"""mDNS packets of EdgeVPN: what is asked, what is announced, and how both are read.

Follows spec/edgevpn.md 6.1 and 17. The service name is the token's tag as it stands, so it is no legal DNS-SD type
and its letters' case counts: names are compared label by label, byte by byte. Pure functions; when something is sent
is :mod:`provider_kairos.mesh.mdns_engine`'s business.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rdataclass
import dns.rdatatype
import dns.rdtypes.ANY.PTR
import dns.rdtypes.ANY.TXT
import dns.rrset

from provider_kairos.errors import PeerError, TokenError

__all__ = [
    "Find",
    "MalformedPacketError",
    "Query",
    "Response",
    "announceable",
    "build_announcement",
    "build_query",
    "instance_name",
    "parse",
    "service_name",
]

SERVICE_TTL, HOST_TTL = 3200, 120
_SRV_PORT = 4001  # meaningless to everybody, but it has to be there
_LARGEST_STRING = 255
_LARGEST_TXT = 1100  # with the rest it stays below one Ethernet frame: fragments of multicast are often lost
_MOST_ADDRESSES = 64
_PREFIX = b"dnsaddr="
_PEER_ID = re.compile(r"[1-9A-HJ-NP-Za-km-z]{20,128}\Z")
_IP_ADDRESS = re.compile(r"/ip([46])/([0-9A-Fa-f.:]+)/")
_LEFT_OUT = re.compile(r"/(p2p-circuit|webtransport|webrtc|webrtc-direct|ws|wss)(/|\Z)")
_IN, _FLUSH_OR_UNICAST = dns.rdataclass.IN, 0x8000

Network = IPv4Network | IPv6Network


class MalformedPacketError(PeerError):
    """Not a DNS message, or one that does not keep the rules."""


@dataclass(frozen=True, slots=True)
class Question:
    """One question: labels as sent, record type, and whether the answer may come by unicast (QU)."""

    labels: tuple[bytes, ...]
    kind: int
    unicast: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A query. ``known`` maps instance labels in the known-answer list to their TTL in seconds."""

    id: int
    questions: tuple[Question, ...]
    known: dict[tuple[bytes, ...], int]
    authority: bool


@dataclass(frozen=True, slots=True)
class Find:
    """A peer that announces itself: addresses are multiaddrs without their ``/p2p/<peer id>``, in its order."""

    instance: bytes
    peer_id: str
    addresses: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Response:
    """What a response says about our service."""

    finds: tuple[Find, ...]


def service_name(tag: str) -> dns.name.Name:
    """``<tag>.local.`` with the tag as it stands; an empty one means libp2p's own ``_p2p._udp``.

    Raises:
        TokenError: It cannot be a DNS name (a label above 63 bytes).
    """
    labels = [label for label in (tag or "_p2p._udp").encode("utf-8").split(b".") if label]
    try:
        return dns.name.Name((*labels, b"local", b""))
    except dns.exception.DNSException as error:
        raise TokenError(
            f"cannot be used on the local network: {error}", field="mdns", hint="at most 63 characters"
        ) from error


def instance_name(instance: bytes, service: dns.name.Name) -> dns.name.Name:
    """``<instance>.<service>``."""
    return dns.name.Name((instance, *service.labels))


def build_query(service: dns.name.Name, message_id: int = 0) -> bytes:
    """A question for all instances of the service, answered by multicast."""
    query = dns.message.QueryMessage(id=message_id)
    query.flags = dns.flags.Flag(0)
    query.find_rrset(query.question, service, _IN, dns.rdatatype.PTR, create=True, force_unique=True)
    return query.to_wire()


def announceable(addresses: Iterable[str], blocked: Sequence[Network] = ()) -> list[str]:
    """Which of our multiaddrs are worth telling to the link, best first.

    Left out: what EdgeVPN leaves out (relayed, web transports, not ``/ip4``, ``/ip6`` or a ``.local`` name),
    unspecified and IPv6 link-local ones (nobody can dial them without a zone), those inside ``blocked`` networks (the
    VPN itself), and loopback ones unless there is nothing else.
    """
    good: list[str] = []
    loopback: list[str] = []
    for address in addresses:
        if _LEFT_OUT.search(address):
            continue
        match = _IP_ADDRESS.match(address)
        if match is None:
            if re.match(r"/dns(4|6|addr)?/[^/]+\.local\.?/", address):
                good.append(address)
            continue
        try:
            ip = ipaddress.ip_address(match[2])
        except ValueError:
            continue
        if ip.is_unspecified or (ip.version == 6 and ip.is_link_local) or any(ip in network for network in blocked):
            continue
        (loopback if ip.is_loopback else good).append(address)
    return list(dict.fromkeys(good or loopback))


def build_announcement(
    service: dns.name.Name,
    instance: bytes,
    peer_id: str,
    addresses: Sequence[str],
    hosts: Sequence[IPv4Address | IPv6Address],
) -> bytes:
    """PTR with SRV, TXT and A or AAAA in one packet: Go needs all of them in one.

    ``addresses`` are multiaddrs without the peer ID; those that do not fit into a TXT string (255 bytes) or beyond
    1100 bytes in all are left out. ``hosts`` are our addresses on that link (required by Go, unused); without any,
    127.0.0.1 stands in.
    """
    name = instance_name(instance, service)
    host = dns.name.Name((instance, b"local", b""))
    strings: list[bytes] = []
    room = _LARGEST_TXT
    for address in addresses:
        text = _PREFIX + f"{address}/p2p/{peer_id}".encode()
        if len(text) <= _LARGEST_STRING and len(text) < room:
            strings.append(text)
            room -= len(text) + 1
    message = dns.message.Message(id=0)
    message.flags = dns.flags.QR | dns.flags.AA
    texts = dns.rdtypes.ANY.TXT.TXT(_IN, dns.rdatatype.TXT, strings or [b""])
    message.answer.append(dns.rrset.from_text(service, SERVICE_TTL, _IN, "PTR", name.to_text()))
    message.additional.append(dns.rrset.from_text(name, SERVICE_TTL, _IN, "SRV", f"0 0 {_SRV_PORT} {host.to_text()}"))
    message.additional.append(dns.rrset.from_rdata(name, SERVICE_TTL, texts))
    for version in (4, 6):
        first = next((ip for ip in hosts if ip.version == version), None)
        if first is None and (version == 6 or hosts):
            continue
        kind = "A" if version == 4 else "AAAA"
        message.additional.append(dns.rrset.from_text(host, HOST_TTL, _IN, kind, str(first or "127.0.0.1")))
    return message.to_wire()


def parse(data: bytes, service: dns.name.Name) -> Query | Response:
    """Read a packet from the link.

    Of a response, only TXT records of instances of ``service`` count, in any section; a TTL of 0 is a farewell and is
    passed over, as Go does. Whether SRV and A came along does not matter to us.

    Raises:
        MalformedPacketError: The bytes are no DNS query or response.
    """
    try:
        message = dns.message.from_wire(data, ignore_trailing=True, one_rr_per_rrset=True)
        response = bool(message.flags & dns.flags.QR)
        if message.opcode() != dns.opcode.QUERY:
            raise MalformedPacketError("not a query or response")
    except (dns.exception.DNSException, ValueError) as error:
        raise MalformedPacketError(f"no DNS message: {type(error).__name__}") from error
    if response:
        return Response(_finds([*message.answer, *message.additional], service))
    questions = tuple(
        Question(question.name.labels, question.rdtype, unicast=bool(question.rdclass & _FLUSH_OR_UNICAST))
        for question in message.question
        if question.rdclass & ~_FLUSH_OR_UNICAST in {_IN, dns.rdataclass.ANY}
    )
    known = {
        rdata.target.labels: rrset.ttl
        for rrset in message.answer
        for rdata in rrset
        if isinstance(rdata, dns.rdtypes.ANY.PTR.PTR) and rrset.name.labels == service.labels
    }
    return Query(message.id, questions, known, authority=bool(message.authority))


def _finds(records: Iterable[dns.rrset.RRset], service: dns.name.Name) -> tuple[Find, ...]:
    found: dict[tuple[bytes, str], list[str]] = {}
    taken = 0
    for rrset in records:
        if rrset.rdtype != dns.rdatatype.TXT or rrset.ttl == 0 or rrset.name.labels[1:] != service.labels:
            continue
        for rdata in rrset:
            for string in getattr(rdata, "strings", ()):
                pair = _dnsaddr(string)
                if pair is None or taken >= _MOST_ADDRESSES:
                    continue
                taken += 1
                found.setdefault((rrset.name.labels[0], pair[1]), []).append(pair[0])
    return tuple(Find(instance, peer, tuple(dict.fromkeys(addresses))) for (instance, peer), addresses in found.items())


def _dnsaddr(string: bytes) -> tuple[str, str] | None:
    """``dnsaddr=<multiaddr>/p2p/<peer id>`` → both parts; None for everything else (there are other TXT strings)."""
    if not string.startswith(_PREFIX):
        return None
    try:
        text = string[len(_PREFIX) :].decode("ascii")
    except UnicodeDecodeError:
        return None
    address, _, peer = text.rpartition("/p2p/")
    if not address.startswith("/") or not _PEER_ID.match(peer) or _LEFT_OUT.search(address) or not text.isprintable():
        return None
    return address, peer
