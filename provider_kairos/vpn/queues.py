"""A bounded queue of packets for one peer.

While a path is being opened or is slow, packets wait here; nobody waits for the queue (TUN reads go on for the other
peers). When it is full the oldest packets go: their senders are the first to have given up on them, and dropping at the
head tells TCP sooner than dropping at the tail. Packets that waited too long are dropped when they are taken.
"""

from __future__ import annotations

from collections import deque

__all__ = ["PacketQueue"]


class PacketQueue:
    """Packets with their time of arrival. Times are ``Now.mono`` seconds, sizes bytes.

    Attributes:
        dropped_full: Packets that had to make room.
        dropped_old: Packets that waited longer than ``longest_wait``.
    """

    def __init__(self, most_packets: int = 512, most_bytes: int = 1024 * 1024, longest_wait: float = 3.0) -> None:
        self.dropped_full = 0
        self.dropped_old = 0
        self._most_packets = most_packets
        self._most_bytes = most_bytes
        self._longest_wait = longest_wait
        self._packets: deque[tuple[float, bytes]] = deque()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._packets)

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._bytes

    def put(self, packet: bytes, mono: float) -> bool:
        """Append a packet, at the expense of older ones if need be; False when it is larger than the queue itself."""
        if len(packet) > self._most_bytes:
            self.dropped_full += 1
            return False
        while len(self._packets) >= self._most_packets or self._bytes + len(packet) > self._most_bytes:
            self._pop()
            self.dropped_full += 1
        self._packets.append((mono, packet))
        self._bytes += len(packet)
        return True

    def take(self, mono: float, most_packets: int = 64, most_bytes: int = 64 * 1024) -> list[bytes]:
        """The next packets, at least one if there is one, in order; those that are too old are dropped."""
        taken: list[bytes] = []
        size = 0
        while self._packets and len(taken) < most_packets:
            at, packet = self._packets[0]
            if mono - at > self._longest_wait:
                self._pop()
                self.dropped_old += 1
                continue
            if taken and size + len(packet) > most_bytes:
                break
            self._pop()
            taken.append(packet)
            size += len(packet)
        return taken

    def put_back(self, packets: list[bytes], mono: float) -> None:
        """Return packets that could not be sent, to the front; they do not push others out."""
        for packet in reversed(packets):
            if len(self._packets) >= self._most_packets or self._bytes + len(packet) > self._most_bytes:
                self.dropped_full += 1
                continue
            self._packets.appendleft((mono, packet))
            self._bytes += len(packet)

    def clear(self) -> int:
        """Drop everything (the peer is gone); how many packets that were."""
        count = len(self._packets)
        self._packets.clear()
        self._bytes = 0
        return count

    def _pop(self) -> None:
        _, packet = self._packets.popleft()
        self._bytes -= len(packet)
