"""Multiaddresses in binary, as peers send them: taken apart, told from nonsense, and made (multiformats multiaddr).

A DHT hands out addresses of many transports. We dial the TCP ones only, but a server passes on what it was given, and
must not pass on nonsense. :func:`split` walks any address whose protocols are in the table; nothing is ever raised for
what a peer sent. py-multiaddr does the same at a hundred times the cost, and a lookup reads thousands. Text of
addresses that we dial is :mod:`provider_kairos.mesh.addresses`' business.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

import base58

from provider_kairos.errors import ConfigError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.addresses import NAME, Endpoint
from provider_kairos.mesh.wire import encode_varint

__all__ = [
    "DNSADDR",
    "MAX_LENGTH",
    "P2P",
    "encode",
    "encode_endpoint",
    "endpoint_of",
    "is_relayed",
    "peer_id",
    "peer_id_bytes",
    "split",
]

MAX_LENGTH = 512
"""Bytes of one address; WebTransport with two certificate hashes takes about 130."""

MAX_COMPONENTS = 16

_VARIABLE = -1
_TABLE: dict[str, tuple[int, int]] = {
    "ip4": (4, 4),
    "tcp": (6, 2),
    "dccp": (33, 2),
    "ip6": (41, 16),
    "ip6zone": (42, _VARIABLE),
    "ipcidr": (43, 1),
    "dns": (53, _VARIABLE),
    "dns4": (54, _VARIABLE),
    "dns6": (55, _VARIABLE),
    "dnsaddr": (56, _VARIABLE),
    "sctp": (132, 2),
    "udp": (273, 2),
    "p2p-webrtc-direct": (276, 0),
    "webrtc-direct": (280, 0),
    "webrtc": (281, 0),
    "p2p-circuit": (290, 0),
    "udt": (301, 0),
    "utp": (302, 0),
    "unix": (400, _VARIABLE),
    "p2p": (421, _VARIABLE),
    "https": (443, 0),
    "onion": (444, 12),
    "onion3": (445, 37),
    "garlic64": (446, _VARIABLE),
    "garlic32": (447, _VARIABLE),
    "tls": (448, 0),
    "sni": (449, _VARIABLE),
    "noise": (454, 0),
    "quic": (460, 0),
    "quic-v1": (461, 0),
    "webtransport": (465, 0),
    "certhash": (466, _VARIABLE),
    "ws": (477, 0),
    "wss": (478, 0),
    "http": (480, 0),
    "http-path": (481, _VARIABLE),
}
"""Name to code and length of the value in bytes."""

_LENGTHS = dict(_TABLE.values())
_CODES = {name: code for name, (code, _) in _TABLE.items()}
_HOSTS = {_CODES[name]: name for name in ("ip4", "ip6", "dns", "dns4", "dns6")}
_NAMES = {"dns", "dns4", "dns6", "dnsaddr", "sni"}
_PORTS = {"tcp", "udp", "dccp", "sctp"}
_TCP, _CIRCUIT = _CODES["tcp"], _CODES["p2p-circuit"]
P2P, DNSADDR = _CODES["p2p"], _CODES["dnsaddr"]
"""Codes of the protocols that bootstrap addresses begin and end with."""


def split(data: bytes) -> tuple[tuple[int, bytes], ...] | None:
    """Codes and values of an address; None when it is none that we know how to read."""
    if not data or len(data) > MAX_LENGTH:
        return None
    found: list[tuple[int, bytes]] = []
    position = 0
    while position < len(data):
        code, position = _varint(data, position)
        length = _LENGTHS.get(code)
        if length is None or len(found) >= MAX_COMPONENTS:
            return None
        if length == _VARIABLE:
            length, position = _varint(data, position)
        if position + length > len(data):
            return None
        found.append((code, data[position : position + length]))
        position += length
    return tuple(found)


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """Value and position behind it; a value no protocol has where the varint is cut or too long."""
    value = shift = 0
    while position < len(data) and shift < 28:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    return MAX_LENGTH + 1, len(data)


def endpoint_of(data: bytes) -> Endpoint | None:
    """What TCP can dial: an address or name, a port, at most a peer ID behind it. None for all else."""
    parts = split(data)
    if parts is None or not 2 <= len(parts) <= 3 or parts[1][0] != _TCP or (len(parts) == 3 and parts[2][0] != P2P):
        return None
    family = _HOSTS.get(parts[0][0])
    port = int.from_bytes(parts[1][1], "big")
    if family is None or not port:
        return None
    if family in {"ip4", "ip6"}:
        address = ipaddress.ip_address(parts[0][1])
        if address.is_unspecified or address.is_multicast:
            return None
        return Endpoint(family, str(address), port)
    try:
        host = parts[0][1].decode("ascii")
    except UnicodeDecodeError:
        return None
    return Endpoint(family, host, port) if NAME.fullmatch(host) else None


def is_relayed(data: bytes) -> bool:
    """Whether an address leads through a relay."""
    return any(code == _CIRCUIT for code, _ in split(data) or ())


def encode_endpoint(endpoint: Endpoint) -> bytes:
    """The binary form of an address and a port."""
    if endpoint.ip is not None:
        host = endpoint.ip.packed
    else:
        name = endpoint.host.encode("ascii")
        host = encode_varint(len(name)) + name
    code = _CODES[endpoint.family]
    return encode_varint(code) + host + encode_varint(_TCP) + endpoint.port.to_bytes(2, "big")


def encode(text: str) -> bytes:
    """The binary form of a multiaddress that a user wrote. Raises ConfigError that says what is wrong with it."""
    if not text.startswith("/") or len(text) > MAX_LENGTH:
        raise ConfigError(f"{text!r} is no multiaddress", hint="for example /ip4/192.0.2.1/tcp/4001")
    words = iter(text[1:].rstrip("/").split("/"))
    out = bytearray()
    for name in words:
        alias = "p2p" if name == "ipfs" else name
        code, length = _TABLE.get(alias, (0, 0))
        if not code:
            raise ConfigError(f"{text!r}: {name!r} is no protocol of a multiaddress")
        out += encode_varint(code)
        if length:
            value = next(words, "")
            try:
                raw = _value(alias, value)
            except ValueError:
                raise ConfigError(f"{text!r}: {value!r} is no value of /{name}") from None
            out += raw if length > 0 else encode_varint(len(raw)) + raw
    if len(out) > MAX_LENGTH:
        raise ConfigError(f"{text!r} is too long")
    return bytes(out)


def _value(name: str, value: str) -> bytes:
    if name in {"ip4", "ip6"}:
        return (ipaddress.IPv4Address if name == "ip4" else ipaddress.IPv6Address)(value).packed
    if name in _PORTS:
        if not value.isascii() or not value.isdigit() or int(value) > 65535:
            raise ValueError(value)
        return int(value).to_bytes(2, "big")
    if name in _NAMES and NAME.fullmatch(value):
        return value.encode("ascii")
    if name == "p2p":
        return peer_id_bytes(PeerId(value))
    raise ValueError(value)


# --- peer IDs ---------------------------------------------------------------------------------------------------------

_IDENTITY, _SHA2_256 = 0x00, 0x12
_MAX_IDENTITY = 44
"""Bytes: a public key of at most 42 bytes stands in the ID itself; anything longer is hashed."""


@lru_cache(maxsize=1024)
def peer_id(raw: bytes) -> PeerId | None:
    """The text of a binary peer ID; None when it is none."""
    hashed = len(raw) == 34 and raw[0] == _SHA2_256 and raw[1] == 32
    inline = 2 < len(raw) <= _MAX_IDENTITY and raw[0] == _IDENTITY and raw[1] == len(raw) - 2
    return PeerId(base58.b58encode(raw).decode("ascii")) if hashed or inline else None


@lru_cache(maxsize=1024)
def peer_id_bytes(peer: PeerId) -> bytes:
    """The binary form of a peer ID. Raises ValueError when the text is none."""
    raw: bytes = base58.b58decode(peer) if len(peer) <= 64 else b""
    if peer_id(raw) != peer:
        raise ValueError(f"{peer!r} is no peer ID")
    return raw
