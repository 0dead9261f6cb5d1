"""Sends packets to one peer: a bounded queue, and one task that owns the stream.

The task opens the best path that the peer speaks (vpn/session), writes what waits in batches, and when a path breaks
opens the next one without losing what was not written. Nobody else waits for it: a peer that takes nothing loses its
own packets only.
"""

from __future__ import annotations

import logging
from collections import Counter

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import PeerError, UnreachableError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.streams import MeshStream, StreamEndedError
from provider_kairos.vpn.queues import PacketQueue
from provider_kairos.vpn.session import EDGEVPN_PROTOCOL, PACKETS_PROTOCOL, PathKind, PeerPaths
from provider_kairos.vpn.streams import encode

__all__ = ["PeerSender"]

log = logging.getLogger(__name__)

IDLE = 300.0
"""Seconds without a packet after which the sender gives its stream up."""

_PROTOCOLS = {PathKind.STREAM: PACKETS_PROTOCOL, PathKind.EDGEVPN: EDGEVPN_PROTOCOL}


class PeerSender:
    """The way to one peer."""

    def __init__(self, peer: PeerId, mesh: Mesh, clock: Clock) -> None:
        self.peer = peer
        self._mesh = mesh
        self._clock = clock
        self._queue = PacketQueue()
        self._paths = PeerPaths()
        self._kind: PathKind | None = None
        self._stream: MeshStream | None = None
        self._waiting = trio.Event()
        self._counts: Counter[str] = Counter()

    @property
    def counters(self) -> Counter[str]:
        """Packets sent and dropped."""
        dropped = {"out-queue-full": self._queue.dropped_full, "out-too-old": self._queue.dropped_old}
        return self._counts + Counter(dropped)

    @property
    def path(self) -> PathKind | None:
        """The path in use."""
        return self._kind

    def put(self, packet: bytes, mono: float) -> None:
        """Queue one packet; older ones make room when need be."""
        self._queue.put(packet, mono)
        self._waiting.set()

    def disconnected(self) -> None:
        """The connection is gone: the peer may come back as another version."""
        self._stream = self._kind = None
        self._paths.disconnected()
        self._waiting.set()

    async def run(self) -> None:
        """Send until nothing was to be sent for a while, or until cancelled."""
        try:
            while True:
                if not len(self._queue):
                    self._waiting = trio.Event()
                    with trio.move_on_after(IDLE) as idle:
                        await self._waiting.wait()
                    if idle.cancelled_caught:
                        return
                if self._stream is None:
                    await self._open()
                    continue
                await self._send(self._stream)
        finally:
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.close_write()

    async def _open(self) -> None:
        """Open the path that is due, or wait until one is."""
        mono = self._clock.now().mono
        kind = self._paths.to_try(mono)
        if kind is None:
            self._queue.take(mono, 0)  # what waited too long is dropped meanwhile
            due = self._paths.next_retry()
            await trio.sleep(1.0 if due is None else max(0.01, due - mono))
            if due is None:
                self._paths.disconnected()  # it speaks nothing of ours: perhaps it has no address yet; ask again
            return
        self._paths.opening(kind)
        try:
            stream = await self._mesh.open_stream(self.peer, _PROTOCOLS[kind])
        except UnreachableError as error:
            self._counts["out-unreachable"] += 1
            log.debug("could not open stream to %s: %s", self.peer, error)
            self._paths.failed(kind, self._clock.now().mono)
        except StreamEndedError:
            self._paths.failed(kind, self._clock.now().mono)
        except PeerError:
            self._paths.refused(kind)
        else:
            log.info("packets to %s go by %s", self.peer, _PROTOCOLS[kind])
            self._paths.opened(kind)
            self._kind, self._stream = kind, stream

    async def _send(self, stream: MeshStream) -> None:
        packets = self._queue.take(self._clock.now().mono)
        if not packets:
            return
        sent = 0
        try:
            if self._kind is PathKind.EDGEVPN:
                # one packet per yamux frame is what a Go peer's reader keeps apart (spec 8.1, 17)
                for packet in packets:
                    await stream.write_packet(packet)
                    sent += 1
            else:
                await stream.write(encode(packets))
                sent = len(packets)
        except StreamEndedError as error:
            log.debug("stream to %s ended: %s", self.peer, error)
            self._queue.put_back(packets[sent:], self._clock.now().mono)
            if self._stream is stream:
                assert self._kind is not None
                self._paths.failed(self._kind, self._clock.now().mono)
                self._stream = self._kind = None
        self._counts["out-sent"] += sent
