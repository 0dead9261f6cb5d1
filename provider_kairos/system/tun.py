"""The TUN device: opened or re-attached, read in batches, written packet by packet.

Persistent by rule (spec/k3s.md 0.4, 7): k3s' overlay hangs on the interface and does not come back when it goes, so
it outlives the daemon, which on its next start attaches to it again. One IP packet per read and per write, without a
packet-information header (spec/edgevpn.md 8.1). Addresses, MTU and "up" are :mod:`provider_kairos.system.links`'
business; :func:`open_tun` calls it for the MTU alone.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from pathlib import Path
from typing import Self

import trio

from provider_kairos.errors import HostError, LocalError, NotFoundError, PermissionHostError
from provider_kairos.system.links import LinkManager

__all__ = ["Tun", "open_tun", "remove_tun"]

log = logging.getLogger(__name__)

_DEVICE = Path("/dev/net/tun")
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB
_IFF_TUN, _IFF_NO_PI = 0x1, 0x1000
_IFREQ = struct.Struct("16sH22x")
_LARGEST_PACKET = 65535
_BATCH = 64  # packets taken before others get their turn

# A write that fails so lost one packet and says nothing about the next: interface down, queue full, no IP packet.
_PACKET_ERRORS = {errno.EIO, errno.EAGAIN, errno.ENOBUFS, errno.EINVAL, errno.ENOMEM}


class Tun:
    """An attached TUN device. ``name`` is the interface's, ``created`` whether this attach made it."""

    def __init__(self, fd: int, name: str, *, created: bool) -> None:
        self.fd = fd
        self.name = name
        self.created = created
        self.read_packets = 0
        self.written_packets = 0
        self.write_errors = 0
        self._buffer = bytearray(_LARGEST_PACKET + 1)
        self._view = memoryview(self._buffer)

    async def read(self) -> list[bytes]:
        """Wait for packets and return what is there, at most 64.

        Raises:
            HostError: The device is gone (somebody deleted the interface).
            trio.ClosedResourceError: :meth:`close` was called meanwhile.
        """
        while True:
            if packets := self.read_nowait():
                # A busy device must not starve the rest of the process.
                await trio.lowlevel.checkpoint()
                return packets
            if self.fd < 0:
                raise trio.ClosedResourceError
            await trio.lowlevel.wait_readable(self.fd)

    def read_nowait(self) -> list[bytes]:
        """The packets that are there now, at most 64; empty when there are none. Raises as :meth:`read`."""
        packets: list[bytes] = []
        if self.fd < 0:
            raise trio.ClosedResourceError
        for _ in range(_BATCH):
            try:
                size = os.readv(self.fd, [self._buffer])
            except BlockingIOError:
                break
            except OSError as error:
                if packets:
                    break  # deliver those first; the next call meets the error again
                raise HostError(
                    f"interface {self.name} is gone: {error.strerror}", hint="it is made again by itself"
                ) from error
            packets.append(bytes(self._view[:size]))
        self.read_packets += len(packets)
        return packets

    def write(self, packet: bytes | bytearray | memoryview) -> bool:
        """Hand one IP packet to the kernel; False (and counted) when it did not take it.

        Raises:
            HostError: The device is gone.
            trio.ClosedResourceError: It was closed.
        """
        if self.fd < 0:
            raise trio.ClosedResourceError
        try:
            os.write(self.fd, packet)
        except OSError as error:
            if error.errno in _PACKET_ERRORS:
                self.write_errors += 1
                return False
            raise HostError(
                f"interface {self.name} is gone: {error.strerror}", hint="it is made again by itself"
            ) from error
        self.written_packets += 1
        return True

    def close(self) -> None:
        """Detach. A persistent interface stays, with its addresses and routes, without a carrier."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            try:
                trio.lowlevel.notify_closing(fd)
            except RuntimeError:
                log.debug("closed %s outside of the event loop", self.name)
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_tun(name: str = "edgevpn0", mtu: int | None = 1200, *, persistent: bool = True) -> Tun:
    """Attach to the TUN interface ``name``, making it when there is none; set its MTU when given.

    Raises:
        PermissionHostError: No right to open the device or to configure the interface.
        HostError: No TUN in this kernel, the interface is of another kind, or another process holds it.
    """
    if not 0 < len(name.encode()) < 16 or "/" in name or any(char.isspace() for char in name):
        raise LocalError(f"not an interface name: {name!r}")
    links = LinkManager()
    existed = links.link(name)
    if existed is not None and existed.kind not in {"", "tun"}:
        raise HostError(
            f"interface {name} exists and is a {existed.kind}",
            hint=f"remove it (ip link del {name}) or choose another name",
        )
    fd = _open_device()
    try:
        _attach(fd, name)
        if persistent:
            fcntl.ioctl(fd, _TUNSETPERSIST, 1)
        if mtu is not None:
            links.set_mtu(name, mtu)
    except BaseException:
        os.close(fd)
        raise
    return Tun(fd, name, created=existed is None)


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
            raise HostError(
                f"there is no {_DEVICE}",
                hint="load the module (modprobe tun); in a container, pass the device in (--device /dev/net/tun)",
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise PermissionHostError(
                f"{_DEVICE} may not be opened", hint="run as root, or allow this user the device"
            ) from error
        raise HostError(f"cannot open {_DEVICE}: {error.strerror}") from error


def _attach(fd: int, name: str) -> None:
    try:
        fcntl.ioctl(fd, _TUNSETIFF, _IFREQ.pack(name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise HostError(
                f"interface {name} is held by another process", hint="another mesh daemon or VPN runs: stop it"
            ) from error
        if error.errno == errno.EPERM:
            raise PermissionHostError(
                f"may not make or attach to interface {name}", hint="run as root or with CAP_NET_ADMIN"
            ) from error
        if error.errno == errno.EINVAL:
            raise HostError(
                f"interface {name} exists and is no TUN device of one queue",
                hint=f"remove it (ip link del {name}) or choose another name",
            ) from error
        raise HostError(f"cannot attach to interface {name}: {error.strerror}") from error


def remove_tun(name: str) -> bool:
    """Delete a persistent TUN interface; False when there is none. Raises HostError."""
    links = LinkManager()
    link = links.link(name)
    if link is None:
        return False
    if link.kind not in {"", "tun"}:
        raise NotFoundError(f"interface {name} is a {link.kind}, not a TUN device")
    return links.delete_link(name)
