"""Moves packets between the TUN device and the peers' streams (spec/edgevpn.md 8.1; the seam is vpn/session).

Out: a packet from the device is judged by the guard, its destination names a peer, and it waits in that peer's bounded
queue; one task per peer owns the stream and is the only one that waits for it. In: our own peers send frames over one
long-lived stream, Go peers one packet per stream, which the mesh hands over without making a task of it; both pass the
guard before they reach the device. The handlers are there only while there is a device, as with EdgeVPN.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

import trio

from provider_kairos.clock import Clock
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.peer_sender import PeerSender
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.errors import HostError
from provider_kairos.ids import PeerId
from provider_kairos.ledger.engine import HEARTBEATS
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.streams import MeshStream
from provider_kairos.system.tun import Tun
from provider_kairos.vpn.guard import Guard
from provider_kairos.vpn.packets import PacketError, RateLimit, parse, split, unreachable
from provider_kairos.vpn.records import LEASE_BUCKET, MACHINES_BUCKET
from provider_kairos.vpn.routes import RouteTable
from provider_kairos.vpn.session import EDGEVPN_PROTOCOL, PACKETS_PROTOCOL
from provider_kairos.vpn.streams import FrameDecoder

__all__ = ["PacketPump"]

log = logging.getLogger(__name__)

_BUCKETS = frozenset({MACHINES_BUCKET, LEASE_BUCKET, HEARTBEATS})
LIVENESS_CHECK = 15.0
"""Seconds after which routes are looked at again though no record changed: heartbeats grow old in silence."""


class PacketPump:
    """Routes, guard and per-peer senders; :meth:`run` serves one device until cancelled."""

    def __init__(self, settings: DaemonSettings, ledger: LedgerService, mesh: Mesh, clock: Clock) -> None:
        self._settings = settings
        self._ledger = ledger
        self._mesh = mesh
        self._clock = clock
        limits = settings.limits
        self._routes = RouteTable(mesh.peer_id, limits.router or None, static=dict(limits.static_peers))
        self._guard = Guard(self._routes, settings.address.network)
        self._senders: dict[PeerId, PeerSender] = {}
        self._unreachable = RateLimit()
        self._counts: Counter[str] = Counter()
        self._look = trio.Event()
        # What arrives goes to the device of the moment: streams of peers outlive a device that is made anew.
        self._tun: Tun | None = None

    @property
    def counters(self) -> Counter[str]:
        """Packets and drops by kind."""
        total = self._counts + Counter(self._guard.counters)
        for sender in self._senders.values():
            total += sender.counters
        return Counter({f"packets_{name.replace('-', '_')}": count for name, count in total.items()})

    def forget(self, peer: PeerId) -> None:
        """The connection to a peer is gone; what was learnt about its paths with it."""
        if sender := self._senders.get(peer):
            sender.disconnected()

    def room_changed(self) -> None:
        """A peer came into the ledger room or left it: look at the routes."""
        self._look.set()

    def greet(self, peer: PeerId) -> None:
        """A peer is connected."""
        if sender := self._senders.get(peer):
            sender.connected()

    async def run(self, tun: Tun) -> None:
        """Serve ``tun`` until cancelled. Raises HostError when the device is gone."""
        self._tun = tun
        self._mesh.set_stream_handler(PACKETS_PROTOCOL, self._receive_frames)
        self._mesh.set_packet_handler(EDGEVPN_PROTOCOL, self._receive_from_go)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._keep_routes)
                await self._send_from(tun, nursery)
        finally:
            self._tun = None
            self._mesh.remove_handler(PACKETS_PROTOCOL)
            self._mesh.remove_handler(EDGEVPN_PROTOCOL)

    async def _keep_routes(self) -> None:
        while True:
            seen = self._ledger.revision
            self._update_routes()
            self._look = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.cancel_scope.deadline = trio.current_time() + LIVENESS_CHECK
                nursery.start_soon(self._wait_ledger, seen, nursery.cancel_scope)
                await self._look.wait()
                nursery.cancel_scope.cancel()

    async def _wait_ledger(self, seen: int, scope: trio.CancelScope) -> None:
        await self._ledger.wait_revision(seen, _BUCKETS)
        scope.cancel()

    def _update_routes(self) -> None:
        ledger = self._ledger.ledger
        # Who is in the room with us lives, whatever its heartbeat: after a restart we know none, and EdgeVPN repeats its
        # block every 5 to 15 s only.
        live = frozenset(ledger.live_peers(self._clock.now())) | self._mesh.on_chain()
        notes = ledger.bucket(LEASE_BUCKET) or {}
        if self._routes.update(ledger.bucket(MACHINES_BUCKET) or {}, live, notes):
            log.info("routes: %d addresses", len(self._routes))

    # -- out

    async def _send_from(self, tun: Tun, nursery: trio.Nursery) -> None:
        while True:
            packets = await tun.read()
            mono = self._clock.now().mono
            touched: dict[PeerId, PeerSender] = {}
            for packet in packets:
                verdict, header = self._guard.outbound(packet)
                if not verdict.passes or header is None:
                    continue
                peer = self._routes.lookup(header.destination, from_us=header.source in self._routes.own)
                if peer is None or peer == self._mesh.peer_id:
                    self._counts["no-route"] += 1
                    self._answer_unreachable(packet)
                    continue
                sender = touched[peer] = self._sender(peer, nursery)
                sender.put(packet, mono)
            for sender in touched.values():
                sender.flush(mono)

    def _sender(self, peer: PeerId, nursery: trio.Nursery) -> PeerSender:
        sender = self._senders.get(peer)
        if sender is None:
            sender = self._senders[peer] = PeerSender(
                peer,
                self._mesh,
                self._clock,
                self._undeliverable,
                open_timeout=self._settings.open_timeout,
                most_packets=self._settings.queue_packets or 512,
            )
            nursery.start_soon(self._run_sender, sender)
        return sender

    async def _run_sender(self, sender: PeerSender) -> None:
        try:
            await sender.run()
        finally:
            # idle for long, or the pump ends; the next packet makes a new one
            if self._senders.get(sender.peer) is sender:
                del self._senders[sender.peer]
            self._counts += sender.counters

    def _undeliverable(self, packets: Sequence[bytes]) -> None:
        """A peer with a route cannot be reached now: say so to who sent the packets, as a router does."""
        self._counts["out-undeliverable"] += len(packets)
        for packet in packets:
            self._answer_unreachable(packet)

    def _answer_unreachable(self, packet: bytes) -> None:
        if not self._unreachable.allow(self._clock.now().mono):
            return
        header = parse(packet)
        # In the name of whom it was for: the kernel drops what arrives from one of its own addresses.
        answer = unreachable(packet, header.destination) if header is not None else None
        if answer is not None:
            self._write(answer)

    # -- in

    async def _receive_frames(self, peer: PeerId, stream: MeshStream) -> None:
        decoder = FrameDecoder()

        def take(data: bytes) -> None:
            for packet in decoder.feed(data):
                self._deliver(peer, packet)

        await stream.feed(take)

    def _receive_from_go(self, peer: PeerId, frame: bytes, /) -> None:
        try:
            packets, rest = split(frame)
        except PacketError:
            self._counts["in-malformed"] += 1
            return
        if rest:
            self._counts["in-malformed"] += 1
        for packet in packets:
            self._deliver(peer, packet)

    def _deliver(self, peer: PeerId, packet: bytes) -> None:
        if self._guard.inbound(peer, packet).passes:
            self._write(packet)

    def _write(self, packet: bytes) -> None:
        try:
            if self._tun is None:
                self._counts["in-no-device"] += 1
            elif not self._tun.write(packet):
                self._counts["in-refused-by-kernel"] += 1
        except (HostError, trio.ClosedResourceError):
            # the reader of the device meets the same and has it made anew
            self._counts["in-no-device"] += 1
