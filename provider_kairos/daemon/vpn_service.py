"""The VPN interface and its traffic: brings ``edgevpn0`` up with the leased address, then lets packets flow.

The interface is persistent (docs/decisions/0006): it outlives the daemon, because k3s loses its overlay with it. On a
change of address the old one is taken off first. What the machine refuses is a typed reason and is tried again; the
mesh and the ledger go on without the interface.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio

from provider_kairos.api.model import VpnStatus
from provider_kairos.clock import Clock
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.packet_pump import PacketPump
from provider_kairos.daemon.reasons import InterfaceNotReady
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.status import Phases
from provider_kairos.errors import HostError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.node import Mesh
from provider_kairos.system.links import LinkManager
from provider_kairos.system.tun import Tun, open_tun

if TYPE_CHECKING:
    from provider_kairos.daemon.lease_service import LeaseService

__all__ = ["VpnService"]

log = logging.getLogger(__name__)

RETRY = 3.0


class VpnService:
    """``use_address`` is told by the lease which address to use; None means none any more."""

    def __init__(
        self, settings: DaemonSettings, ledger: LedgerService, mesh: Mesh, clock: Clock, phases: Phases
    ) -> None:
        self.settings = settings
        self.lease: LeaseService | None = None
        self._phases = phases
        self._address: tuple[str, int] | None = None
        self._changed = trio.Event()
        self._links = LinkManager()
        self._trouble: HostError | None = None
        self._ready = False
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
            reasons.append(InterfaceNotReady(self.settings.interface, f"the lease is not saved: {self.lease.trouble}"))
        if self._trouble is not None:
            reasons.append(InterfaceNotReady(self.settings.interface, str(self._trouble)))
        return reasons

    @property
    def counters(self) -> Counter[str]:
        """Packets, by what became of them."""
        return self._pump.counters

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
                tun = self._bring_up(address)
            except HostError as error:
                if str(error) != str(self._trouble):
                    log.error("interface %s: %s", self.settings.interface, error)  # noqa: TRY400 - no traceback needed
                self._trouble = error
                with trio.move_on_after(RETRY):
                    await self._changed.wait()
                continue
            self._trouble = None
            self._ready = True
            self._phases.reach("interface")
            log.info("interface %s has %s/%d", self.settings.interface, *address)
            try:
                await self._serve(tun, address[0])
            except HostError as error:  # somebody deleted the interface: made anew
                self._trouble = error
                log.error("%s", error)  # noqa: TRY400 - no traceback needed
                await trio.sleep(RETRY / 3)
            finally:
                self._ready = False
                tun.close()

    async def _serve(self, tun: Tun, address: str) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._pump.run, tun, address)
            await self._changed.wait()
            nursery.cancel_scope.cancel()

    def _bring_up(self, address: tuple[str, int]) -> Tun:
        """Open the interface and give it exactly this address. Raises HostError."""
        name, text = self.settings.interface, f"{address[0]}/{address[1]}"
        if not self.settings.bootstrap_interface:
            return open_tun(name, None)
        tun = open_tun(name, self.settings.mtu)
        try:
            for old in self._links.addresses(name):
                if old.ip.version == 4 and str(old.ip) != text:
                    self._links.delete_address(name, str(old.ip))
            self._links.add_address(name, text)
            self._links.set_up(name)
        except BaseException:
            tun.close()
            raise
        return tun
