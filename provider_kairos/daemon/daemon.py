"""The mesh daemon: wires ledger, mesh, lease, VPN and API, and keeps each part running.

Parts are siblings in one nursery. A part that breaks is logged and started again after a pause that grows; only
cancellation (SIGTERM, SIGINT) ends the daemon. What the machine refuses at start and cannot be waited for (another
daemon holds the state or the socket) ends it with one line that says what to do.
"""

from __future__ import annotations

import logging
import os
from random import Random

import trio

from provider_kairos import __version__
from provider_kairos.api.address import parse_unix_mode
from provider_kairos.api.server import serve
from provider_kairos.clock import Clock
from provider_kairos.daemon.backend import DaemonBackend
from provider_kairos.daemon.event_feed import EventFeed
from provider_kairos.daemon.lease_service import LeaseService, RoleOnDisk
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.parts import MakeServices, Parts, configured, guarded
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.status import Phases, StatusReporter
from provider_kairos.daemon.store import Store
from provider_kairos.daemon.supervision import Supervisor
from provider_kairos.daemon.vpn_service import VpnService
from provider_kairos.ids import PeerId
from provider_kairos.ledger.engine import HEARTBEATS, Ledger
from provider_kairos.ledger.model import LedgerSettings
from provider_kairos.ledger.signing import Signer
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import DhtSettings, MeshSettings
from provider_kairos.mesh.views import EpochChanged, PeerConnected, PeerDisconnected, PeerSubscribed, PeerUnsubscribed
from provider_kairos.vpn.records import LEASE_BUCKET, MACHINES_BUCKET, LeaseNote, LeaseState, parse_machines

__all__ = ["Daemon"]

log = logging.getLogger(__name__)

MEMBERS_AGAIN = 60.0
"""Seconds after which the list of members is made anew though no record changed: heartbeats grow old in silence."""

_MEMBER_BUCKETS = frozenset({HEARTBEATS, MACHINES_BUCKET})


class Daemon:
    """One daemon over an open state file. ``rng`` is for jitter only; ``services`` makes what runs beside the VPN."""

    def __init__(
        self,
        settings: DaemonSettings,
        store: Store,
        clock: Clock,
        rng: Random,
        *,
        services: MakeServices = configured,
    ) -> None:
        self.settings = settings
        self.phases = Phases(clock)
        self._clock = clock
        self._supervisor = Supervisor()
        seed = store.seed()
        self.mesh = Mesh(_mesh_settings(settings, seed), clock, rng)
        loaded = store.load()
        engine = Ledger(_ledger_settings(settings), Signer(seed), loaded.block, rng=rng, forgotten=loaded.forgotten)
        self.ledger = LedgerService(engine, clock, store.save, self.mesh.publish)
        self.vpn: VpnService | None = None
        self.lease: LeaseService | None = None
        if settings.vpn:
            self.vpn = VpnService(settings, self.ledger, self.mesh, clock, self.phases)
            self.lease = LeaseService(
                settings,
                self.ledger,
                self.mesh.peer_id,
                clock,
                connected=self._connected,
                on_address=self.vpn.use_address,
                rng=rng,
                role=RoleOnDisk(settings.state_dir / "state" / "role.json"),
                version=f"v{__version__}",
            )
            self.vpn.lease = self.lease
        self.services = guarded(Parts(settings, self.ledger, self.mesh, clock, rng), services)
        self._status = StatusReporter(settings, clock, self.phases, self.ledger, self.mesh, self.vpn, self.services)
        self.feed = EventFeed(self._status, self.mesh.peers)
        self.ledger.on_changed = self.feed.records_changed
        self.backend = DaemonBackend(
            self.ledger,
            self.mesh,
            clock,
            self._status.document,
            self._healthy,
            feed=self.feed,
            debug=settings.api_debug,
            services=self.services,
        )

    def _healthy(self) -> bool:
        return not self._supervisor.broken

    def _connected(self) -> frozenset[PeerId]:
        return frozenset(self.mesh.on_chain())

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run until cancelled. Raises HostError or ConfigError when the API's place cannot be had."""
        async with trio.open_nursery() as nursery:
            # the API first: the provider's long poll should find it as early as possible
            if self.settings.api:
                await nursery.start(self._serve_api)
            nursery.start_soon(self._supervisor.keep, "ledger", self.ledger.run)
            nursery.start_soon(self._supervisor.keep, "messages", self._pump_messages)
            nursery.start_soon(self._supervisor.keep, "events", self._pump_events)
            nursery.start_soon(self._supervisor.keep, "event-feed", self.feed.run)
            nursery.start_soon(self._supervisor.keep, "members", self._keep_members)
            await nursery.start(self.mesh.run)
            self.phases.reach("mesh")
            if self.vpn is None:
                # says to our own nodes that we are none that waits for an address
                self.ledger.announce(LEASE_BUCKET, self.mesh.peer_id, LeaseNote(LeaseState.NONE).text())
            if self.vpn is not None and self.lease is not None:
                nursery.start_soon(self._supervisor.keep, "vpn", self.vpn.run)
                nursery.start_soon(self._supervisor.keep, "lease", self.lease.run)
            for service in self.services:
                nursery.start_soon(self._supervisor.keep, service.name, service.run)
            task_status.started()

    async def _serve_api(self, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        await serve(
            self.backend,
            self.settings.api_listen,
            unix_mode=parse_unix_mode(self.settings.api_unix_mode, 0o600),
            environ=os.environ,
            task_status=task_status,
        )

    async def _pump_messages(self) -> None:
        async for message in self.mesh.messages.clone():
            self.ledger.receive(message.data, message.author, message.via)
            self.phases.reach("ledger")

    async def _keep_members(self) -> None:
        """Tell the mesh whose connections stay when there are too many: peers that live, and those with an address."""
        while True:
            seen = self.ledger.revision
            ledger = self.ledger.ledger
            live = ledger.live_peers(self._clock.now(), self.settings.offline_after)
            machines = parse_machines(ledger.bucket(MACHINES_BUCKET) or {}).values()
            self.mesh.protect({*live, *machines, *self.settings.limits.only_peers})
            with trio.move_on_after(MEMBERS_AGAIN):
                await self.ledger.wait_revision(seen, _MEMBER_BUCKETS)

    async def _pump_events(self) -> None:
        async for event in self.mesh.events.clone():
            self.feed.mesh_event(event)
            match event:
                case PeerSubscribed(peer):
                    log.info("peer %s is in the ledger room", peer)
                    self.phases.reach("peers")
                    self.ledger.peer_joined(peer)
                case PeerUnsubscribed(peer):
                    self.ledger.peer_left(peer)
                case PeerConnected(peer):
                    if self.vpn is not None:
                        self.vpn.greet(peer)
                case PeerDisconnected(peer):
                    self.ledger.peer_left(peer)
                    if self.vpn is not None:
                        self.vpn.forget(peer)
                case EpochChanged(counter):
                    log.info("epoch %d: topic and seal key changed", counter)
            if self.lease is not None:
                self.lease.poke()
            if self.vpn is not None:
                self.vpn.room_changed()


def _mesh_settings(settings: DaemonSettings, seed: bytes) -> MeshSettings:
    return MeshSettings(
        seed=seed,
        token=settings.token,
        listen=settings.listen,
        bootstrap_peers=settings.bootstrap_peers,
        mdns=settings.mdns,
        dht=_dht_settings(settings) if settings.dht else None,
        blocked_networks=(
            *((str(settings.address.network),) if settings.vpn else ()),
            *settings.limits.blocked_networks,
        ),
        blocked_peers=settings.limits.blocked_peers,
        only_peers=settings.limits.only_peers,
        limits=settings.limits.connections,
        public_room=settings.trust.guard,
    )


def _dht_settings(settings: DaemonSettings) -> DhtSettings:
    chosen = settings.dht_settings
    return DhtSettings(mode=chosen.mode, interval=chosen.interval, announce=chosen.announce)


def _ledger_settings(settings: DaemonSettings) -> LedgerSettings:
    return LedgerSettings(
        mode=settings.ownership,
        ownership_ttl=settings.liveness_window,
        heartbeat_interval=settings.heartbeat_interval,
        sync_interval=settings.sync_interval,
        announce_interval=settings.announce_interval,
        offline_after=settings.offline_after,
        scrub_interval=settings.scrub_interval,
    )
