"""Leases this node's virtual IP: steps the sans-IO lease engine with what the ledger and the mesh show.

Stepped after every change of the ledger, when a peer comes or goes, and at the engine's next wake-up. The address goes
into the lease file before anybody else hears of it, so that a power cut never makes this node forget an address that
others saw (docs/decisions/0005-state-on-disk.md). Whether the address may ever change is read from the role on disk: a
control-plane node's is for life.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from random import Random

import trio

from provider_kairos.clock import Clock
from provider_kairos.daemon.lease_file import LeaseFile
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.errors import HostError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.ledger.engine import HEARTBEATS
from provider_kairos.system.machine import architecture, hostname
from provider_kairos.vpn.lease import LeaseEngine, LeaseSettings
from provider_kairos.vpn.lease_values import (
    Assigned,
    LeaseView,
    PublishNote,
    RefreshMachine,
    Released,
    TakeLead,
    WithdrawMachine,
)
from provider_kairos.vpn.records import DHCP_BUCKET, LEASE_BUCKET, MACHINES_BUCKET, machine_record, parse_machines

__all__ = ["LeaseService", "RoleOnDisk"]

log = logging.getLogger(__name__)

RETRY_DISK = 5.0
"""Seconds until a lease that the disk refused is written again."""

_BUCKETS = frozenset({MACHINES_BUCKET, LEASE_BUCKET, DHCP_BUCKET, HEARTBEATS})


class RoleOnDisk:
    """Whether this machine is a control-plane node, as the provider wrote it down; re-read when the file changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self._control_plane = False

    def is_control_plane(self) -> bool:
        """True for a first or additional master."""
        try:
            stat = self._path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp != self._stamp:
                role = json.loads(self._path.read_bytes()).get("role", "")
                self._control_plane = str(role).partition("/")[0] == "master"
                self._stamp = stamp
        except (OSError, ValueError, AttributeError):
            # no role yet, or half a file of a foreign hand: the address is free to change
            self._control_plane = False
        return self._control_plane


class LeaseService:
    """``on_address`` is called with the address and its prefix length, or None when it was given up."""

    def __init__(
        self,
        settings: DaemonSettings,
        ledger: LedgerService,
        peer_id: PeerId,
        clock: Clock,
        *,
        connected: Callable[[], frozenset[PeerId]],
        on_address: Callable[[tuple[str, int] | None], None],
        rng: Random,
        role: RoleOnDisk,
        version: str,
    ) -> None:
        self._settings = settings
        self._ledger = ledger
        self._peer_id = peer_id
        self._clock = clock
        self._connected = connected
        self._on_address = on_address
        self._role = role
        self._version = version
        self._file = LeaseFile(settings.lease_dir, settings.token)
        self._rng = rng
        self._engine: LeaseEngine | None = None
        self._poke = trio.Event()
        self.trouble: HostError | None = None

    @property
    def address(self) -> str | None:
        """The address in use."""
        return self._engine.address if self._engine else None

    def waiting(self) -> tuple[Waiting, ...]:
        """Why there is no address yet, or what is wrong with it."""
        return self._engine.waiting() if self._engine else ()

    def poke(self) -> None:
        """A peer came or went."""
        self._poke.set()

    async def run(self) -> None:
        """Lease and keep the address until cancelled."""
        saved = None
        if self._settings.dhcp:
            saved = await trio.to_thread.run_sync(self._file.read)
        self._engine = LeaseEngine(
            LeaseSettings(str(self._settings.address), static=not self._settings.dhcp, hostname=hostname()),
            self._peer_id,
            saved,
            self._rng,
            pinned=self._role.is_control_plane(),
        )
        while True:
            self._poke = trio.Event()
            seen = self._ledger.revision
            await self._step(self._engine)
            due = self._engine.next_wakeup()
            delay = math.inf if due is None else max(0.0, due - self._clock.now().mono)
            if self.trouble is not None:
                delay = min(delay, RETRY_DISK)
            with trio.move_on_after(delay):
                await self._changed_since(seen)
            if self.trouble is not None and self._engine.address is not None:
                await self._save(self._engine.address)

    async def _changed_since(self, revision: int) -> None:
        """Return when a bucket that matters changed after ``revision`` or :meth:`poke` was called."""
        async with trio.open_nursery() as nursery:

            async def watch_ledger() -> None:
                await self._ledger.wait_revision(revision, _BUCKETS)
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch_ledger)
            await self._poke.wait()
            nursery.cancel_scope.cancel()

    def _view(self) -> LeaseView:
        now = self._clock.now()
        ledger = self._ledger.ledger
        return LeaseView(
            machines=ledger.bucket(MACHINES_BUCKET) or {},
            notes=ledger.bucket(LEASE_BUCKET) or {},
            dhcp=ledger.bucket(DHCP_BUCKET) or {},
            live=frozenset(ledger.live_peers(now, self._settings.offline_after)),
            connected=self._connected(),
        )

    async def _step(self, engine: LeaseEngine) -> None:
        # only ever set: the provider never takes a control-plane role away
        engine.pinned = engine.pinned or self._role.is_control_plane()
        for effect in engine.step(self._view(), self._clock.now()):
            match effect:
                case PublishNote(text, key, bucket):
                    self._ledger.announce(bucket, key, text)
                case TakeLead(text, bucket, key):
                    self._ledger.persist(bucket, key, text)
                case Assigned(address, prefix):
                    await self._assigned(address, prefix)
                case Released(address, reason):
                    await self._released(address, reason)
                case WithdrawMachine(address):
                    self._withdraw(address)
                case RefreshMachine(address):
                    self._ledger.delete(MACHINES_BUCKET, address)
                    self._announce(address)

    async def _assigned(self, address: str, prefix: int) -> None:
        log.info("virtual IP %s/%d", address, prefix)
        if self._settings.dhcp:
            await self._save(address)
        self._announce(address)
        self._on_address((address, prefix))

    async def _released(self, address: str, reason: str) -> None:
        log.warning("gave up virtual IP %s: %s", address, reason)
        self._on_address(None)
        self.trouble = None
        try:
            await trio.to_thread.run_sync(self._file.remove)
        except OSError as error:
            log.warning("the lease file cannot be removed: %s", error)

    async def _save(self, address: str) -> None:
        try:
            await trio.to_thread.run_sync(self._file.write, address)
        except (HostError, OSError) as error:
            # better an address that may change at the next boot than none: said in status and in the log, tried again
            if self.trouble is None:
                log.error("the lease is not saved: %s", error)  # noqa: TRY400 - the message is the whole story
            self.trouble = error if isinstance(error, HostError) else HostError(str(error))
        else:
            if self.trouble is not None:
                log.info("the lease is saved now")
            self.trouble = None

    def _withdraw(self, address: str) -> None:
        self._ledger.retract(MACHINES_BUCKET, address)
        machines = self._ledger.ledger.bucket(MACHINES_BUCKET) or {}
        # the winner of a conflict may have written its own record there by now
        if parse_machines(machines).get(address) == self._peer_id:
            self._ledger.delete(MACHINES_BUCKET, address)

    def _announce(self, address: str) -> None:
        record = machine_record(self._peer_id, hostname(), architecture(), address, self._version)
        self._ledger.announce(MACHINES_BUCKET, address, record)
