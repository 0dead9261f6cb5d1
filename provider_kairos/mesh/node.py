"""The mesh as the daemon sees it: one object that lives as long as the daemon does.

:meth:`Mesh.run` keeps a :class:`~provider_kairos.mesh.host.Host` alive: when one breaks, the next is made from the same
key on the same ports after a pause. Channels, handlers and counters stay. Only cancellation ends it.
"""

from __future__ import annotations

import logging
import random
from collections import Counter, deque
from collections.abc import Collection
from typing import Any

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from provider_kairos.clock import Clock
from provider_kairos.errors import HostError, UnreachableError, Waiting
from provider_kairos.ids import PeerId, peer_id_of_public_key
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.addresses import Networks, parse_listen
from provider_kairos.mesh.admission import Admission
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.connection_limits import ConnectionStats
from provider_kairos.mesh.discovery import bootstrap_of
from provider_kairos.mesh.host import Host, stream_count
from provider_kairos.mesh.kad import PROTOCOL as KAD
from provider_kairos.mesh.muxer_stream import PacketHandler
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.streams import MeshStream, StreamHandler, guarded_packet_handler
from provider_kairos.mesh.traffic import Count, TrafficMeter
from provider_kairos.mesh.views import (
    AllGatedOut,
    ConnectionsFull,
    HostDown,
    MeshEvent,
    Message,
    NobodyOnTopic,
    NoPeers,
    PeerView,
)
from provider_kairos.mesh.wire import OversizedError

__all__ = ["Mesh"]

log = logging.getLogger(__name__)

MESSAGES = 1024
PUBLIC_MESSAGES = 64
MESSAGE_BYTES = 32 * 1024 * 1024
"""What may wait for the ledger; a peer chooses how large its messages are."""

EVENTS = 1024
PAUSE_FIRST, PAUSE_MOST = 0.5, 30.0
QUIET_LOGGERS = ("libp2p", "multiaddr")
"""py-libp2p reports ordinary disconnects as errors; what matters is logged by us."""


class Mesh:
    """A libp2p node in the network of a token."""

    def __init__(self, settings: MeshSettings, clock: Clock, rng: random.Random) -> None:
        """Raises ConfigError for addresses and networks that make no sense."""
        for text in settings.listen:
            parse_listen(text)
        Networks(settings.blocked_networks)
        bootstrap_of(settings)
        for text in settings.dht.announce if settings.dht is not None else ():
            multiaddr.encode(text)
        self.peer_id = peer_id_of_public_key(
            Ed25519PrivateKey.from_private_bytes(settings.seed).public_key().public_bytes_raw()
        )
        self.settings = settings
        self._clock = clock
        self._rng = rng
        self._complaints = Complaints()
        self._handlers: dict[str, StreamHandler] = {}
        self._packet_handlers: dict[str, PacketHandler] = {}
        self._message_sender, self.messages = trio.open_memory_channel[Message](MESSAGES)
        self._public_sender, self.public_messages = trio.open_memory_channel[Message](PUBLIC_MESSAGES)
        self.admission = Admission(settings)
        self._members: frozenset[PeerId] = frozenset()
        self._waiting_sizes: deque[int] = deque()
        self._event_sender, self.events = trio.open_memory_channel[MeshEvent](EVENTS)
        self._host: Host | None = None
        self._reason = ""
        self._bound: list[tuple[str, int]] = []
        self._past: Counter[str] = Counter()
        self.traffic = TrafficMeter(self._live_traffic)

    # --- life -------------------------------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled; started once the first host is up or has failed.

        Raises LocalError when py-libp2p is not the version that we know: no restart would cure that.
        """
        for name in QUIET_LOGGERS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        pause = PAUSE_FIRST
        started = False
        while True:
            began = trio.current_time()
            host = Host(
                self.settings,
                self._clock,
                self._rng,
                sink=self,
                complaints=self._complaints,
                admission=self.admission,
                handlers=self._handlers,
                packet_handlers=self._packet_handlers,
                is_member=self._is_member,
            )
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(host.run, self._bound or host.listen())
                    self._bound = host.swarm.bound
                    self._host = host
                    self._reason = ""
                    log.info("mesh host %s listens on %s", self.peer_id, ", ".join(host.addresses()))
                    if not started:
                        started = True
                        task_status.started()
            except Exception as error:  # whatever broke: a new host is the cure that we have
                cause = _innermost(error)
                self._complaints.counters["host_restarts"] += 1
                if isinstance(cause, HostError):
                    self._reason = str(cause)
                    self._bound = []
                    log.error("mesh host: %s", cause)  # noqa: TRY400 - the message is the whole story
                else:
                    self._reason = f"{type(cause).__name__}: {str(cause)[:120]}"
                    log.exception("mesh host broke, it is started again in %.1f s", pause)
            finally:
                if self._host is not None:
                    self._past += self._host_counters(self._host)
                    self._host = None
            if not started:
                started = True
                task_status.started()
            if trio.current_time() - began > 60:
                pause = PAUSE_FIRST
            await trio.sleep(pause * self._rng.uniform(0.75, 1.25))
            pause = min(pause * 2, PAUSE_MOST)

    # --- the ledger room --------------------------------------------------------------------------------------------

    async def publish(self, data: bytes) -> None:
        """Seal ``data`` and send it to the ledger room.

        Dropped and counted when nobody is there, and when it is longer than the token's ``max_message_size`` allows.
        """
        await trio.lowlevel.checkpoint()
        if self._host is None:
            self._complaints.counters["published_while_down"] += 1
            return
        try:
            self._host.room.publish(data, self._clock.now())
        except OversizedError as error:
            self._complaints.complain(self.peer_id, "publish_oversized", str(error))

    async def publish_public(self, data: bytes, annotations: dict[str, Any] | None = None) -> int:
        """The same for the public room, ``annotations`` in clear; returns how many peers it goes to."""
        await trio.lowlevel.checkpoint()
        if self._host is None:
            return 0
        try:
            return self._host.room.publish_public(data, annotations, self._clock.now())
        except OversizedError as error:
            self._complaints.complain(self.peer_id, "publish_oversized", str(error))
            return 0

    def on_chain(self) -> set[PeerId]:
        """Peers in the current ledger room; never ourselves."""
        return self._host.on_chain() if self._host is not None else set()

    # --- streams ----------------------------------------------------------------------------------------------------

    def set_stream_handler(self, protocol: str, handler: StreamHandler) -> None:
        """Serve ``protocol`` with a task per stream."""
        self._handlers[protocol] = handler
        self._protocols_changed()

    def set_packet_handler(self, protocol: str, callback: PacketHandler) -> None:
        """Serve ``protocol`` inside the connections' readers: one call per frame, no task, no reply."""
        self._packet_handlers[protocol] = guarded_packet_handler(protocol, callback, self._complaints)
        self._protocols_changed()

    def remove_handler(self, protocol: str) -> None:
        """Serve ``protocol`` no longer; streams that are open stay."""
        self._handlers.pop(protocol, None)
        self._packet_handlers.pop(protocol, None)
        self._protocols_changed()

    async def open_stream(self, peer: PeerId, protocol: str) -> MeshStream:
        """A stream to ``peer``; it is dialled when it is known but not connected.

        Raises UnreachableError when there is no connection, PeerError when the peer does not serve ``protocol``.
        """
        if self._host is None:
            raise UnreachableError("the mesh host is not up")
        return await self._host.open_stream(peer, protocol)

    def _protocols_changed(self) -> None:
        if self._host is not None:
            self._host.protocols_changed()

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether the host is up."""
        return self._host is not None

    def addresses(self) -> list[str]:
        """Multiaddrs that we advertise, without the peer ID."""
        return self._host.addresses() if self._host is not None else []

    def protect(self, members: Collection[PeerId]) -> None:
        """These are members of the network: their connections stay when there are too many."""
        self._members = frozenset(members)

    def _is_member(self, peer: PeerId) -> bool:
        return peer in self._members

    def connections(self) -> ConnectionStats:
        """How many connections there are, of how many."""
        if self._host is None:
            return ConnectionStats(0, 0, 0, 0, self.settings.limits)
        return self._host.connection_stats()

    def add_peer(self, peer: str, addresses: list[str]) -> None:
        """Tell of a peer that something else found."""
        if self._host is not None:
            self._host.dialer.found(peer, addresses)

    def peerstore(self) -> list[PeerId]:
        """Every peer that is known, connected or not, and ourselves, as Go lists them."""
        return [self.peer_id, *(view.peer_id for view in self.peers())]

    def peers(self) -> list[PeerView]:
        """A view of every known peer."""
        host = self._host
        if host is None:
            return []
        on_chain = host.on_chain()
        views = []
        for peer in sorted({*host.swarm.peers(), *host.dialer.known}):
            connection = host.swarm.preferred(peer)
            known = host.dialer.known.get(peer)
            identity = host.identities.get(peer)
            addresses = [str(each) for each in known.endpoints] if known else []
            if connection is not None and connection.address not in addresses:
                addresses.insert(0, connection.address)
            views.append(
                PeerView(
                    peer_id=peer,
                    connected=connection is not None,
                    on_topic=peer in on_chain,
                    addresses=tuple(addresses),
                    direction="" if connection is None else "outbound" if connection.outbound else "inbound",
                    security=connection.security if connection is not None else "",
                    rtt_ms=round(connection.muxer.rtt * 1000, 3) if connection is not None else 0.0,
                    last_error=known.last_error if known else "",
                    failures=known.failures if known else 0,
                    agent=identity.agent if identity else "",
                    protocols=tuple(sorted(identity.protocols)) if identity else (),
                    found_by=self._found_by(host, peer),
                )
            )
        return views

    @property
    def counters(self) -> dict[str, int]:
        """What was dropped, refused or restarted, by kind; grows only."""
        now = self._host_counters(self._host) if self._host is not None else Counter[str]()
        return dict(self._complaints.counters + self._past + now)

    def waiting(self) -> list[Waiting]:
        """Typed reasons for which the mesh is not whole."""
        host = self._host
        if host is None:
            return [HostDown(self._reason)]
        reasons: list[Waiting] = []
        connected = host.swarm.peers()
        candidates = [peer for peer in connected if not self._only_serves_dht(host, peer)]
        if not candidates:
            return [NoPeers(len(host.dialer.known.keys() - set(connected))), *host.discovery.waiting()]
        router = host.gossip.router
        reasons += host.room.skews((peer, frozenset(router.topics_of(peer))) for peer in connected)
        stats = host.connection_stats()
        if stats.open >= stats.limits.most:
            reasons.append(ConnectionsFull(stats.limits.most))
        room = host.on_chain()
        if not room:
            reasons.append(NobodyOnTopic(len(candidates)))
        elif rule := self.admission.deaf_to_all(room):
            reasons.append(AllGatedOut(len(room), rule))
        return [*reasons, *host.discovery.waiting()]

    @staticmethod
    def _only_serves_dht(host: Host, peer: PeerId) -> bool:
        """Whether nobody expects a connected peer in our room: it is there for the DHT."""
        identity = host.identities.get(peer)
        serves = identity is not None and KAD in identity.protocols and peer not in host.on_chain()
        return serves or host.discovery.is_contact(peer)

    @staticmethod
    def _host_counters(host: Host) -> Counter[str]:
        return Counter(host.swarm.counters) + host.gossip.counters + host.room.counters + host.discovery.counters

    @staticmethod
    def _found_by(host: Host, peer: PeerId) -> str:
        known = host.dialer.known.get(peer)
        if known is not None:
            return "bootstrap" if known.permanent else known.source
        return "dht-node" if host.discovery.is_contact(peer) else "inbound"

    def _live_traffic(self) -> list[Count]:
        return [stream_count(stream) for stream in self._host.swarm.streams()] if self._host is not None else []

    # --- what the host delivers -------------------------------------------------------------------------------------

    def deliver(self, message: Message) -> None:
        """Called by the host."""
        if message.room == "public":
            try:
                self._public_sender.send_nowait(message)
            except trio.WouldBlock:
                self._complaints.complain(message.via, "public_messages_over_limit", "challenges come too fast")
            return
        sizes = self._waiting_sizes
        while len(sizes) > self.messages.statistics().current_buffer_used:
            sizes.popleft()  # taken out meanwhile
        try:
            if sizes and sum(sizes) + len(message.data) > MESSAGE_BYTES:
                raise trio.WouldBlock
            self._message_sender.send_nowait(message)
            sizes.append(len(message.data))
        except trio.WouldBlock:
            self._complaints.complain(message.via, "messages_over_limit", "the ledger does not keep up")

    def tell(self, event: MeshEvent) -> None:
        """Called by the host."""
        try:
            self._event_sender.send_nowait(event)
        except trio.WouldBlock:
            self._complaints.counters["events_over_limit"] += 1

    def count(self, count: Count) -> None:
        """Called by the host."""
        self.traffic.ended(count)


def _innermost(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
