"""IP packets as bytes: addresses, cutting a stream into packets, checksums, "unreachable" answers.

For the data plane (spec/edgevpn.md 8.1): addresses stay packed bytes (4 or 16), because every packet passes here and
a dictionary finds ``bytes`` as they are. Nothing here looks beyond the IP header, but for what an ICMP answer needs.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from provider_kairos.errors import PeerError

__all__ = ["Header", "PacketError", "RateLimit", "checksum", "parse", "split", "unreachable"]

_ICMP, _ICMP6 = 1, 58
_NO_PROTOCOL = 255
_MTU6 = 1280  # an ICMPv6 error must not be larger


class PacketError(PeerError):
    """Bytes that are no IP packet."""


class Header(NamedTuple):
    """What routing needs: version 4 or 6, packed source and destination, length of the whole packet in bytes."""

    version: int
    source: bytes
    destination: bytes
    length: int


def parse(packet: bytes | bytearray | memoryview) -> Header | None:
    """The header of one whole packet, or None when the bytes are no IPv4 or IPv6 packet of just that length."""
    size = len(packet)
    if size < 20:
        return None
    version = packet[0] >> 4
    if version == 4:
        length = packet[2] << 8 | packet[3]
        if length != size or not 20 <= (packet[0] & 15) * 4 <= length:
            return None
        return Header(4, bytes(packet[12:16]), bytes(packet[16:20]), length)
    if version == 6 and size >= 40:
        length = (packet[4] << 8 | packet[5]) + 40
        return Header(6, bytes(packet[8:24]), bytes(packet[24:40]), length) if length == size else None
    return None


def split(buffer: bytes | bytearray) -> tuple[list[bytes], bytes]:
    """Cut a byte stream into its packets by their own lengths; the second value is the incomplete rest.

    Go sends one packet per stream and one per read; a stream that was merged or cut on its way is put right here.

    Raises:
        PacketError: What should be the start of a packet is none; the stream cannot be followed any further.
    """
    packets: list[bytes] = []
    position, end = 0, len(buffer)
    while end - position >= 6:
        version = buffer[position] >> 4
        if version == 4:
            length = buffer[position + 2] << 8 | buffer[position + 3]
            if length < 20 or (buffer[position] & 15) < 5:
                raise PacketError(f"an IPv4 packet of {length} bytes")
        elif version == 6:
            length = (buffer[position + 4] << 8 | buffer[position + 5]) + 40
        else:
            raise PacketError(f"a packet of IP version {version}")
        if position + length > end:
            break
        packets.append(bytes(buffer[position : position + length]))
        position += length
    rest = bytes(buffer[position:])
    if rest and rest[0] >> 4 not in {4, 6}:
        raise PacketError(f"a packet of IP version {rest[0] >> 4}")
    return packets, rest


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def unreachable(packet: bytes, source: bytes) -> bytes | None:
    """An ICMP "host unreachable" (IPv4) or "address unreachable" (IPv6) about ``packet``, from our ``source``.

    None where no answer may be given (RFC 1122 3.2.2, RFC 4443 2.4): about ICMP errors, later fragments, and packets
    from or to a group or nobody; also when ``source`` is of the other IP version.
    """
    header = parse(packet)
    if header is None or len(source) != len(header.source):
        return None
    if not _single(header.source) or not _single(header.destination):
        return None
    return _unreachable4(packet, header, source) if header.version == 4 else _unreachable6(packet, header, source)


def _single(address: bytes) -> bool:
    """Not a group, not broadcast, not unspecified."""
    if len(address) == 4:
        return 0 < address[0] < 224
    return address[0] != 0xFF and any(address)


def _unreachable4(packet: bytes, header: Header, source: bytes) -> bytes | None:
    words = (packet[0] & 15) * 4
    if (packet[6] & 0x1F) << 8 | packet[7]:  # not the first fragment
        return None
    if packet[9] == _ICMP and (header.length <= words or packet[words] not in {0, 8, 13, 14}):
        return None
    quoted = packet[: words + 8]
    body = b"\x03\x01\0\0" + bytes(4) + quoted
    body = body[:2] + checksum(body).to_bytes(2, "big") + body[4:]
    head = struct.pack("!BBHHHBBH", 0x45, 0xC0, 20 + len(body), 0, 0, 64, _ICMP, 0) + source + header.source
    return head[:10] + checksum(head).to_bytes(2, "big") + head[12:] + body


def _unreachable6(packet: bytes, header: Header, source: bytes) -> bytes | None:
    if packet[6] == _ICMP6 and (header.length <= 40 or packet[40] < 128):  # an error itself
        return None
    body = b"\x01\x03\0\0" + bytes(4) + packet[: _MTU6 - 48]
    pseudo = source + header.source + struct.pack("!IHBB", len(body), 0, 0, _ICMP6)
    body = body[:2] + checksum(pseudo + body).to_bytes(2, "big") + body[4:]
    return struct.pack("!IHBB", 0x60000000, len(body), _ICMP6, 64) + source + header.source + body


class RateLimit:
    """At most ``burst`` at once and ``rate`` per second in the long run. Times are ``Now.mono`` seconds."""

    def __init__(self, rate: float = 10.0, burst: int = 20) -> None:
        self._rate, self._burst = rate, float(burst)
        self._tokens = float(burst)
        self._at: float | None = None

    def allow(self, mono: float) -> bool:
        """Whether one more is within the limit; counts it if so."""
        if self._at is not None:
            self._tokens = min(self._burst, self._tokens + max(mono - self._at, 0.0) * self._rate)
        self._at = mono
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
