"""A small ``ping`` for boxes on machines that have none: ICMP and ICMPv6 echo, ``-c -i -f -l -W -w -s -I -q -4 -6``.

``-f`` floods: the next request goes when a reply comes, or after 10 ms; ``-l`` says how many are on their way at once.
Prints what people and scripts expect of iputils' ping and ends as it does: 0 when anything answered, 1 when
nothing did, 2 on a mistake. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import struct
import sys
import time
from dataclasses import dataclass, field

__all__ = ["Statistics", "checksum", "echo_request", "main", "parse_reply"]


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(ident: int, sequence: int, payload: bytes, *, six: bool) -> bytes:
    """One echo request; the kernel fills in the checksum of ICMPv6."""
    kind = 128 if six else 8
    head = struct.pack("!BBHHH", kind, 0, 0, ident, sequence)
    if six:
        return head + payload
    return struct.pack("!BBHHH", kind, 0, checksum(head + payload), ident, sequence) + payload


def parse_reply(data: bytes, ident: int, *, six: bool, header: bool) -> tuple[int, int, int] | None:
    """(sequence, time to live or 0, ICMP bytes) when ``data`` is an echo reply of ours, else None.

    ``header`` says that an IPv4 header comes first, as raw sockets deliver it.
    """
    ttl = 0
    if header:
        if len(data) < 20:
            return None
        ttl = data[8]
        data = data[(data[0] & 0x0F) * 4 :]
    if len(data) < 8:
        return None
    kind, _, _, got, sequence = struct.unpack("!BBHHH", data[:8])
    if kind != (129 if six else 0) or got != ident:
        return None
    return sequence, ttl, len(data)


@dataclass(slots=True)
class Statistics:
    """What came back."""

    sent: int = 0
    times: list[float] = field(default_factory=list)

    def lines(self, host: str, seconds: float) -> list[str]:
        """The closing lines."""
        lost = 100 * (self.sent - len(self.times)) // self.sent if self.sent else 0
        counts = f"{self.sent} packets transmitted, {len(self.times)} received, {lost}% packet loss"
        out = ["", f"--- {host} ping statistics ---", f"{counts}, time {seconds * 1000:.0f}ms"]
        if self.times:
            mean = sum(self.times) / len(self.times)
            deviation = (sum((t - mean) ** 2 for t in self.times) / len(self.times)) ** 0.5
            values = "/".join(f"{1000 * t:.3f}" for t in (min(self.times), mean, max(self.times), deviation))
            out.append(f"rtt min/avg/max/mdev = {values} ms")
        return out


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="ping", description="the lab's ping", add_help=True)
    parser.add_argument("-c", dest="count", type=int, default=0)
    parser.add_argument("-i", dest="interval", type=float, default=1.0)
    parser.add_argument("-f", dest="flood", action="store_true")
    parser.add_argument("-l", dest="preload", type=int, default=1)
    parser.add_argument("-W", dest="wait", type=float, default=10.0)
    parser.add_argument("-w", dest="deadline", type=float, default=0.0)
    parser.add_argument("-s", dest="size", type=int, default=56)
    parser.add_argument("-I", dest="interface", default="")
    parser.add_argument("-q", dest="quiet", action="store_true")
    parser.add_argument("-n", dest="numeric", action="store_true")
    parser.add_argument("-4", dest="family", action="store_const", const=socket.AF_INET)
    parser.add_argument("-6", dest="family", action="store_const", const=socket.AF_INET6)
    parser.add_argument("host")
    return parser.parse_args()


def _open(family: int) -> tuple[socket.socket, bool]:
    """The socket, and whether it is a raw one (which needs CAP_NET_RAW; a box's root has it)."""
    protocol = socket.IPPROTO_ICMPV6 if family == socket.AF_INET6 else socket.IPPROTO_ICMP
    try:
        return socket.socket(family, socket.SOCK_RAW, protocol), True
    except PermissionError:
        return socket.socket(family, socket.SOCK_DGRAM, protocol), False


class _Ping:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        found = socket.getaddrinfo(options.host, None, options.family or 0, socket.SOCK_RAW)[0]
        self.address = found[4]
        self.six = found[0] == socket.AF_INET6
        self.link, self.raw = _open(found[0])
        if options.interface:
            self.link.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, options.interface.encode())
        self.ident = os.getpid() & 0xFFFF
        self.pending: dict[int, float] = {}
        self.statistics = Statistics()

    def send(self) -> None:
        sequence = (self.statistics.sent + 1) & 0xFFFF
        self.statistics.sent += 1
        self.pending[sequence] = time.monotonic()
        try:
            self.link.sendto(
                echo_request(self.ident, sequence, bytes(i & 0xFF for i in range(self.options.size)), six=self.six),
                self.address,
            )
        except OSError as error:
            print(f"ping: sendmsg: {error.strerror}", file=sys.stderr)

    def flood(self, end: float) -> None:
        """Keep as many requests on their way as ``-l`` says, until the count or ``end``; a lost one is made up for."""
        options = self.options
        while time.monotonic() < end:
            for _ in range(max(1, options.preload - len(self.pending))):
                self.send()
                if self.statistics.sent == options.count:
                    self.receive(min(end, time.monotonic() + options.wait))
                    return
            self.receive(min(end, time.monotonic() + 0.01), first=True)

    def receive(self, until: float, *, first: bool = False) -> None:
        """Take replies until a moment, or until nothing is outstanding any more and nothing is left to send.

        ``first``: no longer than until the first one that counts.
        """
        before = len(self.statistics.times)
        while True:
            left = until - time.monotonic()
            if left <= 0 or (not self.pending and self.statistics.sent == self.options.count):
                return
            if first and len(self.statistics.times) > before:
                return
            if not select.select([self.link], [], [], left)[0]:
                return
            data, sender = self.link.recvfrom(65536)
            # A datagram socket's ident is chosen by the kernel, which also hands over our replies only.
            ident = self.ident if self.raw else int.from_bytes(data[4:6], "big")
            reply = parse_reply(data, ident, six=self.six, header=self.raw and not self.six)
            if reply is None or reply[0] not in self.pending:
                continue
            taken = time.monotonic() - self.pending.pop(reply[0])
            self.statistics.times.append(taken)
            if not self.options.quiet:
                ttl = f" ttl={reply[1]}" if reply[1] else ""
                print(f"{reply[2]} bytes from {sender[0]}: icmp_seq={reply[0]}{ttl} time={taken * 1000:.3f} ms")
                sys.stdout.flush()

    def run(self) -> int:
        options = self.options
        began = time.monotonic()
        end = began + options.deadline if options.deadline else float("inf")
        print(f"PING {options.host} ({self.address[0]}) {options.size}({options.size + 28}) bytes of data.", flush=True)
        try:
            if options.flood:
                self.flood(end)
            while not options.flood and time.monotonic() < end:
                self.send()
                last = bool(options.count) and self.statistics.sent >= options.count
                self.receive(min(end, time.monotonic() + (options.wait if last else options.interval)))
                if last:
                    break
        except KeyboardInterrupt:
            print()
        for line in self.statistics.lines(options.host, time.monotonic() - began):
            print(line)
        return 0 if self.statistics.times else 1


def main() -> int:
    """The program."""
    try:
        ping = _Ping(_arguments())
    except OSError as error:
        print(f"ping: {error.strerror or error}", file=sys.stderr)
        return 2
    return ping.run()
