"""Yamux frames: bytes to frames and back (the yamux specification, as go-yamux v5 speaks it).

A frame is a header of 12 bytes, big endian: version (0), type, flags (16 bits), stream ID (32), length (32). Only data
frames have a body; for the others ``length`` is a window increment, a ping value or a go-away code. No IO and no
stream state here: what frames mean is the business of :mod:`provider_kairos.mesh.muxer`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum, IntFlag
from typing import NamedTuple

from provider_kairos.errors import PeerError

__all__ = [
    "HEADER_LENGTH",
    "INITIAL_WINDOW",
    "MAX_BODY",
    "Flag",
    "Frame",
    "FrameParser",
    "GoAway",
    "Kind",
    "YamuxError",
    "encode_header",
]

_HEADER = struct.Struct("!BBHII")
HEADER_LENGTH = _HEADER.size

INITIAL_WINDOW = 256 * 1024
"""Bytes that either side may send on a new stream before the first window update."""

MAX_BODY = 1024 * 1024
"""Longest data frame that we take; no window of ours is larger, so a longer one breaks the protocol anyway."""


class YamuxError(PeerError):
    """The peer broke the protocol; the connection cannot go on."""


class Kind(IntEnum):
    """Frame types."""

    DATA = 0
    WINDOW_UPDATE = 1
    PING = 2
    GO_AWAY = 3


class Flag(IntFlag):
    """Frame flags."""

    NONE = 0
    SYN = 1
    ACK = 2
    FIN = 4
    RST = 8


class GoAway(IntEnum):
    """Why a connection ends."""

    NORMAL = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2


class Frame(NamedTuple):
    """One frame. ``length`` of a data frame equals ``len(body)``; ``flags`` may hold unknown bits.

    A tuple rather than a dataclass: one is made for every packet that comes in.
    """

    kind: int
    flags: int
    stream_id: int
    length: int = 0
    body: bytes = b""

    def encode(self) -> bytes:
        """The frame as bytes."""
        return encode_header(self.kind, self.flags, self.stream_id, self.length) + self.body


def encode_header(kind: int, flags: int, stream_id: int, length: int) -> bytes:
    """The 12 header bytes."""
    return _HEADER.pack(0, kind, flags, stream_id, length)


class FrameParser:
    """Cuts a byte stream into frames, whatever the pieces are that it arrives in.

    Holds at most one unfinished frame (``MAX_BODY`` and a header) besides the piece just given.
    """

    __slots__ = ("_buffer",)

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an unfinished frame."""
        return len(self._buffer)

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Yield every frame that ``data`` completes. Raises YamuxError on what is no yamux.

        Frames in front of the broken one are yielded first. After an error the parser must not be used again.
        """
        buffer = self._buffer
        buffer += data
        position = 0
        end = len(buffer)
        try:
            while end - position >= HEADER_LENGTH:
                version, kind, flags, stream_id, length = _HEADER.unpack_from(buffer, position)
                if version != 0:
                    raise YamuxError(f"yamux version {version}")
                if kind == Kind.DATA:
                    if length > MAX_BODY:
                        raise YamuxError(f"data frame of {length} bytes")
                    stop = position + HEADER_LENGTH + length
                    if stop > end:
                        return
                    body = bytes(buffer[position + HEADER_LENGTH : stop])
                    position = stop
                    yield Frame(kind, flags, stream_id, length, body)
                elif kind > Kind.GO_AWAY:
                    raise YamuxError(f"frame of unknown type {kind}")
                else:
                    position += HEADER_LENGTH
                    yield Frame(kind, flags, stream_id, length)
        finally:
            if position:
                del buffer[:position]
