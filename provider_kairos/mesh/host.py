"""One life of the libp2p host: everything that ends and starts again together (spec/edgevpn.md 7).

Puts swarm, gossip, room, identify, dialer and discovery together. Dialer and discovery are restarted when they fail; a
failure of anything else ends this host, and :mod:`provider_kairos.mesh.node` makes a new one from the same key.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider_kairos.clock import Clock
from provider_kairos.errors import PeerError, UnreachableError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import identify, parts
from provider_kairos.mesh.addresses import Endpoint, Networks, advertised, parse_listen
from provider_kairos.mesh.admission import Admission
from provider_kairos.mesh.channels import Handshakes
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.connection_limits import ConnectionStats, Standing
from provider_kairos.mesh.dialer import Dialer
from provider_kairos.mesh.discovery import Discovery, restarting
from provider_kairos.mesh.gossip import PROTOCOLS as GOSSIP
from provider_kairos.mesh.gossip import Gossip
from provider_kairos.mesh.gossip_wire import GossipMessage
from provider_kairos.mesh.kad import PROTOCOL as KAD
from provider_kairos.mesh.multistream import NegotiationError
from provider_kairos.mesh.muxer_stream import PacketHandler, Stream, StreamEndedError
from provider_kairos.mesh.room import Room
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.streams import MeshStream, StreamHandler, run_handler
from provider_kairos.mesh.swarm import Connection, Swarm
from provider_kairos.mesh.traffic import Count
from provider_kairos.mesh.views import (
    EpochChanged,
    MeshEvent,
    Message,
    PeerConnected,
    PeerDisconnected,
    PeerSubscribed,
    PeerUnsubscribed,
)

__all__ = ["Host", "Sink"]

log = logging.getLogger(__name__)

IDENTIFY_TIMEOUT = 20.0
OPEN_TIMEOUT = 10.0
ADDRESSES_FRESH = 5.0


class Sink(Protocol):
    """Where a host delivers to; outlives it."""

    def deliver(self, message: Message) -> None:
        """Take an opened message."""

    def tell(self, event: MeshEvent) -> None:
        """Take an event."""

    def count(self, count: Count) -> None:
        """Take the traffic of a stream that ended."""


class Host:
    """A running host. Make one, start :meth:`run`."""

    def __init__(
        self,
        settings: MeshSettings,
        clock: Clock,
        rng: random.Random,
        *,
        sink: Sink,
        complaints: Complaints,
        admission: Admission,
        handlers: dict[str, StreamHandler],
        packet_handlers: dict[str, PacketHandler],
        is_member: Callable[[PeerId], bool] = lambda _peer: False,
    ) -> None:
        taken = parts.load()
        key_pair = taken.create_ed25519(settings.seed)
        self.peer_id = PeerId(taken.ID.from_pubkey(key_pair.public_key).to_base58())
        self.identities: dict[PeerId, identify.Identity] = {}
        self._public_key = key_pair.public_key.serialize()
        self._settings = settings
        self._clock = clock
        self._sink = sink
        self._complaints = complaints
        self._handlers = handlers
        self._packet_handlers = packet_handlers
        self._is_member = is_member
        self._blocked = Networks(settings.blocked_networks)
        self._own: dict[str, Callable[[Stream], Awaitable[None]]] = {
            identify.IDENTIFY: self._answer_identify,
            identify.PUSH: self._take_push,
            identify.PING: _answer_ping,
        }
        self.swarm = Swarm(
            self.peer_id,
            Handshakes(key_pair),
            self._blocked,
            serves=self._serves,
            on_stream=self._on_stream,
            packet_handlers=packet_handlers,
            on_connected=self._connected,
            on_disconnected=self._disconnected,
            on_forget=lambda stream: sink.count(stream_count(stream)),
            connects=admission.connects,
            limits=settings.limits,
            standing=self._standing,
            on_trimmed=self._trimmed,
        )
        self.gossip = Gossip(
            self.peer_id,
            Ed25519PrivateKey.from_private_bytes(settings.seed),
            self.swarm,
            settings.token.max_message_size,
            rng,
            first_seqno=clock.now().unix_ns,
            deliver=self._deliver,
            subscribed=self._subscribed,
            complain=complaints.complain,
            say=complaints.say,
            admits=lambda topic, via, author: admission.hears(via, author, public=self.room.is_public(topic)),
        )
        for protocol in GOSSIP:
            self._own[protocol] = self.gossip.serve
        self.room = Room(settings, self.gossip)
        self.dialer = Dialer(
            self.peer_id,
            self.swarm,
            self._blocked,
            rng,
            bootstrap=[text for text in settings.bootstrap_peers if not text.startswith("/dnsaddr/")],
            own_endpoints=self.addresses,
            connects=admission.connects,
        )
        self.discovery = Discovery(
            settings,
            self.peer_id,
            self.swarm,
            self.dialer,
            clock=clock,
            rng=rng,
            addresses=self.addresses,
            endpoints_of=self._endpoints_of,
            on_topic=lambda: self._on_topic,
        )
        if self.discovery.kad is not None and self.discovery.kad.server:
            self._own[KAD] = self.discovery.kad.serve
        self._on_topic: set[PeerId] = set()
        self._told: set[PeerId] = set()
        self._addresses: tuple[float, list[str]] = (float("-inf"), [])
        self._changed_protocols = trio.Event()
        self._nursery: trio.Nursery | None = None

    async def run(self, listen: Iterable[tuple[str, int]], task_status: trio.TaskStatus[None]) -> None:
        """Serve until cancelled or broken. Raises HostError when nothing can be listened on."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self.swarm.serve, list(listen))
            await nursery.start(self.gossip.run)
            self._follow_epoch()
            nursery.start_soon(self._rotate)
            nursery.start_soon(restarting, "dialer", self.dialer.run)
            nursery.start_soon(self._push_changes)
            nursery.start_soon(self.discovery.run)
            task_status.started()

    def listen(self) -> list[tuple[str, int]]:
        """What the settings ask for. Raises ConfigError."""
        return [parse_listen(text) for text in self._settings.listen]

    # --- for the mesh -----------------------------------------------------------------------------------------------

    def addresses(self) -> list[str]:
        """What others are told to dial; looked up at most every few seconds."""
        now = trio.current_time()
        if now - self._addresses[0] > ADDRESSES_FRESH:
            try:
                found = advertised(self.swarm.bound, self._blocked, self._settings.interfaces)
            except OSError as error:
                log.warning("cannot list the addresses of this machine: %s", error)
                found = self._addresses[1]
            self._addresses = (now, found)
        return self._addresses[1]

    def on_chain(self) -> set[PeerId]:
        """Peers in the current ledger room."""
        return self.gossip.router.subscribers(self.room.current.topic)

    def _standing(self, peer: PeerId) -> Standing:
        known = self.dialer.known.get(peer)
        if self._is_member(peer) or (known is not None and known.permanent):
            return Standing.MEMBER
        return Standing.ON_TOPIC if peer in self._on_topic else Standing.STRANGER

    def _trimmed(self, peer: PeerId) -> None:
        self.dialer.forget(peer)  # else it would be dialled again at once

    def connection_stats(self) -> ConnectionStats:
        """How many connections there are, of how many."""
        held = [each for peer in self.swarm.peers() for each in self.swarm.connections(peer)]
        return ConnectionStats(
            open=len(held),
            inbound=sum(not each.outbound for each in held),
            members=sum(self._standing(each.peer) is Standing.MEMBER for each in held),
            known=len(self.dialer.known),
            limits=self._settings.limits,
        )

    async def open_stream(self, peer: PeerId, protocol: str) -> MeshStream:
        """A stream to ``peer``, connecting first where needed. Raises UnreachableError or PeerError."""
        if self.swarm.preferred(peer) is None:
            with trio.move_on_after(OPEN_TIMEOUT):
                await self.dialer.wait_connected(peer)
        if self.swarm.preferred(peer) is None:
            raise UnreachableError(f"peer {peer} is not connected")
        return MeshStream(await self.swarm.open_stream(peer, (protocol,)))

    def protocols_changed(self) -> None:
        """Handlers were added or removed: tell connected peers."""
        self._changed_protocols.set()

    # --- streams ----------------------------------------------------------------------------------------------------

    def _protocols(self) -> list[str]:
        return sorted({*self._own, *self._handlers, *self._packet_handlers})

    def _serves(self, protocol: str) -> bool:
        return protocol in self._own or protocol in self._handlers or protocol in self._packet_handlers

    def _on_stream(self, stream: Stream) -> None:
        assert self._nursery is not None
        own = self._own.get(stream.protocol)
        theirs = self._handlers.get(stream.protocol)
        if own is None and theirs is not None:
            handler = theirs

            async def own(stream: Stream) -> None:
                await handler(stream.peer, MeshStream(stream))

        if own is None:
            stream.reset()
        else:
            self._nursery.start_soon(run_handler, stream, own, self._complaints)

    # --- identify ---------------------------------------------------------------------------------------------------

    def _identity(self, peer: PeerId) -> bytes:
        connection = self.swarm.preferred(peer)
        observed = connection.address if connection is not None else None
        return identify.encode(
            self._public_key, self.addresses(), self._protocols(), self._settings.user_agent, observed
        )

    async def _answer_identify(self, stream: Stream) -> None:
        await stream.write(self._identity(stream.peer))

    async def _take_push(self, stream: Stream) -> None:
        with trio.move_on_after(IDENTIFY_TIMEOUT):
            self._learn(stream.peer, await identify.read(stream.read))

    async def _ask_identity(self, peer: PeerId) -> None:
        try:
            with trio.move_on_after(IDENTIFY_TIMEOUT):
                stream = await self.swarm.open_stream(peer, (identify.IDENTIFY,))
                try:
                    self._learn(peer, await identify.read(stream.read))
                finally:
                    await stream.close()
        except PeerError as error:
            log.debug("peer %s does not identify itself: %s", peer, error)

    def _learn(self, peer: PeerId, identity: identify.Identity) -> None:
        if not self.swarm.connections(peer):
            return  # read to its end after the connection was gone: nobody would ever forget it
        self.identities[peer] = identity
        # whoever is a stranger to us and our network need not be kept connected
        if peer in self.dialer.known or peer in self._on_topic:
            self.dialer.learn(peer, identity.endpoints, member=peer in self._on_topic)
        self.discovery.identified(peer, identity)
        if identity.protocols.intersection(GOSSIP):
            self.gossip.nudge(peer)

    def _endpoints_of(self, peer: PeerId) -> Iterable[Endpoint]:
        identity = self.identities.get(peer)
        return identity.endpoints if identity is not None else ()

    async def _push_changes(self) -> None:
        while True:
            await self._changed_protocols.wait()
            await trio.sleep(0.05)  # several handlers are registered in a row
            self._changed_protocols = trio.Event()
            for peer in self.swarm.peers():
                assert self._nursery is not None
                self._nursery.start_soon(self._push, peer)

    async def _push(self, peer: PeerId) -> None:
        try:
            with trio.move_on_after(IDENTIFY_TIMEOUT):
                stream = await self.swarm.open_stream(peer, (identify.PUSH,))
                try:
                    await stream.write(self._identity(peer))
                finally:
                    await stream.close()
        except (StreamEndedError, NegotiationError) as error:
            log.debug("peer %s takes no identify push: %s", peer, error)

    # --- connections ------------------------------------------------------------------------------------------------

    def _connected(self, connection: Connection) -> None:
        peer = connection.peer
        contact = self.discovery.is_contact(peer)
        if len(self.swarm.connections(peer)) == 1:
            log.log(logging.DEBUG if contact else logging.INFO, "peer %s connected at %s", peer, connection.address)
            if not contact:
                self._tell_connected(peer)
        self.dialer.connection_changed(peer)
        if not contact:  # most nodes of a DHT serve no gossip; those that do say so in a moment
            self.gossip.nudge(peer)
        assert self._nursery is not None
        self._nursery.start_soon(self._greet, connection)

    def _tell_connected(self, peer: PeerId) -> None:
        if peer not in self._told:
            self._told.add(peer)
            self._sink.tell(PeerConnected(peer))

    async def _greet(self, connection: Connection) -> None:
        connection.muxer.ping()
        await self._ask_identity(connection.peer)

    def _disconnected(self, connection: Connection) -> None:
        peer = connection.peer
        self.dialer.connection_changed(peer)
        self.gossip.nudge(peer)
        if not self.swarm.connections(peer):
            level = logging.DEBUG if self.discovery.is_contact(peer) else logging.INFO
            log.log(level, "peer %s disconnected: %s", peer, connection.muxer.error or "shutting down")
            self.identities.pop(peer, None)
            self.discovery.lost(peer)
            if peer in self._told:
                self._told.discard(peer)
                self._sink.tell(PeerDisconnected(peer))

    # --- the room ---------------------------------------------------------------------------------------------------

    def _deliver(self, message: GossipMessage, via: PeerId) -> None:
        try:
            opened = self.room.open(message, via)
        except PeerError as error:
            self._complaints.complain(via, "unopened_message", str(error))
        else:
            self._sink.deliver(opened)

    def _subscribed(self, _peer: PeerId) -> None:
        now = self.on_chain()
        for peer in now - self._on_topic:
            self.dialer.learn(peer, self._endpoints_of(peer))
            self._tell_connected(peer)
            self._sink.tell(PeerSubscribed(peer))
        for peer in self._on_topic - now:
            self._sink.tell(PeerUnsubscribed(peer))
        self._on_topic = now

    async def _rotate(self) -> None:
        while True:
            await trio.sleep(self.room.wait(self._clock.now()))
            self._follow_epoch()

    def _follow_epoch(self) -> None:
        epoch = self.room.tick(self._clock.now())
        if epoch is not None:
            log.info("ledger room of epoch %d", epoch.counter)
            self._sink.tell(EpochChanged(epoch.counter))
            self._subscribed(self.peer_id)


def stream_count(stream: Stream) -> Count:
    """The traffic of a stream."""
    return stream.peer, stream.protocol, stream.bytes_in, stream.bytes_out


async def _answer_ping(stream: Stream) -> None:
    while data := await stream.read(identify.PING_LENGTH):
        await stream.write(data)
