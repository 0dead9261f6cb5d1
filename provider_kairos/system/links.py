"""Network links and addresses of this machine's (current) network namespace.

What is there (links, addresses, default route, where multicast can go), what is to be (address, up, MTU), and a
stream of "something changed". Speaks through :mod:`provider_kairos.system.netlink`, which says why not pyroute2.
Which address belongs on which interface is decided elsewhere.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
import struct
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface
from typing import Self

from provider_kairos.errors import HostError, NotFoundError, PermissionHostError, TimeoutHostError
from provider_kairos.system import netlink as nl

__all__ = ["Address", "Link", "LinkManager", "LinkWatch", "MulticastInterface"]

log = logging.getLogger(__name__)

IFF_UP, IFF_LOOPBACK, IFF_POINTOPOINT, IFF_RUNNING, IFF_MULTICAST = 0x1, 0x8, 0x10, 0x40, 0x1000
_IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 4, 10, 18, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD, _IFA_F_TENTATIVE, _IFA_F_DADFAILED = 0x02, 0x40, 0x08
_RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_TABLE, _RT_TABLE_MAIN = 4, 5, 6, 15, 254
_LINK = struct.Struct("=BxHiII")  # family, type, index, flags, change
_ADDR = struct.Struct("=BBBBi")  # family, prefix length, flags, scope, index
_ROUTE = struct.Struct("=BBBBBBBBI")  # family, dst_len, src_len, tos, table, protocol, scope, type, flags


@dataclass(frozen=True, slots=True)
class Link:
    """A network link.

    ``kind`` is the driver's word for virtual ones (``tun``, ``veth``, ``bridge``, ...), ``master`` the index of the
    bridge, bond or VRF that it is part of, else 0.
    """

    index: int
    name: str
    flags: int
    mtu: int
    kind: str = ""
    master: int = 0

    @property
    def up(self) -> bool:
        """Whether it was set up (not: whether a cable is in)."""
        return bool(self.flags & IFF_UP)

    @property
    def loopback(self) -> bool:
        """Whether it is ``lo``."""
        return bool(self.flags & IFF_LOOPBACK)

    @property
    def multicast(self) -> bool:
        """Whether it carries multicast now: able to, set up, and with a carrier."""
        return self.flags & (IFF_UP | IFF_RUNNING | IFF_MULTICAST) == IFF_UP | IFF_RUNNING | IFF_MULTICAST


@dataclass(frozen=True, slots=True)
class Address:
    """An address on a link. ``usable`` is False while IPv6 still checks it for duplicates, or found one."""

    index: int
    interface: str
    ip: IPv4Interface | IPv6Interface
    usable: bool = True


@dataclass(frozen=True, slots=True)
class MulticastInterface:
    """A link over which multicast can be spoken, with its usable addresses in kernel order."""

    index: int
    name: str
    ipv4: tuple[IPv4Address, ...]
    ipv6: tuple[IPv6Address, ...]


def _links(messages: Iterable[nl.Message]) -> list[Link]:
    found = []
    for message in messages:
        if message.type != nl.RTM_NEWLINK or len(message.payload) < 16:
            continue
        _family, _type, index, flags, _change = _LINK.unpack_from(message.payload)
        attrs = nl.attributes(message.payload[16:])
        info = nl.attributes(attrs.get(_IFLA_LINKINFO, b""))
        name = attrs.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")
        kind = info.get(_IFLA_INFO_KIND, b"").rstrip(b"\0").decode("ascii", "replace")
        found.append(Link(index, name, flags, _number(attrs, _IFLA_MTU), kind, _number(attrs, _IFLA_MASTER)))
    return sorted(found, key=lambda link: link.index)


def _number(attrs: dict[int, bytes], kind: int, missing: int = 0) -> int:
    value = attrs.get(kind, b"")
    return int.from_bytes(value, sys.byteorder) if len(value) == 4 else missing


def _addresses(messages: Iterable[nl.Message], names: dict[int, str]) -> list[Address]:
    found = []
    for message in messages:
        if message.type != nl.RTM_NEWADDR or len(message.payload) < 8:
            continue
        family, prefix, flags, _scope, index = _ADDR.unpack_from(message.payload)
        attrs = nl.attributes(message.payload[8:])
        # On point-to-point links ADDRESS is the other end; LOCAL, where present, is always ours.
        raw = attrs.get(_IFA_LOCAL) or attrs.get(_IFA_ADDRESS, b"")
        flags = _number(attrs, _IFA_FLAGS, flags)
        ip: IPv4Interface | IPv6Interface
        if family == socket.AF_INET and len(raw) == 4:
            ip = IPv4Interface((raw, prefix))
        elif family == socket.AF_INET6 and len(raw) == 16:
            ip = IPv6Interface((raw, prefix))
        else:
            continue
        found.append(Address(index, names.get(index, ""), ip, usable=not flags & (_IFA_F_TENTATIVE | _IFA_F_DADFAILED)))
    return found


class LinkManager:
    """Reads and changes links. Stateless: every call opens a socket in the caller's network namespace.

    Raises HostError (PermissionHostError without CAP_NET_ADMIN) from every method that changes something, and
    NotFoundError where an interface is named that does not exist.
    """

    def links(self) -> list[Link]:
        """All links by index."""
        with nl.Netlink() as netlink:
            return _links(netlink.dump(nl.RTM_GETLINK, _LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)))

    def link(self, name: str) -> Link | None:
        """The link of that name, or None."""
        return next((link for link in self.links() if link.name == name), None)

    def addresses(self, interface: str | None = None) -> list[Address]:
        """All addresses, or those of one interface, in kernel order (IPv4 first)."""
        with nl.Netlink() as netlink:
            names = {link.index: link.name for link in _links(netlink.dump(nl.RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0)))}
            found = _addresses(netlink.dump(nl.RTM_GETADDR, _ADDR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)), names)
        return [address for address in found if interface in {None, address.interface}]

    def first_address(self, interface: str, *, version: int = 0) -> str | None:
        """The first address of an interface in kernel order, without prefix length; ``version`` 4, 6 or 0 for any."""
        for address in self.addresses(interface):
            if version in {0, address.ip.version}:
                return str(address.ip.ip)
        return None

    def default_route_interface(self) -> str | None:
        """The interface of the IPv4 default route with the lowest metric; else of the IPv6 one; else None."""
        with nl.Netlink() as netlink:
            names = {link.index: link.name for link in _links(netlink.dump(nl.RTM_GETLINK, _LINK.pack(0, 0, 0, 0, 0)))}
            for family in (socket.AF_INET, socket.AF_INET6):
                best: tuple[int, int] | None = None
                for message in netlink.dump(nl.RTM_GETROUTE, _ROUTE.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)):
                    if message.type != nl.RTM_NEWROUTE or len(message.payload) < 12:
                        continue
                    their_family, dst_len, _src, _tos, table, _proto, _scope, kind, _flags = _ROUTE.unpack_from(
                        message.payload
                    )
                    attrs = nl.attributes(message.payload[12:])
                    table, index = _number(attrs, _RTA_TABLE, table), _number(attrs, _RTA_OIF)
                    if their_family != family or dst_len or kind != 1 or table != _RT_TABLE_MAIN or not index:
                        continue
                    metric = _number(attrs, _RTA_PRIORITY)
                    best = min(best or (metric, index), (metric, index))
                if best:
                    return names.get(best[1])
        return None

    def multicast_interfaces(
        self, exclude: Callable[[str, tuple[IPv4Address, ...]], bool] | None = None
    ) -> list[MulticastInterface]:
        """Links that carry multicast now and have at least one usable address; ``lo`` is not one.

        Ports of a bridge or bond are left out: what they carry is their master's (a Kubernetes node has one such
        port for each pod). ``exclude(name, ipv4)`` leaves out more, such as the VPN's own interface.
        """
        by_index: dict[int, list[Address]] = {}
        for address in self.addresses():
            if address.usable:
                by_index.setdefault(address.index, []).append(address)
        found = []
        links = self.links()
        routers = {link.index for link in links if link.kind == "vrf"}
        for link in links:
            if link.loopback or not link.multicast or link.index not in by_index:
                continue
            if link.master and link.master not in routers:
                continue
            mine = by_index[link.index]
            ipv4 = tuple(a.ip.ip for a in mine if isinstance(a.ip, IPv4Interface))
            ipv6 = tuple(a.ip.ip for a in mine if isinstance(a.ip, IPv6Interface))
            if exclude is None or not exclude(link.name, ipv4):
                found.append(MulticastInterface(link.index, link.name, ipv4, ipv6))
        return found

    def add_address(self, interface: str, address: str) -> bool:
        """Give ``interface`` an address (``10.1.0.5/24``); False when it had it already."""
        return self._change_address(interface, address, add=True)

    def delete_address(self, interface: str, address: str) -> bool:
        """Take an address away; False when it was not there."""
        return self._change_address(interface, address, add=False)

    def _change_address(self, interface: str, text: str, *, add: bool) -> bool:
        index = self._index(interface)
        ip = ipaddress.ip_interface(text)
        family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
        payload = _ADDR.pack(family, ip.network.prefixlen, _IFA_F_NODAD if ip.version == 6 else 0, 0, index)
        payload += nl.attribute(_IFA_LOCAL, ip.ip.packed) + nl.attribute(_IFA_ADDRESS, ip.ip.packed)
        if ip.version == 4 and ip.network.prefixlen < 31:
            payload += nl.attribute(_IFA_BROADCAST, ip.network.broadcast_address.packed)
        word = "add" if add else "delete"
        try:
            with nl.Netlink() as netlink:
                flags = nl.NLM_F_CREATE | nl.NLM_F_EXCL if add else 0
                netlink.request(nl.RTM_NEWADDR if add else nl.RTM_DELADDR, payload, flags)
        except nl.NetlinkError as error:
            if error.errno == (errno.EEXIST if add else errno.EADDRNOTAVAIL):
                return False
            raise _refused(f"{word} address {text} {'to' if add else 'from'} {interface}", error) from error
        return True

    def set_up(self, interface: str) -> None:
        """Set a link up."""
        self._change_link(interface, "set up", flags=IFF_UP, change=IFF_UP)

    def set_down(self, interface: str) -> None:
        """Set a link down."""
        self._change_link(interface, "set down", flags=0, change=IFF_UP)

    def set_mtu(self, interface: str, mtu: int) -> None:
        """Set the largest packet, in bytes of IP."""
        self._change_link(interface, f"set MTU {mtu} on", attrs=nl.attribute(_IFLA_MTU, struct.pack("=I", mtu)))

    def delete_link(self, interface: str) -> bool:
        """Delete a virtual link; False when there is none of that name."""
        try:
            self._change_link(interface, "delete", kind=nl.RTM_DELLINK)
        except NotFoundError:
            return False
        return True

    def _change_link(
        self,
        interface: str,
        words: str,
        *,
        flags: int = 0,
        change: int = 0,
        attrs: bytes = b"",
        kind: int = nl.RTM_NEWLINK,
    ) -> None:
        payload = _LINK.pack(socket.AF_UNSPEC, 0, self._index(interface), flags, change) + attrs
        try:
            with nl.Netlink() as netlink:
                netlink.request(kind, payload)
        except nl.NetlinkError as error:
            raise _refused(f"{words} {interface}", error) from error

    @staticmethod
    def _index(interface: str) -> int:
        try:
            return socket.if_nametoindex(interface)
        except OSError as error:
            raise NotFoundError(f"interface {interface} does not exist") from error

    def watch(self) -> LinkWatch:
        """Changes of links and addresses from now on; close it, or use it as a context manager."""
        return LinkWatch()

    async def wait_for_interface(self, interface: str, timeout: float | None = None) -> Link:
        """The link, once it exists. Raises TimeoutHostError after ``timeout`` seconds (None waits for ever)."""
        import trio  # noqa: PLC0415  # as above

        with trio.move_on_after(float("inf") if timeout is None else timeout), self.watch() as changes:
            while (link := self.link(interface)) is None:
                await changes.wait(settle=0)
            return link
        raise TimeoutHostError(f"interface {interface} did not appear within {timeout:g} s")


class LinkWatch:
    """Wakes after changes of links or addresses in the namespace where it was opened; says *that*, not *what*.

    ``async for _ in watch`` works too. Who is woken reads anew what it needs, so nothing is lost when the kernel had
    to drop messages.
    """

    def __init__(self) -> None:
        self._netlink = nl.Netlink(groups=nl.GROUPS_LINKS_AND_ADDRESSES)
        self._netlink.socket.setblocking(False)  # noqa: FBT003

    async def wait(self, settle: float = 0.05) -> None:
        """Return after the next burst of changes: an interface that comes up sends several messages at once."""
        import trio  # noqa: PLC0415  # the plugin's synchronous half must not pay for it

        await trio.lowlevel.wait_readable(self._netlink.socket.fileno())
        if settle:
            await trio.sleep(settle)
        _drain(self._netlink.socket)

    def close(self) -> None:
        """Close the socket."""
        self._netlink.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> None:
        await self.wait()


def _drain(sock: socket.socket) -> None:
    while True:
        try:
            sock.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:  # lost messages: the caller re-reads everything anyway
                raise


def _refused(words: str, error: OSError) -> HostError:
    if error.errno in {errno.EPERM, errno.EACCES}:
        return PermissionHostError(f"may not {words}", hint="run as root or with CAP_NET_ADMIN")
    if error.errno == errno.ENODEV:
        return HostError(f"cannot {words}: the interface is gone")
    return HostError(f"cannot {words}: {error.strerror}")
