"""Gossip on streams: queues out, readers in, one heartbeat (spec/edgevpn.md 4.3, 4.6; spec/libp2p.md 4.1).

Per peer we open one outbound stream and write only; the peer opens one of its own and we read only. The two live and
die alone: when ours dies it is opened again after a jittered pause, and when the peer opens a newer inbound stream the
older one may finish what it still holds, but speaks for the peer's subscriptions no longer. An inbound stream is reset
for malformed bytes only, because Go re-opens four times and then never again. A peer whose new stream names none of
the topics of the last one has a new gossip instance (EdgeVPN's rotation, 4.6): our own stream still ends at the old
one, which swallows what we send and learns nothing, so it is opened anew at once. Go forgets a peer's topics when its own
stream to that peer dies, whatever the peer has said meanwhile; two Go nodes alone never recover from that after a
rotation (17). So a peer that comes with another stream is told our topics once more. What to send is decided by
:mod:`provider_kairos.mesh.gossip_router`; messages are given a meaning by :mod:`provider_kairos.mesh.room`.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Protocol

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.gossip_router import Deliver, Effect, GossipRouter, Send, everybody
from provider_kairos.mesh.gossip_wire import GossipMessage, Rpc, decode_rpc, encode_rpc, sign_message
from provider_kairos.mesh.multistream import NegotiationError
from provider_kairos.mesh.muxer_stream import Stream, StreamEndedError
from provider_kairos.mesh.swarm import Connection
from provider_kairos.mesh.wire import DelimitedReader, OversizedError, encode_delimited

__all__ = ["PROTOCOLS", "Gossip"]

log = logging.getLogger(__name__)

PROTOCOLS = ("/meshsub/1.2.0", "/meshsub/1.1.0", "/meshsub/1.0.0")

HEARTBEAT = 1.0
MAX_QUEUED_RPCS = 1024
REOPEN_FIRST, REOPEN_MOST = 0.05, 10.0
NOT_SERVED_PAUSE = 30.0
"""Seconds until a peer that serves no gossip is asked again, unless it says that it does now."""

SMALLEST_LIMIT = 64 * 1024
"""Bytes of an RPC that we read whatever the token says: subscriptions must pass even where messages cannot."""

LATE = 2.0
"""Seconds between our first stream to a peer and its first one to us; usually both are opened as soon as it is connected."""

DRAIN = 5.0
"""Seconds that a replaced inbound stream has to finish."""


class Network(Protocol):
    """What gossip needs of the swarm."""

    def preferred(self, peer: PeerId) -> Connection | None:
        """The connection for new streams."""

    def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Awaitable[Stream]:
        """A stream on which a protocol is agreed."""


class _Outbox:
    """Encoded RPCs on their way to one peer; bounded, never blocks whoever puts."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._queue: deque[bytes] = deque()
        self._bytes = 0
        self._filled = trio.Event()
        self._closing = False

    def put(self, data: bytes) -> bool:
        """False when the queue is full."""
        if len(self._queue) >= MAX_QUEUED_RPCS or (self._queue and self._bytes + len(data) > self._limit):
            return False
        self._queue.append(data)
        self._bytes += len(data)
        self._filled.set()
        return True

    def close(self) -> None:
        """Make the writer end after the RPC that it is writing."""
        self._closing = True
        self._filled.set()

    async def get(self) -> bytes | None:
        while not self._queue and not self._closing:
            self._filled = trio.Event()
            await self._filled.wait()
        if self._closing:
            return None
        data = self._queue.popleft()
        self._bytes -= len(data)
        return data

    def move_to(self, other: _Outbox) -> None:
        for data in self._queue:
            other.put(data)
        self._queue.clear()


class Gossip:
    """Gossip of one host."""

    def __init__(
        self,
        me: PeerId,
        key: Ed25519PrivateKey,
        network: Network,
        max_message_size: int,
        rng: random.Random,
        *,
        first_seqno: int,
        deliver: Callable[[GossipMessage, PeerId], None],
        subscribed: Callable[[PeerId], None],
        complain: Callable[[PeerId, str, str], None],
        say: Callable[[PeerId, str, str], None],
        admits: Callable[[str, PeerId, PeerId | None], bool] = everybody,
    ) -> None:
        """``complain`` counts and logs, ``say`` logs what the router has counted; ``admits`` is the router's."""
        self.router = GossipRouter(me, rng, admits=admits)
        self.max_message_size = max_message_size
        self._me = me
        self._key = key
        self._network = network
        self._rng = rng
        self._seqno = first_seqno
        self._deliver = deliver
        self._subscribed = subscribed
        self._complain = complain
        self._say = say
        self._outboxes: dict[PeerId, _Outbox] = {}
        self._inbound: dict[PeerId, Stream] = {}
        self._keepers: dict[PeerId, trio.Event] = {}
        self._last_topics: dict[PeerId, set[str]] = {}
        self._said_at: dict[PeerId, float] = {}
        self._renew: set[PeerId] = set()
        self._told: Counter[str] = Counter()
        self._nursery: trio.Nursery | None = None

    @property
    def counters(self) -> Counter[str]:
        """What was dropped, by kind."""
        return self.router.counters

    # --- for the room -----------------------------------------------------------------------------------------------

    def join(self, topic: str) -> None:
        """Subscribe, on the existing streams."""
        self._apply(self.router.join(topic, trio.current_time()))

    def leave(self, topic: str) -> None:
        """Unsubscribe."""
        self._apply(self.router.leave(topic, trio.current_time()))

    def publish(self, topic: str, data: bytes) -> int:
        """Sign and queue a message; returns how many peers it goes to. Raises OversizedError."""
        self._seqno += 1
        message = sign_message(self._key, self._me, self._seqno, topic, data)
        if len(message.encoded) + 8 > self.max_message_size:
            raise OversizedError(f"message of {len(message.encoded)} bytes, the network allows {self.max_message_size}")
        effects = self.router.publish(message, trio.current_time())
        self._apply(effects)
        return len(effects)

    # --- for the host -----------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Heartbeat, and the tasks of all peers, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                while True:
                    await trio.sleep(HEARTBEAT)
                    if self._outboxes:
                        self._apply(self.router.heartbeat(trio.current_time()))
            finally:
                self._nursery = None  # connections that end later start nothing here any more

    def nudge(self, peer: PeerId) -> None:
        """A connection came or went, or the peer serves other protocols now: see to the outbound stream."""
        if peer in self._keepers:
            self._keepers[peer].set()
        elif self._nursery is not None and self._network.preferred(peer) is not None:
            self._keepers[peer] = trio.Event()
            self._nursery.start_soon(self._keep, peer)

    async def serve(self, stream: Stream) -> None:
        """Read an inbound stream until it ends."""
        peer = stream.peer
        self._inbound[peer] = stream
        reader = DelimitedReader(stream.read, max(self.max_message_size, SMALLEST_LIMIT))
        first = True
        before: set[str] | None = self._last_topics.get(peer)
        try:
            with trio.CancelScope() as scope:
                while (data := await reader.next()) is not None:
                    rpc = decode_rpc(data)
                    if self._inbound.get(peer) is not stream:
                        if scope.deadline == float("inf"):
                            scope.deadline = trio.current_time() + DRAIN
                        rpc = Rpc(messages=rpc.messages)
                    elif first:
                        self.router.forget_subscriptions(peer)
                    first = False
                    self._take(peer, rpc)
                    if rpc.subscriptions and (topics := self.router.topics_of(peer)):
                        if before is not None:
                            self._answer_new_stream(peer, same_instance=not topics.isdisjoint(before))
                        elif self._said_long_ago(peer):
                            # it was connected before, as an earlier life of ours, and drops us with that connection
                            self._answer_new_stream(peer, same_instance=True)
                        before = None
                        self._last_topics[peer] = set(topics)
        except StreamEndedError:
            pass
        except OversizedError as error:
            self._complain(peer, "oversized", str(error))
            stream.reset()
        except PeerError as error:
            self._complain(peer, "malformed", str(error))
            stream.reset()
        finally:
            if self._inbound.get(peer) is stream:
                del self._inbound[peer]
                self.router.forget_subscriptions(peer)
                self._subscribed(peer)
            stream.close_write()

    def _take(self, peer: PeerId, rpc: Rpc) -> None:
        before = self.router.counters.total()
        self._apply(self.router.handle(peer, rpc, trio.current_time()))
        if rpc.subscriptions:
            self._subscribed(peer)
        if rpc.messages and self.router.counters.total() != before:
            for kind in ("bad_signature", "replayed", "malformed_message", "gated"):
                if self.router.counters[kind] > self._told[kind]:
                    self._told[kind] = self.router.counters[kind]
                    self._say(peer, kind, "dropped a message")

    # --- outbound ---------------------------------------------------------------------------------------------------

    def _answer_new_stream(self, peer: PeerId, *, same_instance: bool) -> None:
        """A peer whose stream was replaced forgot our topics with the old one (go-libp2p-pubsub does): say them again."""
        if same_instance:
            self._apply([Send(peer, self.router.hello())])
        elif peer in self._keepers:
            self._renew.add(peer)
            self._keepers[peer].set()

    def _said_long_ago(self, peer: PeerId) -> bool:
        """Whether our topics were told to a peer well before the stream on which it says its own."""
        said_at = self._said_at.get(peer)
        return said_at is not None and trio.current_time() - said_at > LATE

    async def _keep(self, peer: PeerId) -> None:
        """Hold an outbound stream to ``peer`` while it is connected."""
        pause = REOPEN_FIRST
        left_over: _Outbox | None = None
        try:
            while (connection := self._network.preferred(peer)) is not None:
                self._keepers[peer] = nudged = trio.Event()
                self._renew.discard(peer)
                try:
                    stream = await self._network.open_stream(peer, PROTOCOLS)
                except NegotiationError:
                    with trio.move_on_after(NOT_SERVED_PAUSE):
                        await nudged.wait()
                    continue
                except StreamEndedError:
                    await trio.sleep(pause * (1 + self._rng.random()))
                    pause = min(pause * 2, REOPEN_MOST)
                    continue
                opened_at = trio.current_time()
                left_over = await self._use(peer, stream, connection, left_over)
                if left_over is None:
                    if trio.current_time() - opened_at > 60:
                        pause = REOPEN_FIRST
                    await trio.sleep(pause * (1 + self._rng.random()))
                    pause = min(pause * 2, REOPEN_MOST)
        finally:
            del self._keepers[peer]
            self._last_topics.pop(peer, None)
            self._said_at.pop(peer, None)
            self._renew.discard(peer)

    async def _use(
        self, peer: PeerId, stream: Stream, connection: Connection, left_over: _Outbox | None
    ) -> _Outbox | None:
        """Write until the stream ends (None) or another one is due (the queue that is left)."""
        outbox = _Outbox(2 * max(self.max_message_size, SMALLEST_LIMIT))
        outbox.put(encode_delimited(encode_rpc(self.router.hello())))
        if left_over is not None:
            left_over.move_to(outbox)
        self._outboxes[peer] = outbox
        self._said_at.setdefault(peer, trio.current_time())
        version = (1, int(stream.protocol.split(".")[1]))
        self._apply(self.router.add_peer(peer, version, trio.current_time(), outbound=connection.outbound))
        moved = False
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, stream, outbox, nursery.cancel_scope)
                nursery.start_soon(_watch, stream, nursery.cancel_scope)
                while not moved:
                    await self._keepers[peer].wait()
                    self._keepers[peer] = trio.Event()
                    better = self._network.preferred(peer)
                    moved = better is not None and (better.muxer is not connection.muxer or peer in self._renew)
                outbox.close()
                nursery.cancel_scope.deadline = trio.current_time() + DRAIN
        finally:
            if self._outboxes.get(peer) is outbox:
                del self._outboxes[peer]
            self.router.remove_peer(peer)
            if moved:
                stream.close_write()
                stream.close_read()
            else:
                stream.reset()
        return outbox if moved else None

    async def _write(self, stream: Stream, outbox: _Outbox, scope: trio.CancelScope) -> None:
        try:
            while (data := await outbox.get()) is not None:
                await stream.write(data)
        except StreamEndedError:
            pass
        scope.cancel()

    def _apply(self, effects: Iterable[Effect]) -> None:
        encoded: dict[int, bytes] = {}
        for effect in effects:
            match effect:
                case Send(peer, rpc):
                    outbox = self._outboxes.get(peer)
                    if outbox is None:
                        continue
                    data = encoded.get(id(rpc))
                    if data is None:
                        data = encoded[id(rpc)] = encode_delimited(encode_rpc(rpc))
                    if not outbox.put(data):
                        self.counters["queue_full"] += 1
                        if rpc.subscriptions:
                            outbox.close()  # the next stream starts with a hello that says it all
                case Deliver(message, via):
                    self._deliver(message, via)


async def _watch(stream: Stream, scope: trio.CancelScope) -> None:
    """Peers never write on our stream: whatever a read returns, the stream is over or abused."""
    with suppress(StreamEndedError):
        await stream.read()
    scope.cancel()
