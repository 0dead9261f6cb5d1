"""Agreeing on a protocol: multistream-select 1.0, both sides (libp2p specs/connections).

Lines are text that ends in a newline, with an unsigned varint length in front. :class:`Responder` is sans-IO, so that
the muxer can answer inside its reader (one stream per packet must cost next to nothing); :func:`select` is the
initiator for anything that can be read and written. Who serves what is the caller's business.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from provider_kairos.errors import PeerError

__all__ = ["HEADER", "MAX_LINE", "NegotiationError", "Responder", "encode_line", "read_line", "respond", "select"]

MAX_LINE = 1024
"""Longest line in bytes; protocol IDs are far shorter."""

MAX_PROPOSALS = 64
"""Protocols that one stream may propose before we give up on it."""


class NegotiationError(PeerError):
    """No common protocol, or not multistream at all."""


def encode_line(text: str) -> bytes:
    """One line with its length in front."""
    body = text.encode() + b"\n"
    size = len(body)
    if size < 0x80:
        return bytes((size,)) + body
    return bytes((size & 0x7F | 0x80, size >> 7)) + body


HEADER = encode_line("/multistream/1.0.0")
_NOT_AVAILABLE = encode_line("na")


def _cut_line(buffer: bytearray) -> str | None:
    """Take the first whole line off ``buffer``; None when more bytes are needed."""
    if not buffer:
        return None
    size, start = buffer[0], 1
    if size >= 0x80:
        if len(buffer) < 2:
            return None
        size, start = size & 0x7F | buffer[1] << 7, 2
    if size > MAX_LINE or (start == 2 and buffer[1] >= 0x80):
        raise NegotiationError("line is too long")
    if size == 0:
        raise NegotiationError("empty line")
    if len(buffer) < start + size:
        return None
    line = bytes(buffer[start : start + size])
    del buffer[: start + size]
    if not line.endswith(b"\n"):
        raise NegotiationError("line without an end")
    try:
        return line[:-1].decode()
    except UnicodeDecodeError:
        raise NegotiationError("line is not text") from None


class Responder:
    """The answering side. Feed bytes; send :meth:`take_reply`; read :attr:`chosen` and :attr:`rest` when done."""

    __slots__ = ("_buffer", "_greeted", "_proposals", "_reply", "_serves", "chosen")

    def __init__(self, serves: Callable[[str], bool]) -> None:
        self._serves = serves
        self._buffer = bytearray()
        self._reply = bytearray()
        self._greeted = False
        self._proposals = 0
        self.chosen: str | None = None

    @property
    def fresh(self) -> bool:
        """Nothing was fed yet."""
        return not self._greeted and not self._buffer

    @property
    def rest(self) -> bytes:
        """What came after the agreed proposal: the protocol's own first bytes."""
        return bytes(self._buffer)

    def feed(self, data: bytes) -> bool:
        """True when a protocol is agreed on. Raises NegotiationError."""
        self._buffer += data
        while self.chosen is None:
            line = _cut_line(self._buffer)
            if line is None:
                return False
            if not self._greeted:
                if line != "/multistream/1.0.0":
                    raise NegotiationError("not multistream")
                self._greeted = True
                self._reply += HEADER
                continue
            self._proposals += 1
            if self._proposals > MAX_PROPOSALS:
                raise NegotiationError("too many proposals")
            if self._serves(line):
                self.chosen = line
                self._reply += encode_line(line)
            else:
                self._reply += _NOT_AVAILABLE
        return True

    def take_reply(self) -> bytes:
        """Bytes to send now; empty when there are none."""
        reply = bytes(self._reply)
        self._reply.clear()
        return reply


Read = Callable[[int], Awaitable[bytes]]
Write = Callable[[bytes], Awaitable[None]]


async def read_line(read: Read) -> str:
    """Read one line through ``read(n)``, which returns at most ``n`` bytes and nothing at the end."""

    async def exactly(count: int) -> bytes:
        got = b""
        while len(got) < count:
            piece = await read(count - len(got))
            if not piece:
                raise NegotiationError("ended while agreeing on a protocol")
            got += piece
        return got

    buffer = bytearray(await exactly(1))
    size = buffer[0]
    if size >= 0x80:
        buffer += await exactly(1)
        size = size & 0x7F | buffer[1] << 7
    if size > MAX_LINE:
        raise NegotiationError("line is too long")
    buffer += await exactly(size)
    line = _cut_line(buffer)
    if line is None:  # a third length byte
        raise NegotiationError("line is too long")
    return line


async def select(protocols: Sequence[str], read: Read, write: Write) -> str:
    """Propose ``protocols`` in order and return the one that the peer serves. Raises NegotiationError."""
    await write(HEADER + encode_line(protocols[0]))
    if await read_line(read) != "/multistream/1.0.0":
        raise NegotiationError("not multistream")
    for index, protocol in enumerate(protocols):
        if index:
            await write(encode_line(protocol))
        answer = await read_line(read)
        if answer == protocol:
            return protocol
        if answer != "na":
            raise NegotiationError("an answer that is neither the protocol nor na")
    raise NegotiationError(f"peer serves none of {', '.join(protocols)}")


async def respond(serves: Callable[[str], bool], read: Read, write: Write) -> str:
    """Answer on a plain byte stream, reading not one byte past the agreement. Raises NegotiationError."""
    responder = Responder(serves)
    while True:
        done = responder.feed(encode_line(await read_line(read)))
        if reply := responder.take_reply():
            await write(reply)
        if done:
            assert responder.chosen is not None
            return responder.chosen
