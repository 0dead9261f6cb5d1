"""One yamux stream: windows, half-closes and resets (the yamux specification; spec/edgevpn.md 8.1 on boundaries).

A read returns data of one frame only, so packet boundaries survive; a packet write fills exactly one frame. Frames
reach a stream from its connection (:mod:`provider_kairos.mesh.muxer`), which also owns the socket: a write puts whole
frames into the connection's queue and may be cancelled at any point without harm. Nobody needs a time-out here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import trio

from provider_kairos.errors import LocalError, PeerError
from provider_kairos.mesh.multistream import Responder
from provider_kairos.mesh.yamux_frames import INITIAL_WINDOW, MAX_BODY, Flag, Kind, YamuxError, encode_header

# as plain numbers: see muxer
_SYN, _ACK, _FIN, _RST = int(Flag.SYN), int(Flag.ACK), int(Flag.FIN), int(Flag.RST)
_DATA, _WINDOW_UPDATE = int(Kind.DATA), int(Kind.WINDOW_UPDATE)

if TYPE_CHECKING:
    from provider_kairos.ids import PeerId
    from provider_kairos.mesh.muxer import Muxer

__all__ = ["MAX_FRAME", "PacketHandler", "Stream", "StreamEndedError"]

MAX_FRAME = 64 * 1024 - 12
"""Longest body that we send: a frame with its header still fits in 64 KiB."""

MAX_WINDOW = 4 * MAX_BODY
"""Largest receive window that a busy stream grows to: 84 MB/s at a round trip of 50 ms."""

MAX_SEND_WINDOW = 2**32 - 1


class StreamEndedError(PeerError):
    """The stream was reset, or its connection ended: nothing more can be read or written."""


class PacketHandler(Protocol):
    """Takes one packet inside the connection's reader; must not block and must not raise."""

    def __call__(self, peer: PeerId, packet: bytes, /) -> None:
        """Handle ``packet`` of ``peer``."""


class Stream:
    """A two-way stream. Made by :class:`~provider_kairos.mesh.muxer.Muxer`, never directly."""

    __slots__ = (
        "_closed_here",
        "_consumed",
        "_failure",
        "_first_flag",
        "_grew_at",
        "_muxer",
        "_queue",
        "_readable",
        "_receive_window",
        "_send_window",
        "_taker",
        "_window_size",
        "_writable",
        "born",
        "buffered",
        "bytes_in",
        "bytes_out",
        "ended",
        "fin_received",
        "fin_sent",
        "grown",
        "handler",
        "negotiating",
        "outbound",
        "protocol",
        "stream_id",
    )

    def __init__(self, muxer: Muxer, stream_id: int, *, outbound: bool) -> None:
        self._muxer = muxer
        self.stream_id = stream_id
        self.outbound = outbound
        self.born = trio.current_time()
        self.protocol = ""
        self.handler: PacketHandler | None = None
        self.negotiating: Responder | None = None
        self.fin_received = False
        self.fin_sent = False
        self.ended = False
        self.buffered = 0
        self.grown = 0
        self.bytes_in = 0
        self.bytes_out = 0
        self._closed_here = False
        self._taker: Callable[[bytes], None] | None = None
        self._failure: Exception | None = None
        self._queue: deque[bytes] = deque()
        self._readable: trio.Event | None = None
        self._writable: trio.Event | None = None
        self._send_window = INITIAL_WINDOW
        self._receive_window = INITIAL_WINDOW
        self._window_size = INITIAL_WINDOW
        self._consumed = 0
        self._grew_at = self.born
        self._first_flag = _SYN if outbound else _ACK

    @property
    def peer(self) -> PeerId:
        """Who is at the other end."""
        return self._muxer.peer

    @property
    def abandoned(self) -> bool:
        """Only the peer keeps the stream open; nobody here reads or writes it."""
        return self._closed_here and self.fin_sent and not self.fin_received

    # --- the owner's side -------------------------------------------------------------------------------------------

    async def read(self, limit: int = MAX_BODY) -> bytes:
        """At most ``limit`` bytes, never of two frames; empty at the end of what the peer sends.

        Raises StreamEndedError after a reset and when the connection is gone, once what came before it is read.
        """
        while not self._queue:
            if self.ended:
                raise StreamEndedError(f"stream {self.protocol} was reset")
            if self.fin_received or self._closed_here:
                await trio.lowlevel.checkpoint()
                return b""
            if self._readable is None:
                self._readable = trio.Event()
            await self._readable.wait()
        data = self._queue.popleft()
        if len(data) > limit:
            self._queue.appendleft(data[limit:])
            data = data[:limit]
        if not self.ended:
            self.buffered -= len(data)
            self._muxer.buffered -= len(data)
            self._credit(len(data))
        return data

    async def feed(self, take: Callable[[bytes], None]) -> None:
        """Hand what arrives to ``take``, frame by frame and without a wake-up of this task, until the peer's end.

        ``take`` runs inside the connection's reader and must not wait. What it raises ends the feeding and is raised
        here. Raises StreamEndedError after a reset.
        """
        while self._queue:
            take(await self.read())
        self._taker = take
        try:
            while not (self._failure or self.ended or self.fin_received):
                if self._readable is None:
                    self._readable = trio.Event()
                await self._readable.wait()
        finally:
            self._taker = None
        if self._failure is not None:
            raise self._failure
        if self.ended:
            raise StreamEndedError(f"stream {self.protocol} was reset")

    async def write(self, data: bytes) -> None:
        """Send everything. Raises StreamEndedError. Cancelling may leave a part unsent, never a broken connection."""
        view = memoryview(data)
        while view:
            room = await self._wait_for_room(1)
            size = min(len(view), room, MAX_FRAME)
            self._put_data(bytes(view[:size]))
            view = view[size:]

    async def write_packet(self, packet: bytes) -> None:
        """Send one packet in one frame, waiting for window instead of splitting it. Raises StreamEndedError."""
        if not 0 < len(packet) <= MAX_FRAME:
            raise LocalError(f"a packet of {len(packet)} bytes does not fit a frame")
        await self._wait_for_room(len(packet))
        self._put_data(packet)

    def try_write_packet(self, packet: bytes) -> bool:
        """Like :meth:`write_packet`, but drops the packet and returns False where that would wait or has ended."""
        if self.ended or self.fin_sent or len(packet) > min(self._send_window, MAX_FRAME) or self._muxer.congested:
            return False
        self._put_data(packet)
        return True

    def try_write_packets(self, packets: Sequence[bytes]) -> int:
        """:meth:`try_write_packet` for several, which go out together; returns how many were taken, in order."""
        taken = 0
        with self._muxer.corked():
            while taken < len(packets) and self.try_write_packet(packets[taken]):
                taken += 1
        return taken

    async def close(self) -> None:
        """Nothing more is written or read here; what the peer still sends is thrown away."""
        self.close_write()
        self.close_read()
        await trio.lowlevel.checkpoint()

    def close_write(self) -> None:
        """Half-close: the peer reads the end, we may still read."""
        if self.fin_sent or self.ended:
            return
        self.fin_sent = True
        self._wake_writers()
        self._muxer.put(encode_header(_WINDOW_UPDATE, self._take_flag() | _FIN, self.stream_id, 0))
        self._forget_if_done()

    def close_read(self) -> None:
        """Throw away what arrives from now on."""
        self._closed_here = True
        self._drop_queue()
        self._wake_readers()

    def reset(self) -> None:
        """End both directions at once; never blocks."""
        if self.ended:
            return
        self._muxer.put(encode_header(_WINDOW_UPDATE, self._take_flag() | _RST, self.stream_id, 0))
        self._drop_queue()
        self.on_end()

    # --- the connection's side --------------------------------------------------------------------------------------

    def open(self) -> None:
        """Tell the peer of a stream that sends nothing yet."""
        self._muxer.put(encode_header(_WINDOW_UPDATE, self._take_flag(), self.stream_id, 0))

    def on_data(self, body: bytes) -> None:
        """Take a data frame. Raises YamuxError when the peer ignored our window."""
        size = len(body)
        if size > self._receive_window:
            raise YamuxError(f"stream {self.stream_id}: {size} bytes into a window of {self._receive_window}")
        self._receive_window -= size
        self.bytes_in += size
        if self.handler is not None:
            self.handler(self._muxer.peer, body)
            self._credit(size)
        elif self._taker is not None:
            try:
                self._taker(body)
            except Exception as error:  # noqa: BLE001 - it is the stream's owner's, and raised there
                self._failure, self._taker = error, None
                self._wake_readers()
            self._credit(size)
        elif self._closed_here or self.fin_received or self._failure:
            self._credit(size)
        else:
            self._queue.append(body)
            self.buffered += size
            self._muxer.buffered += size
            self._wake_readers()

    def on_window(self, increment: int) -> None:
        """Take a window update. Raises YamuxError when the sum is absurd."""
        self._send_window += increment
        if self._send_window > MAX_SEND_WINDOW:
            raise YamuxError(f"stream {self.stream_id}: send window of {self._send_window}")
        self._wake_writers()

    def on_fin(self) -> None:
        """The peer writes no more."""
        self.fin_received = True
        self._wake_readers()
        if self.handler is not None:
            self.close_write()
        self._forget_if_done()

    def on_end(self) -> None:
        """The stream is reset or its connection gone."""
        if self.ended:
            return
        self.ended = self.fin_received = self.fin_sent = True
        self._muxer.buffered -= self.buffered
        self.buffered = 0
        self._wake_readers()
        self._wake_writers()
        self._muxer.forget(self)

    def take_over(self, data: bytes) -> None:
        """Put bytes that were read while agreeing on a protocol in front of what comes."""
        if data:
            self._queue.append(data)
            self.buffered += len(data)
            self._muxer.buffered += len(data)
            self._wake_readers()

    def credit_negotiation(self, size: int) -> None:
        """Account for bytes that the connection consumed itself."""
        if size > self._receive_window:
            raise YamuxError(f"stream {self.stream_id}: window ignored")
        self._receive_window -= size
        self._credit(size)

    def put_now(self, data: bytes) -> None:
        """Send a short answer at once, from inside the reader."""
        if len(data) > self._send_window:
            raise YamuxError(f"stream {self.stream_id}: no window for an answer of {len(data)} bytes")
        self._put_data(data)

    # --- inside -----------------------------------------------------------------------------------------------------

    async def _wait_for_room(self, needed: int) -> int:
        """Wait until ``needed`` bytes may be sent and the connection is not congested; returns the window."""
        while True:
            if self.ended:
                raise StreamEndedError(f"stream {self.protocol} was reset")
            if self.fin_sent:
                raise StreamEndedError(f"stream {self.protocol} is closed for writing")
            if self._send_window < needed:
                if self._writable is None:
                    self._writable = trio.Event()
                await self._writable.wait()
            elif self._muxer.congested:
                await self._muxer.drained()
            else:
                return self._send_window

    def _put_data(self, data: bytes) -> None:
        self._send_window -= len(data)
        self.bytes_out += len(data)
        self._muxer.put(encode_header(_DATA, self._take_flag(), self.stream_id, len(data)) + data)

    def _credit(self, size: int) -> None:
        """Give the peer new window once half of it is consumed; a stream that fills it quickly gets a larger one."""
        self._consumed += size
        if self._consumed < self._window_size // 2 or self.fin_received or self.ended:
            return
        now = trio.current_time()
        extra = 0
        quick = self._window_size < MAX_WINDOW and now - self._grew_at < 4 * self._muxer.rtt
        if quick and self._muxer.may_grow(self._window_size):
            extra = self._window_size
            self._window_size *= 2
            self.grown += extra
        self._grew_at = now
        increment = self._consumed + extra
        self._consumed = 0
        self._receive_window += increment
        self._muxer.put(encode_header(_WINDOW_UPDATE, self._take_flag(), self.stream_id, increment))

    def _take_flag(self) -> int:
        flag = self._first_flag
        self._first_flag = 0
        return flag

    def _drop_queue(self) -> None:
        self._muxer.buffered -= self.buffered
        self.buffered = 0
        self._queue.clear()

    def _wake_readers(self) -> None:
        if self._readable is not None:
            self._readable.set()
            self._readable = None

    def _wake_writers(self) -> None:
        if self._writable is not None:
            self._writable.set()
            self._writable = None

    def _forget_if_done(self) -> None:
        if self.fin_received and self.fin_sent:
            self._muxer.forget(self)
