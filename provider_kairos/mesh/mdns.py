"""mDNS discovery with EdgeVPN's tag, both ways with Go nodes: the task that drives the parts.

Follows spec/edgevpn.md 6.1 and 17. :mod:`mdns_engine` decides what is sent when, :mod:`mdns_wire` knows the packets,
:mod:`mdns_sockets` the sockets; here the interfaces of the machine are watched and problems are retried. No libp2p:
addresses are texts. Dialling what was found is the caller's business.
"""

from __future__ import annotations

import contextlib
import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from random import Random
from typing import Protocol

import trio

from provider_kairos.clock import Clock, SystemClock
from provider_kairos.errors import HostError, ProviderError, TokenError
from provider_kairos.mesh.mdns_engine import Engine
from provider_kairos.mesh.mdns_sockets import MulticastSocket, open_sockets
from provider_kairos.system.links import LinkManager, LinkWatch

__all__ = ["Mdns", "MdnsSettings"]

log = logging.getLogger(__name__)

_LONGEST_SLEEP = 5.0  # our own addresses are looked at this often, should nobody call announce()
_RESCAN = 30.0  # interfaces are read anew this often, should a change have been missed
_FIRST_RETRY, _LAST_RETRY = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class MdnsSettings:
    """``tag`` is the token's; ``peer_id`` our own.

    Interfaces named in ``excluded_interfaces`` and those with an address inside ``blocked_networks`` (the VPN) are
    never used, and addresses inside ``blocked_networks`` never announced.
    """

    tag: str
    peer_id: str
    blocked_networks: tuple[str, ...] = ("10.1.0.0/24",)
    excluded_interfaces: tuple[str, ...] = ("edgevpn0",)


class _Started(Protocol):
    """What a nursery's start() hands over."""

    def started(self) -> None:
        """Say that the task works."""


class Mdns:
    """Announces this node and reports others.

    ``addresses()`` gives our listen addresses (multiaddrs without ``/p2p``), ``on_peer(peer_id, addresses)`` is called
    from the event loop for every announcement of another peer, repeats too; it must not block. ``problem`` is the
    typed reason when mDNS cannot work at the moment, else None.
    """

    def __init__(
        self,
        settings: MdnsSettings,
        addresses: Callable[[], Sequence[str]],
        on_peer: Callable[[str, list[str]], None],
        *,
        rng: Random | None = None,
        clock: Clock | None = None,
        links: LinkManager | None = None,
    ) -> None:
        self.settings = settings
        self.problem: ProviderError | None = None
        self.counters: dict[str, int] = {}
        self._addresses = addresses
        self._on_peer = on_peer
        self._rng = rng or Random()
        self._clock = clock or SystemClock()
        self._links = links or LinkManager()
        self._blocked = tuple(ipaddress.ip_network(text, strict=False) for text in settings.blocked_networks)
        self._wake = trio.Event()
        self._ask = False
        self._delay = _FIRST_RETRY

    def announce(self) -> None:
        """Look at our addresses now: they may have changed."""
        self._wake.set()

    def ask_again(self) -> None:
        """Ask the link now, and then at short intervals again."""
        self._ask = True
        self._wake.set()

    async def run(self, task_status: _Started = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled. A machine that cannot do mDNS is reported once and tried again ever less often."""
        task_status.started()
        try:
            engine = Engine(self.settings.tag, self.settings.peer_id, self._rng, self._blocked)
        except TokenError as error:
            self.problem = error
            log.error("no discovery on the local network: %s", error)  # noqa: TRY400  # the message is the whole story
            await trio.sleep_forever()
        else:
            await self._keep_working(engine)

    async def _keep_working(self, engine: Engine) -> None:
        self.counters = engine.counters
        while True:
            try:
                await self._session(engine)
            except* (OSError, ProviderError) as group:
                reason = _first(group)
                if self.problem is None:
                    log.warning("no discovery on the local network for now: %s", reason)
                self.problem = reason if isinstance(reason, ProviderError) else HostError(str(reason))
            await trio.sleep(self._delay * self._rng.uniform(0.8, 1.2))
            self._delay = min(self._delay * 2, _LAST_RETRY)

    async def _session(self, engine: Engine) -> None:
        with contextlib.ExitStack() as stack:
            sockets = open_sockets()
            for sock in sockets:
                stack.callback(sock.close)
            changes = stack.enter_context(self._links.watch())
            if self.problem is not None:
                log.info("discovery on the local network works again")
            self.problem = None
            self._delay = _FIRST_RETRY
            engine.set_interfaces((), self._clock.now())  # everything is new to these sockets
            async with trio.open_nursery() as nursery:
                self._rescan(engine, sockets)
                for sock in sockets:
                    nursery.start_soon(self._receive, engine, sock)
                nursery.start_soon(self._follow_links, engine, sockets, changes)
                await self._send_what_is_due(engine, sockets)

    def _rescan(self, engine: Engine, sockets: Sequence[MulticastSocket]) -> None:
        links = self._links.multicast_interfaces(self._is_excluded)
        if engine.set_interfaces(links, self._clock.now()):
            log.debug("mDNS on %s", ", ".join(link.name for link in links) or "no interface")
        for sock in sockets:  # also when nothing changed: a join may have failed before
            sock.join(links)
        self._wake.set()

    def _is_excluded(self, name: str, ipv4: tuple[IPv4Address, ...]) -> bool:
        return name in self.settings.excluded_interfaces or any(
            ip in network for ip in ipv4 for network in self._blocked
        )

    async def _follow_links(self, engine: Engine, sockets: Sequence[MulticastSocket], changes: LinkWatch) -> None:
        while True:
            with trio.move_on_after(_RESCAN):
                await changes.wait()
            self._rescan(engine, sockets)

    async def _receive(self, engine: Engine, sock: MulticastSocket) -> None:
        while True:
            arrival = await sock.receive()
            if arrival is None:
                continue
            for find in engine.receive(arrival, self._clock.now()):
                self._on_peer(find.peer_id, list(find.addresses))
            self._wake.set()

    async def _send_what_is_due(self, engine: Engine, sockets: Sequence[MulticastSocket]) -> None:
        while True:
            self._wake = trio.Event()
            now = self._clock.now()
            engine.set_addresses(self._addresses(), now)
            if self._ask:
                self._ask = False
                engine.ask_again(now)
            for packet in engine.poll(now):
                for sock in sockets:
                    await sock.send(packet)
            due = engine.next_wakeup()
            pause = _LONGEST_SLEEP if due is None else min(max(due - self._clock.now().mono, 0.0), _LONGEST_SLEEP)
            with trio.move_on_after(pause):
                await self._wake.wait()


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
