"""Length-prefixed messages on streams: an unsigned varint, then that many bytes (spec/edgevpn.md 4.3).

Used for gossip RPCs and identify. No meaning here, only bounds: a length is checked before anything is stored.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from provider_kairos.errors import PeerError

__all__ = ["DelimitedReader", "OversizedError", "Read", "encode_delimited", "encode_varint", "read_delimited"]

Read = Callable[[], Awaitable[bytes]]
"""Returns some bytes, none at the end."""

MAX_VARINT = 5
"""Bytes; 35 bits are more than any message here."""


class OversizedError(PeerError):
    """A message is longer than agreed."""


def encode_varint(value: int) -> bytes:
    """Unsigned LEB128."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_delimited(message: bytes) -> bytes:
    """A message with its length in front."""
    return encode_varint(len(message)) + message


class DelimitedReader:
    """Cuts messages off a stream of pieces. Holds at most one message and one piece."""

    __slots__ = ("_buffer", "_limit", "_read")

    def __init__(self, read: Read, limit: int) -> None:
        self._read = read
        self._limit = limit
        self._buffer = bytearray()

    async def next(self) -> bytes | None:
        """The next message; None at a clean end. Raises OversizedError, and PeerError on a truncated message."""
        while (size := self._cut_length()) is None:
            if not await self._fill():
                if self._buffer:
                    raise PeerError("stream ended inside a length")
                return None
        if size > self._limit:
            raise OversizedError(f"message of {size} bytes is over the limit of {self._limit}")
        while len(self._buffer) < size:
            if not await self._fill():
                raise PeerError("stream ended inside a message")
        message = bytes(memoryview(self._buffer)[:size])
        del self._buffer[:size]
        return message

    def _cut_length(self) -> int | None:
        """Take the length off the buffer; None when it is not complete."""
        size = 0
        for index, byte in enumerate(self._buffer[:MAX_VARINT]):
            size |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                del self._buffer[: index + 1]
                return size
        if len(self._buffer) >= MAX_VARINT:
            raise OversizedError("length of a message is no varint of at most 35 bits")
        return None

    async def _fill(self) -> bool:
        data = await self._read()
        self._buffer += data
        return bool(data)


async def read_delimited(read: Read, limit: int) -> bytes:
    """One message. Raises PeerError, also at a clean end."""
    message = await DelimitedReader(read, limit).next()
    if message is None:
        raise PeerError("stream ended before a message")
    return message
