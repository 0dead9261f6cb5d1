"""The two multicast sockets of mDNS, one per IP version, each joined on every interface in use.

One socket per version instead of one per interface: the packet information says where a packet came in, and names
where one goes out, so that packets of other interfaces (the VPN above all) are told apart and never sent there.
"""

from __future__ import annotations

import errno
import logging
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from typing import cast

import trio

from provider_kairos.errors import HostError, PermissionHostError
from provider_kairos.mesh.mdns_engine import Arrival, Send
from provider_kairos.system.links import MulticastInterface

__all__ = ["GROUP4", "GROUP6", "PORT", "MulticastSocket", "open_sockets"]

log = logging.getLogger(__name__)

PORT = 5353
GROUP4, GROUP6 = "224.0.0.251", "ff02::fb"
_LARGEST_PACKET = 9000

# linux/in.h and linux/in6.h; the socket module does not name all of them.
_IP_PKTINFO, _IP_MULTICAST_ALL, _IP_ADD_MEMBERSHIP = 8, 49, socket.IP_ADD_MEMBERSHIP
_IPV6_MULTICAST_ALL = 29
_MREQN = struct.Struct("=4s4si")  # group, local address, interface index
_PKTINFO4 = struct.Struct("=i4s4s")  # interface index, local address, destination
_PKTINFO6 = struct.Struct("=16si")  # address, interface index
_GONE = {errno.ENODEV, errno.EADDRNOTAVAIL, errno.ENXIO}


class MulticastSocket:
    """One IP version's socket. ``version`` is 4 or 6."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.joined: set[int] = set()
        self.errors: Counter[str] = Counter()
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        raw = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if version == 4:
                raw.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
                raw.setsockopt(socket.IPPROTO_IP, _IP_MULTICAST_ALL, 0)
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 255)
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 255)
                raw.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
                raw.bind(("", PORT))
            else:
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 255)
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_UNICAST_HOPS, 255)
                raw.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 1)
                try:
                    raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
                except OSError:  # before Linux 4.20; the interface index of each packet is checked anyway
                    self.errors["no_multicast_all"] += 1
                raw.bind(("::", PORT))
        except OSError:
            raw.close()
            raise
        self._socket = trio.socket.from_stdlib_socket(raw)

    def join(self, interfaces: Iterable[MulticastInterface]) -> None:
        """Be a member of the group on exactly these interfaces (those that have an address of this version)."""
        wanted = {link.index for link in interfaces if (link.ipv4 if self.version == 4 else link.ipv6)}
        for index in self.joined - wanted:
            self._member(index, join=False)
        self.joined &= wanted
        for index in wanted - self.joined:
            if self._member(index, join=True):
                self.joined.add(index)

    def _member(self, index: int, *, join: bool) -> bool:
        try:
            if self.version == 4:
                option = _IP_ADD_MEMBERSHIP if join else socket.IP_DROP_MEMBERSHIP
                request = _MREQN.pack(socket.inet_aton(GROUP4), bytes(4), index)
                self._socket.setsockopt(socket.IPPROTO_IP, option, request)
            else:
                option = socket.IPV6_JOIN_GROUP if join else socket.IPV6_LEAVE_GROUP
                request = socket.inet_pton(socket.AF_INET6, GROUP6) + struct.pack("=i", index)
                self._socket.setsockopt(socket.IPPROTO_IPV6, option, request)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # already a member: the kernel kept it
                return True
            self.errors["join" if join else "leave"] += 1
            if join and error.errno not in _GONE:
                # ENOBUFS: net.ipv4.igmp_max_memberships is used up
                log.info("mDNS does not listen on interface %d (IPv%d): %s", index, self.version, error.strerror)
            return False
        return True

    async def receive(self) -> Arrival | None:
        """The next packet; None for one without packet information or for an error that concerns one packet."""
        try:
            data, ancillary, _flags, sender = await self._socket.recvmsg(_LARGEST_PACKET, 256)
        except OSError as error:
            # Errors of earlier sends (an unreachable neighbour) surface here and say nothing about the socket.
            self.errors["receive"] += 1
            log.debug("mDNS IPv%d: %s", self.version, error)
            await trio.sleep(0.05)
            return None
        source = cast("tuple[str, int]", sender)
        for level, kind, body in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO and len(body) >= _PKTINFO4.size:
                index, _local, destination = _PKTINFO4.unpack_from(body)
                return Arrival(data, index, source[0], source[1], destination == socket.inet_aton(GROUP4))
            if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO and len(body) >= _PKTINFO6.size:
                target, index = _PKTINFO6.unpack_from(body)
                group = target == socket.inet_pton(socket.AF_INET6, GROUP6)
                return Arrival(data, index, source[0].partition("%")[0], source[1], group)
        return None

    async def send(self, packet: Send) -> bool:
        """Send to the group on the packet's interface, or to its one address if that is of this version."""
        if packet.to is None:
            if packet.interface not in self.joined:
                return False
            host, port = (GROUP4 if self.version == 4 else GROUP6), PORT
        else:
            host, port = packet.to
            if (":" in host) != (self.version == 6):
                return False
        try:
            if self.version == 4:
                info = (socket.IPPROTO_IP, _IP_PKTINFO, _PKTINFO4.pack(packet.interface, bytes(4), bytes(4)))
                await self._socket.sendmsg([packet.data], [info], 0, (host, port))
            else:
                info = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, _PKTINFO6.pack(bytes(16), packet.interface))
                await self._socket.sendmsg([packet.data], [info], 0, (host, port, 0, packet.interface))
        except OSError as error:
            self.errors["send"] += 1
            log.debug("mDNS IPv%d on interface %d: %s", self.version, packet.interface, error)
            return False
        return True

    def close(self) -> None:
        """Close the socket; the kernel leaves the groups."""
        self._socket.close()


def open_sockets() -> list[MulticastSocket]:
    """Both sockets, or the one that this machine can have.

    Raises:
        HostError: Neither; with the reason of the IPv4 one.
    """
    found: list[MulticastSocket] = []
    reasons: list[OSError] = []
    for version in (4, 6):
        try:
            found.append(MulticastSocket(version))
        except OSError as error:
            reasons.append(error)
            log.debug("mDNS without IPv%d: %s", version, error)
    if found:
        return found
    first = reasons[0]
    if first.errno in {errno.EACCES, errno.EPERM}:
        raise PermissionHostError(f"UDP port {PORT} may not be opened: {first.strerror}", hint="run as root")
    hint = (
        "another program holds it for itself: stop it or let it share the port"
        if first.errno == errno.EADDRINUSE
        else ""
    )
    raise HostError(f"UDP port {PORT} (mDNS) cannot be opened: {first.strerror}", hint=hint)
