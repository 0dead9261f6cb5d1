"""Yamux connection: many streams over one secure channel (the yamux specification, as go-yamux v5 speaks it).

One reader parses many frames per received piece, one writer joins queued frames into few writes and alone touches the
channel, so that cancelling somebody's write never cuts a frame. Windows wake their waiters by event. The reader
answers multistream-select itself: a protocol with a packet handler is served without a task (one stream per packet,
spec/edgevpn.md 8.1), any other stream goes to ``on_stream`` agreed and ready.

Everything that a peer may make us hold is bounded: streams, unread bytes per stream and connection, unagreed streams,
the answers that wait to be written. A silent link is found by pings within ``PING_AFTER + PING_TIMEOUT`` seconds.
Who the peer is, and what protocols mean, is decided above.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Protocol

import trio

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.multistream import HEADER, NegotiationError, Responder, encode_line
from provider_kairos.mesh.muxer_stream import PacketHandler, Stream, StreamEndedError
from provider_kairos.mesh.yamux_frames import Flag, FrameParser, GoAway, Kind, YamuxError, encode_header

__all__ = ["PROTOCOL", "ByteChannel", "Muxer"]

log = logging.getLogger(__name__)

PROTOCOL = "/yamux/1.0.0"

# As plain numbers: operators of flag types make an object at every use, and every frame meets a dozen.
_SYN, _ACK, _FIN, _RST = int(Flag.SYN), int(Flag.ACK), int(Flag.FIN), int(Flag.RST)
_WINDOW_UPDATE, _PING, _GO_AWAY = int(Kind.WINDOW_UPDATE), int(Kind.PING), int(Kind.GO_AWAY)

MAX_STREAMS = 1024
"""Streams that a peer may have open at once; more are reset."""

MAX_BUFFERED = 32 * 1024 * 1024
"""Unread bytes of all streams together; the stream that would go over is reset."""

MAX_GROWN = 16 * 1024 * 1024
"""Window that busy streams are given beyond their first, all together: what they may leave unread when they stop."""

HIGH_WATER = 256 * 1024
"""Queued bytes above which writers wait."""

MAX_QUEUED = 4 * 1024 * 1024
"""Queued bytes at which the connection is given up: the peer makes us answer but does not read."""

COALESCE = 60_000
"""Bytes per write to the channel; one noise message takes 65 519."""

PING_AFTER = 5.0
"""Seconds without any byte from the peer after which it is asked for one."""

PING_TIMEOUT = 10.0
"""Seconds without any byte after a ping until the link counts as dead."""

PROBE_TIMEOUT = 3.0
"""The same when there is reason to doubt the link."""

CLOSE_TIMEOUT = 3.0
"""Seconds for what is queued, and a goodbye, to be written before a connection ends."""

SWEEP = 30.0
"""Age in seconds at which a stream is reset that agreed on no protocol, or that only we have closed."""


@cache
def _opening(protocol: str) -> bytes:
    """What a peer begins a stream with, and the answer to it, when it is sure of the protocol."""
    return HEADER + encode_line(protocol)


class ByteChannel(Protocol):
    """What a connection runs on: an encrypted, ordered byte stream."""

    async def receive(self) -> bytes:
        """Some bytes; none at the end."""

    async def send(self, data: bytes) -> None:
        """Send everything, and what :meth:`send_nowait` left."""

    @property
    def idle(self) -> bool:
        """Nobody is sending and nothing is left: :meth:`send_nowait` may be called."""

    def send_nowait(self, data: bytes) -> bool:
        """Send without waiting; False when something is left for :meth:`send`."""

    async def aclose(self) -> None:
        """Close the socket."""


class Muxer:
    """One connection. Start :meth:`run` in a nursery of the owner; it returns when the connection is over."""

    def __init__(
        self,
        channel: ByteChannel,
        peer: PeerId,
        *,
        initiator: bool,
        serves: Callable[[str], bool],
        on_stream: Callable[[Stream], None],
        packet_handlers: Mapping[str, PacketHandler],
        on_forget: Callable[[Stream], None] = lambda _stream: None,
    ) -> None:
        self.peer = peer
        self.initiator = initiator
        self.buffered = 0
        self.grown = 0
        self.rtt = 0.0
        self.ended = trio.Event()
        self.error = ""
        self.streams: dict[int, Stream] = {}
        self._channel = channel
        self._serves = serves
        self._on_stream = on_stream
        self._packet_handlers = packet_handlers
        self._on_forget = on_forget
        self._next_id = 1 if initiator else 2
        self._going_away = False
        self._closing: int | None = None
        self._out: list[bytes] = []
        self._unflushed = False
        self._corked = False
        self._queued = 0
        self._out_ready = trio.Event()
        self._drained = trio.Event()
        self._scope = trio.CancelScope()
        self._heard_at = trio.current_time()
        self._pings = 0
        self._ping_sent = float("-inf")
        self._ping_deadline = float("inf")
        self._look = trio.Event()
        self._inbound = 0

    # --- for owners and streams -------------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """New streams may be opened."""
        return not self.ended.is_set() and not self._going_away and self._closing is None

    @property
    def congested(self) -> bool:
        """Writers wait until the queue is shorter."""
        return self._queued >= HIGH_WATER

    @property
    def idle(self) -> bool:
        """No stream is open."""
        return not self.streams

    def open_stream(self) -> Stream:
        """A new outbound stream; the peer learns of it with the first write. Raises StreamEndedError."""
        if not self.alive:
            raise StreamEndedError(f"connection to {self.peer} is gone")
        stream = Stream(self, self._next_id, outbound=True)
        self._next_id += 2
        self.streams[stream.stream_id] = stream
        return stream

    def put(self, data: bytes) -> None:
        """Queue whole frames."""
        if self.ended.is_set():
            return
        self._out.append(data)
        self._queued += len(data)
        if not self._corked:  # else it is flushed at the end
            self._out_ready.set()
        if self._queued > MAX_QUEUED:
            self._stop("peer does not read what it makes us answer")

    @contextmanager
    def corked(self) -> Iterator[None]:
        """What is queued meanwhile goes out together, at once where the socket takes it."""
        outermost = not self._corked
        self._corked = True
        try:
            yield
        finally:
            if outermost:
                self._corked = False
                self.flush()

    def flush(self) -> None:
        """Send at once what is queued, if the socket takes it; it saves a packet the way through the writer's task."""
        if not self._out or self.ended.is_set():
            return
        if self._queued > COALESCE or self._closing is not None or not self._channel.idle:
            self._out_ready.set()
            return
        data = b"".join(self._out)
        self._taken()
        try:
            if not self._channel.send_nowait(data):
                self._unflushed = True
                self._out_ready.set()
        except PeerError as error:
            self._stop(str(error))

    def _taken(self) -> None:
        """What was queued is on its way."""
        self._out = []
        if self._queued >= HIGH_WATER:
            self._drained.set()
            self._drained = trio.Event()
        self._queued = 0

    async def drained(self) -> None:
        """Wait until the queue is short again, or the connection over."""
        if self.congested and not self.ended.is_set():
            await self._drained.wait()
        else:
            await trio.lowlevel.checkpoint()

    def may_grow(self, extra: int) -> bool:
        """Whether a stream may be given so much more window; counted when it is."""
        if self.grown + extra > MAX_GROWN or self.buffered >= MAX_BUFFERED // 4 or len(self.streams) >= 64:
            return False
        self.grown += extra
        return True

    def forget(self, stream: Stream) -> None:
        """The stream is over."""
        if self.streams.pop(stream.stream_id, None) is not None:
            self.grown -= stream.grown
            self._on_forget(stream)
            self._inbound -= not stream.outbound

    def close(self, code: int = GoAway.NORMAL) -> None:
        """Say goodbye and end; :meth:`run` returns shortly after, also when the peer does not read."""
        if self._closing is None and not self.ended.is_set():
            self._closing = int(code)
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + CLOSE_TIMEOUT)
            self.put(encode_header(Kind.GO_AWAY, 0, 0, int(code)))

    async def run(self) -> None:
        """Serve the connection until it ends; the reason is in :attr:`error`. Only cancellation is raised."""
        try:
            async with trio.open_nursery() as nursery:
                self._scope = nursery.cancel_scope
                nursery.start_soon(self._read)
                nursery.start_soon(self._write)
                nursery.start_soon(self._watch)
        finally:
            self._end()
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self._channel.aclose()

    # --- tasks ------------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        parser = FrameParser()
        try:
            while data := await self._channel.receive():
                self._heard_at = trio.current_time()
                with self.corked():
                    for frame in parser.feed(data):
                        self._on_frame(*frame)
            self._stop("closed by the peer")
        except YamuxError as error:
            self.close(GoAway.PROTOCOL_ERROR)
            self._stop(str(error), grace=1.0)
            await trio.sleep(1.0)  # the writer sends the goodbye meanwhile
        except PeerError as error:
            self._stop(str(error))

    async def _write(self) -> None:
        try:
            while True:
                await self._out_ready.wait()
                while self._out or self._unflushed:
                    self._unflushed = False
                    data = b"".join(self._out)
                    self._taken()
                    for start in range(0, len(data) or 1, COALESCE):
                        await self._channel.send(data[start : start + COALESCE])
                if self._closing is not None:
                    self._stop(self.error or "closed by us")
                    return
                self._out_ready = trio.Event()
        except PeerError as error:
            self._stop(str(error))

    async def _watch(self) -> None:
        """Ping a silent peer, give up a dead one, reset streams that lead nowhere."""
        swept_at = trio.current_time()
        while True:
            now = trio.current_time()
            if self.suspect and now >= self._ping_deadline:
                self._stop("link is dead: no answer to a ping")
                return
            if now - self._heard_at >= PING_AFTER and not self.suspect:
                self.ping()
            if now - swept_at >= SWEEP:
                swept_at = now
                self._sweep(now)
            next_look = self._ping_deadline if self.suspect else self._heard_at + PING_AFTER
            self._look = trio.Event()
            with trio.move_on_after(min(max(next_look - now, 0.05), SWEEP)):
                await self._look.wait()

    @property
    def suspect(self) -> bool:
        """A ping is on its way and nothing was heard since."""
        return self._heard_at < self._ping_sent

    def ping(self, timeout: float = PING_TIMEOUT) -> None:
        """Ask for a sign of life; the answer sets :attr:`rtt`, silence for ``timeout`` seconds ends the connection."""
        now = trio.current_time()
        if self.suspect:
            self._ping_deadline = min(self._ping_deadline, now + timeout)
        else:
            self._pings = (self._pings + 1) & 0xFFFFFFFF
            self._ping_sent = now
            self._ping_deadline = now + timeout
            self.put(encode_header(Kind.PING, _SYN, 0, self._pings))
        self._look.set()

    def _sweep(self, now: float) -> None:
        for stream in list(self.streams.values()):
            if now - stream.born > SWEEP and (stream.negotiating is not None or stream.abandoned):
                stream.reset()
        if self._going_away and self.idle:
            self._stop(self.error or "the peer said goodbye")

    # --- frames -----------------------------------------------------------------------------------------------------

    def _on_frame(self, kind: int, flags: int, stream_id: int, length: int, body: bytes) -> None:
        if kind == _PING:
            if flags & _SYN:
                self.put(encode_header(Kind.PING, _ACK, 0, length))
            elif flags & _ACK and length == self._pings:
                self.rtt = trio.current_time() - self._ping_sent
            return
        if kind == _GO_AWAY:
            self._going_away = True
            if length != GoAway.NORMAL:
                self.error = f"peer went away with code {length}"
            return
        stream = self.streams.get(stream_id)
        if flags & _SYN:
            if stream is not None or stream_id == 0 or (stream_id % 2 == 1) == self.initiator:
                raise YamuxError(f"peer opened stream {stream_id}, which is not its to open")
            stream = self._accept(stream_id)
        if stream is None:
            return  # late frames of a stream that is over here
        if kind == _WINDOW_UPDATE:
            if length:
                stream.on_window(length)
        elif length:
            if self.buffered + length > MAX_BUFFERED:
                stream.reset()
                return
            if stream.negotiating is not None:
                self._negotiate(stream, stream.negotiating, body)
            else:
                stream.on_data(body)
        if flags & _RST:
            stream.on_end()
        elif flags & _FIN:
            stream.on_fin()
            if stream.negotiating is not None:
                stream.reset()

    def _accept(self, stream_id: int) -> Stream | None:
        if self._inbound >= MAX_STREAMS or not self.alive:
            self.put(encode_header(Kind.WINDOW_UPDATE, _RST, stream_id, 0))
            return None
        stream = Stream(self, stream_id, outbound=False)
        stream.negotiating = Responder(self._serves)
        self.streams[stream_id] = stream
        self._inbound += 1
        return stream

    def _negotiate(self, stream: Stream, responder: Responder, body: bytes) -> None:
        stream.credit_negotiation(len(body))
        if responder.fresh:
            for protocol, handler in self._packet_handlers.items():
                opening = _opening(protocol)
                if body.startswith(opening):  # the usual packet: proposal and payload in one frame
                    stream.put_now(opening)
                    stream.protocol, stream.handler, stream.negotiating = protocol, handler, None
                    if len(body) > len(opening):
                        handler(self.peer, body[len(opening) :])
                    return
        try:
            agreed = responder.feed(body)
        except NegotiationError as error:
            log.debug("peer %s: stream is reset: %s", self.peer, error)
            stream.reset()
            return
        if reply := responder.take_reply():
            stream.put_now(reply)
        if not agreed:
            return
        assert responder.chosen is not None
        stream.protocol = responder.chosen
        stream.negotiating = None
        stream.handler = self._packet_handlers.get(stream.protocol)
        rest = responder.rest
        if stream.handler is None:
            stream.take_over(rest)
            self._on_stream(stream)
        elif rest:
            stream.handler(self.peer, rest)

    # --- ends -------------------------------------------------------------------------------------------------------

    def _stop(self, reason: str, grace: float = 0.0) -> None:
        """End :meth:`run`, at once or when ``grace`` seconds are over."""
        if not self.error:
            self.error = reason
        if grace:
            self._scope.deadline = min(self._scope.deadline, trio.current_time() + grace)
        else:
            self._scope.cancel()

    def _end(self) -> None:
        if self.ended.is_set():
            return
        self.ended.set()
        for stream in list(self.streams.values()):
            stream.on_end()
        self.streams.clear()
        self._out.clear()
        self._drained.set()
