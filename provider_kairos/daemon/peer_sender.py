"""Sends packets to one peer: a bounded queue, and one task that owns the stream.

The task opens the best path that the peer speaks (vpn/session), writes what waits in batches, and when a path breaks
opens the next one without losing what was not written. Nobody else waits for it: a peer that takes nothing loses its
own packets only. While a path is up and takes everything, :meth:`PeerSender.flush` writes without waking the task.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import PeerError, UnreachableError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.streams import MeshStream, StreamEndedError
from provider_kairos.vpn.queues import PacketQueue
from provider_kairos.vpn.session import EDGEVPN_PROTOCOL, PACKETS_PROTOCOL, PathKind, PeerPaths
from provider_kairos.vpn.streams import encode

__all__ = ["PeerSender", "Streams"]

log = logging.getLogger(__name__)

IDLE = 300.0
"""Seconds without a packet after which the sender gives its stream up."""

ASK_AGAIN = 1.0
"""Seconds until a peer that serves no packets is asked again: it may get its address any moment."""

BATCH = 60_000
"""Bytes of packets in one write: they fit one frame of the connection."""

LARGEST_TO_GO = 65_524
"""Bytes of a packet that fit one frame of the connection; larger ones cannot be kept apart for a Go peer."""

_PROTOCOLS = {PathKind.STREAM: PACKETS_PROTOCOL, PathKind.EDGEVPN: EDGEVPN_PROTOCOL}


class Streams(Protocol):
    """What is needed of the mesh."""

    async def open_stream(self, peer: PeerId, protocol: str) -> MeshStream:
        """A stream; raises UnreachableError, PeerError."""
        ...


class PeerSender:
    """The way to one peer. ``undeliverable`` gets the packets that wait while the peer cannot be reached.

    ``open_timeout`` is how many seconds a path may take to be opened before that, ``most_packets`` how many wait.
    """

    def __init__(
        self,
        peer: PeerId,
        mesh: Streams,
        clock: Clock,
        undeliverable: Callable[[Sequence[bytes]], None],
        *,
        open_timeout: float = 2.5,
        most_packets: int = 512,
    ) -> None:
        self.peer = peer
        self._mesh = mesh
        self._clock = clock
        self._undeliverable = undeliverable
        self._open_timeout = open_timeout
        self._queue = PacketQueue(most_packets)
        self._paths = PeerPaths()
        self._kind: PathKind | None = None
        self._stream: MeshStream | None = None
        self._unreachable = False
        self._writing = False
        self._wake = trio.Event()
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
        """Queue one packet; older ones make room when need be. :meth:`flush` sends what was queued."""
        self._queue.put(packet, mono)

    def flush(self, mono: float) -> None:
        """Write at once what the path takes now; the rest is the task's."""
        stream = self._stream
        if stream is not None and not self._writing:
            while len(self._queue):
                packets = self._queue.take(mono, 64, BATCH)
                if self._kind is PathKind.EDGEVPN:
                    taken = stream.try_write_packets(packets)
                else:
                    taken = len(packets) * stream.try_write_packets([encode(packets)] if packets else [])
                self._counts["out-sent"] += taken
                if taken < len(packets):
                    self._queue.put_back(packets[taken:], mono)
                    break
        if len(self._queue):
            self._wake.set()

    def disconnected(self) -> None:
        """The connection is gone: the peer may come back as another version."""
        self._stream = self._kind = None
        self._paths.disconnected()
        self._wake.set()

    def connected(self) -> None:
        """There is a connection (again): no reason to wait any longer."""
        if self._stream is None:
            self._paths.disconnected()
            self._wake.set()

    async def run(self) -> None:
        """Send until nothing was to be sent for a while, or until cancelled."""
        try:
            while await self._wait_for_packets():
                if self._stream is None:
                    await self._open()
                else:
                    await self._send(self._stream)
        finally:
            stream, self._stream = self._stream, None
            if stream is not None:
                stream.close_write()

    async def _wait_for_packets(self) -> bool:
        """True when some wait; False after long idleness."""
        sent = -1
        while not len(self._queue):
            if sent == self._counts["out-sent"]:
                return False
            sent = self._counts["out-sent"]  # flush() may keep the path busy without us
            self._wake = trio.Event()
            with trio.move_on_after(IDLE):
                await self._wake.wait()
        return True

    async def _open(self) -> None:
        """Open the path that is due, or wait until one is."""
        mono = self._clock.now().mono
        kind = self._paths.to_try(mono)
        if kind is None:
            await self._wait_for_path(mono)
            return
        self._paths.opening(kind)
        try:
            with trio.fail_after(self._open_timeout):
                stream = await self._mesh.open_stream(self.peer, _PROTOCOLS[kind])
        except (UnreachableError, trio.TooSlowError) as error:
            self._counts["out-unreachable"] += 1
            log.debug("could not open stream to %s: %s", self.peer, error)
            self._unreachable = True
            self._paths.failed(kind, self._clock.now().mono)
            self._give_back()
        except StreamEndedError:
            self._paths.failed(kind, self._clock.now().mono)
        except PeerError:
            self._paths.refused(kind)
        else:
            log.info("packets to %s go by %s", self.peer, _PROTOCOLS[kind])
            self._unreachable = False
            self._paths.opened(kind)
            self._kind, self._stream = kind, stream

    async def _wait_for_path(self, mono: float) -> None:
        """Until a path may be tried again, or the connection comes or goes."""
        if self._unreachable:
            self._give_back()
        due = self._paths.next_retry()
        self._wake = trio.Event()
        with trio.move_on_after(ASK_AGAIN if due is None else min(max(0.01, due - mono), ASK_AGAIN)):
            await self._wake.wait()
            await trio.sleep(0.05)  # a packet that comes meanwhile must not make this a busy loop
        if due is None:
            self._paths.disconnected()  # it speaks nothing of ours: perhaps it has no address yet; ask again

    def _give_back(self) -> None:
        mono = self._clock.now().mono
        while packets := self._queue.take(mono):
            self._undeliverable(packets)

    async def _send(self, stream: MeshStream) -> None:
        packets = self._queue.take(self._clock.now().mono)
        if not packets:
            return
        sent = 0
        self._writing = True
        try:
            if self._kind is PathKind.EDGEVPN:
                # one packet per yamux frame is what a Go peer's reader keeps apart (spec 8.1, 17)
                for packet in packets:
                    if len(packet) <= LARGEST_TO_GO:
                        await stream.write_packet(packet)
                    else:
                        self._counts["out-too-large"] += 1
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
        finally:
            self._writing = False
        self._counts["out-sent"] += sent
