"""Moves bytes between a TCP connection and a stream of a peer, both ways, until both are done.

Backpressure goes from end to end: a side is read only when what was read before has been taken by the other, so a slow
reader holds one chunk here and one window in the stream, however much there is to come. A half-close travels, a reset
travels. EdgeVPN's end closes both directions as soon as one of them is over (spec/edgevpn.md 8.3, 15.2-42); what that
needs on our side is in :class:`Manners`.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass
from enum import Enum

import trio

from provider_kairos.mesh.streams import MeshStream, StreamEndedError

__all__ = ["Ending", "Manners", "Tally", "abort", "splice"]

CHUNK = 59_988
"""Bytes read at once from TCP: with its header a frame is then one write of the connection, not one and a bit."""

QUIET = 1.0
"""Seconds without a byte from a Go peer after which the end of our client's data is passed on to it."""

LINGER = 30.0
"""Seconds that a connection may take to end whose other end takes nothing any more."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Manners(Enum):
    """What the other end of the stream does."""

    OURS = "it keeps half-closes"
    GO_SERVER = "it closes both ways at our FIN: so the FIN waits until the answer has come"
    GO_CLIENT = "it closes both ways at the first end, and takes nothing afterwards"


class Ending(Enum):
    """How a tunnel ended."""

    DONE = "both ways were closed in order"
    LOCAL_RESET = "the TCP connection broke"
    STREAM_RESET = "the stream was reset, or the peer is gone"


@dataclass(slots=True)
class Tally:
    """Bytes of a tunnel: ``out`` to the peer, ``into`` from it."""

    out: int = 0
    into: int = 0


def abort(local: trio.SocketStream) -> None:
    """Close with a TCP reset, which the other side reads as an error and not as an end."""
    try:
        local.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    except OSError:  # it is closed already
        return
    local.socket.close()


async def splice(
    local: trio.SocketStream,
    stream: MeshStream,
    *,
    manners: Manners = Manners.OURS,
    first: bytes = b"",
    tally: Tally | None = None,
) -> Ending:
    """Run one tunnel; both ends are closed, or reset, when it returns. ``first`` came from the stream already."""
    tunnel = _Tunnel(local, stream, manners, tally or Tally())
    try:
        return await tunnel.run(first)
    except BaseException:
        # cancelled, or a bug: neither end may take this for an orderly end
        abort(local)
        with trio.CancelScope(shield=True):
            await stream.reset()
        raise


class _Tunnel:
    def __init__(self, local: trio.SocketStream, stream: MeshStream, manners: Manners, tally: Tally) -> None:
        self._local = local
        self._stream = stream
        self._manners = manners
        self._tally = tally
        self._heard_at = trio.current_time()
        self._ending = Ending.DONE
        self._out = trio.CancelScope()
        self._in = trio.CancelScope()

    async def run(self, first: bytes) -> Ending:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._outwards)
            await self._inwards(first)
        if self._ending is Ending.DONE:
            await self._stream.close()
            await self._local.aclose()
        else:
            await self._stream.reset()
            abort(self._local)
        return self._ending

    async def _outwards(self) -> None:
        read, write, tally = self._local.receive_some, self._stream.write, self._tally
        with self._out:
            try:
                while data := await read(CHUNK):
                    await write(data)
                    tally.out += len(data)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._end(Ending.LOCAL_RESET)
            except StreamEndedError:
                self._end(Ending.STREAM_RESET)
            else:
                if self._manners is Manners.GO_SERVER:
                    # what moves is the deadline, at every chunk: an event for each would cost more than this
                    while (silent := trio.current_time() - self._heard_at) < QUIET:  # noqa: ASYNC110
                        await trio.sleep(QUIET - silent)
                self._stream.close_write()

    async def _inwards(self, first: bytes) -> None:
        read, write, tally = self._stream.read, self._local.send_all, self._tally
        with self._in:
            try:
                data = first or await read()
                while data:
                    await write(data)
                    self._heard_at = trio.current_time()
                    tally.into += len(data)
                    data = await read()
                await self._local.send_eof()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                self._end(Ending.LOCAL_RESET)
            except StreamEndedError:
                self._end(Ending.STREAM_RESET)
            else:
                if self._manners is not Manners.OURS:
                    self._out.cancel()  # nothing of ours is read any more, and the window would never open again
                    self._stream.close_write()
                    await _drain(self._local)

    def _end(self, ending: Ending) -> None:
        if self._ending is Ending.DONE:
            self._ending = ending
        self._out.cancel()
        self._in.cancel()


async def _drain(local: trio.SocketStream) -> None:
    """Read to the end what nobody takes: closing at once would reset the connection under what it was sent last."""
    try:
        with trio.move_on_after(LINGER):
            while await local.receive_some(CHUNK):
                pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        return
