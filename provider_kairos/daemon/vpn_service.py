"""The VPN interface and its traffic: brings ``edgevpn0`` up with the leased address, then lets packets flow.

The interface is persistent (docs/decisions/0006), unless told otherwise: it outlives the daemon, because k3s loses its
overlay with it. On a change of address the old one is taken off first. While packets flow the interface is watched:
when somebody takes the address away, sets it down or deletes it, it is put right or made anew. What the machine
refuses is a typed reason and is tried again; the mesh and the ledger go on without the interface.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from provider_kairos.api.model import VpnStatus
from provider_kairos.clock import Clock
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.packet_pump import PacketPump
from provider_kairos.daemon.reasons import InterfaceNotReady, LeaseNotSaved
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.status import Phases
from provider_kairos.daemon.supervision import known_error
from provider_kairos.daemon.vpn_interface import Links, VpnInterface
from provider_kairos.errors import HostError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.node import Mesh
from provider_kairos.system.tun import Tun, open_tun

if TYPE_CHECKING:
    from provider_kairos.daemon.lease_service import LeaseService

__all__ = ["VpnService"]

log = logging.getLogger(__name__)

RETRY = 3.0
"""Seconds until what the machine refused is tried again."""

LOOK_AGAIN = 1.0
"""Seconds between two looks at the interface, however much happens to this machine's links."""


class VpnService:
    """``use_address`` is told by the lease which address to use; None means none any more."""

    def __init__(
        self,
        settings: DaemonSettings,
        ledger: LedgerService,
        mesh: Mesh,
        clock: Clock,
        phases: Phases,
        *,
        open_device: Callable[[str], Tun] | None = None,
        links: Links | None = None,
    ) -> None:
        self.settings = settings
        self.lease: LeaseService | None = None
        self._phases = phases
        self._address: tuple[str, int] | None = None
        self._changed = trio.Event()
        self._interface = VpnInterface(settings.interface, settings.mtu, links)
        self._open_device = open_device or self._open_tun
        self._trouble: HostError | None = None
        self._ready = False
        self._was_ready = False
        self._pump = PacketPump(settings, ledger, mesh, clock)

    # -- told from outside

    def use_address(self, address: tuple[str, int] | None) -> None:
        """The lease has an address (with its prefix length), or gave it up."""
        self._address = address
        if address is not None:
            self._phases.reach("address")
        self._changed.set()

    def forget(self, peer: PeerId) -> None:
        """A peer is gone: its streams are too."""
        self._pump.forget(peer)

    def room_changed(self) -> None:
        """A peer came into the ledger room or left it."""
        self._pump.room_changed()

    def greet(self, peer: PeerId) -> None:
        """A peer is connected: what waits for it may go now."""
        self._pump.greet(peer)

    # -- what is known

    def status(self) -> VpnStatus:
        """Interface and address."""
        address = f"{self._address[0]}/{self._address[1]}" if self._address and self._ready else None
        return {
            "enabled": True,
            "interface": self.settings.interface,
            "address": address,
            "mtu": self.settings.mtu,
        }

    def waiting(self) -> list[Waiting]:
        """Why it does not run."""
        reasons: list[Waiting] = list(self.lease.waiting()) if self.lease else []
        if self.lease is not None and self.lease.trouble is not None:
            reasons.append(LeaseNotSaved(str(self.lease.trouble)))
        if self._trouble is not None:
            reasons.append(InterfaceNotReady(self.settings.interface, str(self._trouble)))
        return [*reasons, *self._interface.conflicts]

    @property
    def counters(self) -> Counter[str]:
        """Packets, by what became of them."""
        return self._pump.counters

    def _open_tun(self, name: str) -> Tun:
        return open_tun(name, None, persistent=self.settings.persistent_interface)

    # -- task

    async def run(self) -> None:
        """Keep the interface as the lease wants it, until cancelled."""
        while True:
            self._changed = trio.Event()
            address = self._address
            if address is None:
                await self._changed.wait()
                continue
            try:
                await self._serve(address)
            except (HostError, ExceptionGroup) as error:
                known = known_error(error)
                if not isinstance(known, HostError):
                    raise
                self._note(known)
            else:
                continue
            with trio.move_on_after(RETRY if not self._was_ready else RETRY / 3):
                await self._changed.wait()

    async def _serve(self, address: tuple[str, int]) -> None:
        """Let packets flow until the address changes. Raises HostError, perhaps in a group, when the machine refuses."""
        name, text = self.settings.interface, f"{address[0]}/{address[1]}"
        self._was_ready = False
        with self._open_device(name) as tun:
            if self.settings.bootstrap_interface:
                self._interface.put_right(text)
            self._was_ready = self._ready = True
            self._trouble = None
            self._phases.reach("interface")
            log.info("interface %s has %s", name, text)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._pump.run, tun)
                    if self.settings.bootstrap_interface:
                        nursery.start_soon(self._watch_interface, text)
                    await self._changed.wait()
                    nursery.cancel_scope.cancel()
            finally:
                self._ready = False

    async def _watch_interface(self, address: str) -> None:
        """Put the interface right whenever something on this machine changes it. Raises HostError when that fails."""
        with self._interface.links.watch() as changes:
            while True:
                # looked at before the first wait too: something may have happened before we listened
                if done := self._interface.put_right(address):
                    log.warning(
                        "interface %s was changed by somebody; again: %s", self._interface.name, ", ".join(done)
                    )
                await trio.sleep(LOOK_AGAIN)
                await changes.wait()

    def _note(self, error: HostError) -> None:
        if str(error) != str(self._trouble):
            log.error("interface %s: %s", self.settings.interface, error)
        self._trouble = error
