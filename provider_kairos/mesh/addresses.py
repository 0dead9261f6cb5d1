"""Addresses: multiaddr text, what this machine can be reached at, and networks that are left alone.

Only what TCP needs (``/ip4|ip6|dns|dns4|dns6/HOST/tcp/PORT[/p2p/ID]``, spec/edgevpn.md 7); other multiaddrs are not
ours to dial and read as None. Interface addresses come from the kernel by netlink, because they change while we run.
Which addresses a peer has, and when to dial them, is :mod:`provider_kairos.mesh.dialer`'s business.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from provider_kairos.errors import ConfigError
from provider_kairos.ids import PeerId

__all__ = [
    "Endpoint",
    "NAME",
    "InterfaceAddress",
    "Networks",
    "advertised",
    "interface_addresses",
    "parse_endpoint",
    "parse_listen",
]

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

_ADDRESS = re.compile(r"/(ip4|ip6|dns|dns4|dns6)/([^/]{1,253})/tcp/(\d{1,5})(?:/p2p/([1-9A-HJ-NP-Za-km-z]{8,64}))?/?")
NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
"""A host name as multiaddresses hold it."""


@dataclass(frozen=True, slots=True, order=True)
class Endpoint:
    """Where to dial: ``host`` is an address or a name. ``family`` is ip4, ip6, dns, dns4 or dns6."""

    family: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"/{self.family}/{self.host}/tcp/{self.port}"

    @property
    def ip(self) -> IpAddress | None:
        """The address, None for a name."""
        return ipaddress.ip_address(self.host) if self.family in {"ip4", "ip6"} else None


def parse_endpoint(text: str) -> tuple[Endpoint, PeerId | None] | None:
    """Read a multiaddr; None when it is none that TCP can dial (QUIC, relays, wildcards, port 0, nonsense)."""
    match = _ADDRESS.fullmatch(text)
    if match is None:
        return None
    family, host, port, peer = match[1], match[2], int(match[3]), match[4]
    if not 0 < port < 65536:
        return None
    if family in {"ip4", "ip6"}:
        try:
            address = (ipaddress.IPv4Address if family == "ip4" else ipaddress.IPv6Address)(host)
        except ValueError:
            return None
        if address.is_unspecified or address.is_multicast:
            return None
        host = str(address)
    elif not NAME.fullmatch(host):
        return None
    return Endpoint(family, host, port), PeerId(peer) if peer else None


def parse_listen(text: str) -> tuple[str, int]:
    """Address and port of a listen multiaddr; wildcards and port 0 are welcome. Raises ConfigError."""
    match = _ADDRESS.fullmatch(text)
    if match is None or match[1] not in {"ip4", "ip6"} or match[4] or int(match[3]) > 65535:
        raise ConfigError(f"listen address {text!r} is not /ip4|ip6/ADDRESS/tcp/PORT")
    try:
        address = (ipaddress.IPv4Address if match[1] == "ip4" else ipaddress.IPv6Address)(match[2])
    except ValueError as error:
        raise ConfigError(f"listen address {text!r}: {error}") from error
    return str(address), int(match[3])


class Networks:
    """Networks that are neither dialled nor advertised: the VPN must not carry itself."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._networks: list[IpNetwork] = []
        for text in texts:
            try:
                self._networks.append(ipaddress.ip_network(text, strict=False))
            except ValueError as error:
                raise ConfigError(f"blocked network {text!r}: {error}") from error

    def __contains__(self, address: object) -> bool:
        if isinstance(address, str):
            try:
                address = ipaddress.ip_address(address.partition("%")[0])
            except ValueError:
                return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(
            address in network
            for network in self._networks
            if isinstance(address, ipaddress.IPv4Address | ipaddress.IPv6Address)
        )


@dataclass(frozen=True, slots=True)
class InterfaceAddress:
    """One address of one interface."""

    interface: str
    address: IpAddress
    prefix: int


_RTM_GETADDR, _NLMSG_DONE, _NLMSG_ERROR = 22, 3, 2
_NLM_F_REQUEST_DUMP = 0x301
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_UNUSABLE = 0x08 | 0x20 | 0x40  # duplicate address found, deprecated, not yet proven unique


def interface_addresses() -> list[InterfaceAddress]:
    """Every usable address of this machine, link-local ones left out. Raises OSError."""
    names = dict(socket.if_nameindex())
    found: list[InterfaceAddress] = []
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as link:
        link.settimeout(2)
        link.send(struct.pack("=IHHIIB3x", 20, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0, socket.AF_UNSPEC))
        while True:
            data = link.recv(65536)
            while len(data) >= 16:
                length, kind = struct.unpack_from("=IH", data)
                if kind in {_NLMSG_DONE, _NLMSG_ERROR}:
                    return found
                if (entry := _read_entry(data[16:length], names)) is not None:
                    found.append(entry)
                data = data[(length + 3) & ~3 :]


def _read_entry(body: bytes, names: dict[int, str]) -> InterfaceAddress | None:
    family, prefix, flags, _scope, index = struct.unpack_from("=BBBBI", body)
    attributes: dict[int, bytes] = {}
    rest = body[8:]
    while len(rest) >= 4:
        size, kind = struct.unpack_from("=HH", rest)
        attributes[kind] = rest[4:size]
        rest = rest[(size + 3) & ~3 :] if size >= 4 else b""
    if (wide := attributes.get(_IFA_FLAGS)) is not None:
        flags = int.from_bytes(wide, "little")
    raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
    if raw is None or flags & _UNUSABLE or family not in {socket.AF_INET, socket.AF_INET6}:
        return None
    address = ipaddress.ip_address(raw)
    if address.is_link_local:
        return None
    return InterfaceAddress(names.get(index, str(index)), address, prefix)


HIDDEN = ("cni", "flannel", "kube", "cali", "docker", "br-", "veth", "edgevpn", "wg", "tun", "vxlan")
"""Names of interfaces that containers and tunnels own: their addresses lead nowhere, or back into a tunnel."""


def advertised(
    bound: Sequence[tuple[str, int]],
    blocked: Networks,
    interfaces: Sequence[str] = (),
    known: Sequence[InterfaceAddress] | None = None,
) -> list[str]:
    """What to tell others: bound sockets with wildcards replaced by interface addresses.

    ``interfaces`` limits the choice when it is not empty. Loopback is told only when there is nothing else.
    """
    if known is None:
        known = interface_addresses()
    named = [each for each in known if not interfaces or each.interface in interfaces]
    usable = [each for each in named if interfaces or not each.interface.startswith(HIDDEN)]
    for choice in (usable, named):
        outside, loopback = _expand(bound, choice, blocked)
        if outside:
            return outside
    return loopback


def _expand(
    bound: Sequence[tuple[str, int]], usable: Sequence[InterfaceAddress], blocked: Networks
) -> tuple[list[str], list[str]]:
    """Multiaddrs of bound sockets: those that lead somewhere, and those of loopback."""
    found: tuple[dict[str, None], dict[str, None]] = ({}, {})
    for host, port in bound:
        address = ipaddress.ip_address(host)
        choice = [each.address for each in usable] if address.is_unspecified else [address]
        for one in choice:
            if one.version == address.version and one not in blocked:
                found[one.is_loopback][f"/ip{one.version}/{one}/tcp/{port}"] = None
    return list(found[False]), list(found[True])
