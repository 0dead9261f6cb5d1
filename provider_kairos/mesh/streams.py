"""Streams as the rest of the program sees them, and the guard around their handlers.

A handler may raise what it likes: it is logged once per protocol and minute, its stream is reset, nothing else
happens. How a stream works is :mod:`provider_kairos.mesh.muxer_stream`'s business.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

import trio

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.muxer_stream import PacketHandler, Stream, StreamEndedError

__all__ = ["MeshStream", "PacketHandler", "StreamEndedError", "StreamHandler", "guarded_packet_handler", "run_handler"]

log = logging.getLogger(__name__)


class MeshStream:
    """A two-way byte stream to a peer. Writes may be cancelled at any time; no time-out is needed around them."""

    __slots__ = ("_stream",)

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._stream.peer

    @property
    def protocol(self) -> str:
        """The agreed protocol."""
        return self._stream.protocol

    async def read(self, limit: int = 65536) -> bytes:
        """At most ``limit`` bytes, never of two frames; empty at the end. Raises StreamEndedError after a reset."""
        return await self._stream.read(limit)

    async def feed(self, take: Callable[[bytes], None]) -> None:
        """Call ``take`` with what arrives, at once and inside the reader, until the end; raises what ``take`` raises."""
        await self._stream.feed(take)

    async def write(self, data: bytes) -> None:
        """Send everything. Raises StreamEndedError."""
        await self._stream.write(data)

    async def write_packet(self, packet: bytes) -> None:
        """Send one packet of at most 65 524 bytes in one frame, never split. Raises StreamEndedError."""
        await self._stream.write_packet(packet)

    def try_write_packet(self, packet: bytes) -> bool:
        """The same without waiting: False when the packet had to be dropped."""
        return self._stream.try_write_packet(packet)

    def try_write_packets(self, packets: Sequence[bytes]) -> int:
        """The same for several, which go out together; returns how many were taken, in order."""
        return self._stream.try_write_packets(packets)

    def close_write(self) -> None:
        """Half-close: the peer reads the end; reading goes on here."""
        self._stream.close_write()

    async def close(self) -> None:
        """Close both directions in an orderly way."""
        await self._stream.close()

    async def reset(self) -> None:
        """End both directions at once."""
        self._stream.reset()
        await trio.lowlevel.checkpoint()


StreamHandler = Callable[[PeerId, MeshStream], Awaitable[None]]


async def run_handler(stream: Stream, handler: Callable[[Stream], Awaitable[None]], complaints: Complaints) -> None:
    """Run a handler on its stream; whatever it does, the stream is over afterwards and nothing is raised."""
    try:
        await handler(stream)
    except StreamEndedError:
        stream.reset()
    except PeerError as error:
        complaints.complain(stream.peer, "malformed", f"{stream.protocol}: {error}")
        stream.reset()
    except Exception:  # a handler's bug must not end the mesh
        complaints.counters["handler_crashed"] += 1
        if complaints.due(stream.peer, f"crash {stream.protocol}"):
            log.exception("handler of %s failed", stream.protocol)
        stream.reset()
    except BaseException:
        stream.reset()
        raise
    else:
        stream.close_write()
        stream.close_read()


def guarded_packet_handler(protocol: str, handler: PacketHandler, complaints: Complaints) -> PacketHandler:
    """A packet handler that may raise."""

    def guarded(peer: PeerId, packet: bytes, /) -> None:
        try:
            handler(peer, packet)
        except Exception:  # it runs inside the connection's reader
            complaints.counters["packet_handler_crashed"] += 1
            if complaints.due(peer, f"crash {protocol}"):
                log.exception("packet handler of %s failed", protocol)

    return guarded
