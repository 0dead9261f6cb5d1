"""Packets between our own nodes over one long-lived libp2p stream: ``/kairos-p2p/packets/1``.

A stream is a sequence of frames, both ways alike::

    0      1..3          4..
    type   length (big)  payload of that length

    type 0   one or more whole IP packets in a row (their own length fields separate them)
    type 1   nothing: a sign of life
    others   passed over, so that a later version may say more

The same frames will carry what the fast data plane cannot send directly. To Go nodes there is no framing at all: one
packet per stream, or per yamux frame (spec/edgevpn.md 8.1), cut by :func:`provider_kairos.vpn.packets.split`.
"""

from __future__ import annotations

from collections.abc import Sequence

from provider_kairos.errors import PeerError
from provider_kairos.vpn.packets import PacketError, split

__all__ = ["KEEPALIVE", "FrameDecoder", "FrameError", "encode"]

_PACKETS, _ALIVE = 0, 1
LARGEST_FRAME = 256 * 1024
_BATCH = 64 * 1024  # payload of one frame that we write
KEEPALIVE = bytes([_ALIVE, 0, 0, 0])


class FrameError(PeerError):
    """The stream does not keep to the framing; it has to be closed."""


def encode(packets: Sequence[bytes]) -> bytes:
    """Frames for some packets, ready for one write; packets are never divided between frames."""
    out = bytearray()
    batch: list[bytes] = []
    size = 0
    for packet in packets:
        if size and size + len(packet) > _BATCH:
            out += _frame(batch, size)
            batch, size = [], 0
        batch.append(packet)
        size += len(packet)
    if batch:
        out += _frame(batch, size)
    return bytes(out)


def _frame(batch: Sequence[bytes], size: int) -> bytes:
    return b"".join((size.to_bytes(4, "big"), *batch))  # type 0 is the length's unused first byte


class FrameDecoder:
    """Bytes in, packets out. Holds at most one unfinished frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self.skipped = 0

    def feed(self, data: bytes) -> list[bytes]:
        """The packets that are complete now.

        Raises:
            FrameError: A frame above 256 KiB, or one that does not hold whole packets.
        """
        self._buffer += data
        packets: list[bytes] = []
        position = 0
        while len(self._buffer) - position >= 4:
            length = int.from_bytes(self._buffer[position + 1 : position + 4], "big")
            if length > LARGEST_FRAME:
                raise FrameError(f"a frame of {length} bytes")
            end = position + 4 + length
            if end > len(self._buffer):
                break
            kind = self._buffer[position]
            if kind == _PACKETS:
                packets += _whole(self._buffer[position + 4 : end])
            elif kind != _ALIVE:
                self.skipped += 1
            position = end
        del self._buffer[:position]
        return packets


def _whole(payload: bytearray) -> list[bytes]:
    try:
        packets, rest = split(payload)
    except PacketError as error:
        raise FrameError(f"a frame with {error.message}") from error
    if rest:
        raise FrameError("a frame that ends inside a packet")
    return packets
