"""A small rtnetlink: one request, its answers, nothing else.

Why not pyroute2 in the daemon: importing it and opening one socket costs 15 MB of resident memory and 0.15 s beside
trio (measured: 26.1 to 41.2 MB; python 3.11, pyroute2 0.9.7), of a budget of 80 MB, for the seven messages that a
daemon needs. This module costs 0.3 MB. Tools and tests may use pyroute2; the tests hold this module against it.

Wire format: linux/netlink.h and linux/rtnetlink.h. All calls are synchronous (the kernel answers at once).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from provider_kairos.errors import HostError

__all__ = ["Message", "Netlink", "NetlinkError", "attribute", "attributes"]

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK, RTM_SETLINK = 16, 17, 18, 19
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_GETROUTE = 24, 26

NLM_F_REQUEST, NLM_F_ACK = 0x1, 0x4
NLM_F_REPLACE, NLM_F_EXCL, NLM_F_CREATE = 0x100, 0x200, 0x400
NLM_F_DUMP = 0x300
_NLM_F_DUMP_INTR = 0x10

_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_HEADER = struct.Struct("=IHHII")
_SOL_NETLINK, _NETLINK_GET_STRICT_CHK = 270, 12

# Multicast groups as a bit mask (RTMGRP_*).
GROUPS_LINKS_AND_ADDRESSES = 0x1 | 0x10 | 0x100


class NetlinkError(OSError):
    """The kernel's answer to a request; ``errno`` says which."""


@dataclass(frozen=True, slots=True)
class Message:
    """One netlink message: its type and everything after the netlink header."""

    type: int
    payload: bytes


def attribute(kind: int, value: bytes) -> bytes:
    """One route attribute, padded to four bytes."""
    size = 4 + len(value)
    return struct.pack("=HH", size, kind) + value + bytes(-size % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in ``data``; of two of a kind the last wins. Stops at the first malformed one."""
    found: dict[int, bytes] = {}
    position = 0
    while position + 4 <= len(data):
        size, kind = struct.unpack_from("=HH", data, position)
        if size < 4 or position + size > len(data):
            break
        found[kind & 0x3FFF] = data[position + 4 : position + size]
        position += (size + 3) & ~3
    return found


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """``(type, flags, sequence, payload)`` of every message in one datagram."""
    position = 0
    while position + 16 <= len(data):
        size, kind, flags, sequence, _port = _HEADER.unpack_from(data, position)
        if size < 16 or position + size > len(data):
            break
        yield kind, flags, sequence, data[position + 16 : position + size]
        position += (size + 3) & ~3


class Netlink:
    """A route socket of the network namespace in which it was opened. Use as a context manager."""

    def __init__(self, groups: int = 0) -> None:
        try:
            self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
        except OSError as error:
            raise HostError(f"no route socket: {error.strerror}", hint="the kernel needs CONFIG_RTNETLINK") from error
        self.socket.bind((0, groups))
        self._sequence = int.from_bytes(os.urandom(3), "big")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()

    def _send(self, kind: int, flags: int, payload: bytes) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFFFFFF
        header = _HEADER.pack(16 + len(payload), kind, flags | NLM_F_REQUEST, self._sequence, 0)
        self.socket.sendto(header + payload, (0, 0))
        return self._sequence

    def request(self, kind: int, payload: bytes, flags: int = 0) -> None:
        """Change something. Raises NetlinkError with the kernel's errno."""
        sequence = self._send(kind, flags | NLM_F_ACK, payload)
        while True:
            for answer, _flags, number, body in split(self.socket.recv(65536)):
                if number != sequence or answer != _NLMSG_ERROR:
                    continue
                code = -struct.unpack_from("=i", body)[0]
                if code:
                    raise NetlinkError(code, os.strerror(code))
                return

    def dump(self, kind: int, payload: bytes) -> list[Message]:
        """Everything of a kind. A dump that the kernel marks as interrupted is asked again, three times at most."""
        for _ in range(3):
            found, whole = self._dump_once(kind, payload)
            if whole:
                break
        return found

    def _dump_once(self, kind: int, payload: bytes) -> tuple[list[Message], bool]:
        sequence = self._send(kind, NLM_F_DUMP, payload)
        found: list[Message] = []
        whole = True
        while True:
            for answer, flags, number, body in split(self.socket.recv(262144)):
                if number != sequence:
                    continue
                whole = whole and not flags & _NLM_F_DUMP_INTR
                if answer == _NLMSG_DONE:
                    return found, whole
                if answer == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", body)[0]
                    if code in {0, errno.EAFNOSUPPORT, errno.EOPNOTSUPP}:  # a kernel without IPv6 has no such dump
                        return found, True
                    raise NetlinkError(code, os.strerror(code))
                found.append(Message(answer, body))
