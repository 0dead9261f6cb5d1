"""Fakes for tests of the services: nodes whose streams run through memory, over real muxers, and one shared ledger."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from functools import partial

import trio

from provider_kairos.clock import Clock, Now
from provider_kairos.errors import UnreachableError
from provider_kairos.ids import PeerId
from provider_kairos.ledger.model import Written
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.multistream import select
from provider_kairos.mesh.muxer import Muxer
from provider_kairos.mesh.muxer_stream import Stream
from provider_kairos.mesh.streams import MeshStream, StreamHandler, run_handler
from provider_kairos.mesh.testing import MemoryChannel, memory_channels
from provider_kairos.services.endpoints import Endpoint

__all__ = ["MemoryLedger", "MemoryNetwork", "MemoryNode", "echo", "read_all", "tcp_server"]


class MemoryLedger:
    """What all nodes of a network see at once. ``live`` are the peers with a heartbeat, and its age."""

    def __init__(self) -> None:
        self.buckets: dict[str, dict[str, str]] = {}
        self.live: dict[PeerId, float] = {}
        self.revision = 0
        self._changed = trio.Event()

    @property
    def ledger(self) -> MemoryLedger:
        """The records: this object."""
        return self

    def bucket(self, name: str) -> Mapping[str, str] | None:
        """Key to text."""
        return self.buckets.get(name)

    def live_peers(self, _now: Now, within: float | None = None) -> dict[PeerId, float]:
        """As set, those younger than ``within``."""
        return {peer: age for peer, age in self.live.items() if within is None or age < within}

    async def wait_revision(self, since: int, _buckets: frozenset[str]) -> int:
        """Any change counts."""
        while self.revision <= since:
            await self._changed.wait()
        return self.revision

    def announce(self, bucket: str, key: str, text: str) -> Written:
        """Write."""
        self.buckets.setdefault(bucket, {})[key] = text
        self._touch()
        return Written(frozenset({(bucket, key)}), ())

    def retract(self, _bucket: str, _key: str) -> None:
        """Nothing is repeated here anyway."""

    def delete(self, bucket: str, key: str) -> None:
        """Remove."""
        del self.buckets[bucket][key]
        self._touch()

    def _touch(self) -> None:
        self.revision += 1
        self._changed.set()
        self._changed = trio.Event()


class MemoryNode:
    """One node: what it serves, and its connections to others."""

    def __init__(self, network: MemoryNetwork, name: str) -> None:
        self.peer_id = PeerId(name)
        self.complaints = Complaints()
        self.handlers: dict[str, StreamHandler] = {}
        self.opened: list[tuple[str, str]] = []
        self._network = network

    async def open_stream(self, peer: PeerId, protocol: str) -> MeshStream:
        """As the mesh's."""
        muxer = self._network.connect(self, peer)
        self.opened.append((peer, protocol))
        stream = muxer.open_stream()
        try:
            stream.protocol = await select((protocol,), stream.read, stream.write)
        except BaseException:
            stream.reset()
            raise
        return MeshStream(stream)

    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve."""
        self.handlers[protocol] = handler

    def remove_handler(self, protocol: str) -> None:
        """Serve no longer."""
        self.handlers.pop(protocol, None)

    def _on_stream(self, nursery: trio.Nursery) -> Callable[[Stream], None]:
        def take(stream: Stream) -> None:
            handler = self.handlers[stream.protocol]

            async def run(stream: Stream) -> None:
                await handler(stream.peer, MeshStream(stream))

            nursery.start_soon(run_handler, stream, run, self.complaints)

        return take


class MemoryNetwork:
    """Nodes by name; a connection from one to another is made when the first stream needs it."""

    def __init__(self, nursery: trio.Nursery, clock: Clock) -> None:
        self.clock = clock
        self.ledger = MemoryLedger()
        self.nodes: dict[str, MemoryNode] = {}
        self.muxers: dict[tuple[PeerId, PeerId], tuple[Muxer, Muxer]] = {}
        self.channels: dict[tuple[PeerId, PeerId], tuple[MemoryChannel, MemoryChannel]] = {}
        self._nursery = nursery

    def node(self, name: str) -> MemoryNode:
        """A new node, alive in the ledger."""
        node = self.nodes[name] = MemoryNode(self, name)
        self.ledger.live[node.peer_id] = 0.0
        return node

    def connect(self, node: MemoryNode, peer: PeerId) -> Muxer:
        """The dialling end of the connection between two nodes. Raises UnreachableError."""
        if peer not in self.nodes:
            raise UnreachableError(f"peer {peer} is not connected")
        pair = self.muxers.get((node.peer_id, peer))
        if pair is None or not pair[0].alive:
            pair = self._link(node, self.nodes[peer])
        return pair[0]

    def cut(self, one: str, two: str) -> None:
        """End the connections between two nodes, as when one of them is killed."""
        for (dialler, listener), (muxer, other) in self.muxers.items():
            if {dialler, listener} == {one, two}:
                muxer.close()
                other.close()

    def _link(self, node: MemoryNode, other: MemoryNode) -> tuple[Muxer, Muxer]:
        ends = memory_channels()
        muxers = [
            Muxer(
                channel,
                theirs.peer_id,
                initiator=ours is node,
                serves=ours.handlers.__contains__,
                on_stream=ours._on_stream(self._nursery),  # noqa: SLF001 - the network is the nodes' other half
                packet_handlers={},
            )
            for channel, ours, theirs in ((ends[0], node, other), (ends[1], other, node))
        ]
        for muxer in muxers:
            self._nursery.start_soon(muxer.run)
        self.channels[node.peer_id, other.peer_id] = ends
        pair = self.muxers[node.peer_id, other.peer_id] = (muxers[0], muxers[1])
        return pair


async def tcp_server(nursery: trio.Nursery, handler: Callable[[trio.SocketStream], Awaitable[None]]) -> Endpoint:
    """A TCP server on loopback for as long as the nursery runs; each connection is closed after its handler."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            with suppress(trio.BrokenResourceError):
                await handler(stream)

    listeners: list[trio.SocketListener] = await nursery.start(
        partial(trio.serve_tcp, serve, 0, host="127.0.0.1", handler_nursery=nursery)
    )
    return Endpoint("127.0.0.1", listeners[0].socket.getsockname()[1])


async def echo(stream: trio.SocketStream) -> None:
    """What comes goes back; the end too."""
    while data := await stream.receive_some(65536):
        await stream.send_all(data)


async def read_all(stream: trio.SocketStream) -> bytes:
    """Until the end. Raises trio.BrokenResourceError after a reset."""
    found = bytearray()
    while data := await stream.receive_some(65536):
        found += data
    return bytes(found)
