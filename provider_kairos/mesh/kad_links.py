"""Connections to other DHT nodes: made for a question, closed when nobody asks any more.

A lookup meets dozens of nodes that have nothing to do with our network. They are dialled like any peer, but are not
kept: the connection is closed :data:`IDLE` seconds after the last question. Those that were made to us are the other
side's to close, and the swarm's when there are too many. Peers that the dialer keeps, or that are in our room, are never
touched. A node that did not answer is left alone for a while. Addresses that a DHT hands out are anybody's claim: the VPN, ourselves and (unless we
live there) this machine's loopback are not dialled.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Protocol

import trio

from provider_kairos.ids import PeerId
from provider_kairos.mesh.addresses import Endpoint, Networks
from provider_kairos.mesh.muxer_stream import Stream
from provider_kairos.mesh.swarm import Connection, DialError

__all__ = ["Links", "Network", "dial_any"]

log = logging.getLogger(__name__)

IDLE = 20.0
DIAL_TIMEOUT = 8.0
"""Seconds for all addresses of a node together."""

STAGGER = 0.25
MAX_ADDRESSES = 4
MAX_DIALS = 32
DEAD_FOR = 120.0
"""Seconds for which a node that did not answer is not asked again."""

MAX_DEAD = 512
LOOK = 5.0
MAX_CONTACTS = 1024


class Network(Protocol):
    """What is needed of the swarm."""

    def preferred(self, peer: PeerId) -> Connection | None:
        """The connection for new streams."""

    def connections(self, peer: PeerId) -> list[Connection]:
        """All connections to a peer."""

    def peers(self) -> list[PeerId]:
        """Connected peers."""

    def dial(self, endpoint: Endpoint, expected: PeerId | None) -> Awaitable[Connection]:
        """Connect; raises DialError."""

    def open_stream(self, peer: PeerId, protocols: Sequence[str]) -> Awaitable[Stream]:
        """A stream on which a protocol is agreed."""


async def dial_any(
    network: Network, peer: PeerId, endpoints: Iterable[Endpoint], limit: trio.CapacityLimiter, timeout: float
) -> None:
    """Connect a peer at the first address that answers; the next is tried beside it shortly after. Raises DialError."""
    errors: list[str] = []
    done = False
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + timeout

        async def attempt(endpoint: Endpoint, failed: trio.Event) -> None:
            nonlocal done
            try:
                async with limit:
                    await network.dial(endpoint, peer)
            except DialError as error:
                errors.append(str(error))
                failed.set()
            else:
                done = True
                nursery.cancel_scope.cancel()

        for endpoint in endpoints:
            failed = trio.Event()
            nursery.start_soon(attempt, endpoint, failed)
            with trio.move_on_after(STAGGER):
                await failed.wait()
    if not done and network.preferred(peer) is None:
        raise DialError(errors[-1] if errors else f"{peer}: no answer within {timeout:.0f} s, or no address to dial")


class Links:
    """Connections of the DHT. ``keeps`` says whom others keep connected; ``own`` are our own addresses."""

    def __init__(
        self,
        network: Network,
        blocked: Networks,
        *,
        keeps: Callable[[PeerId], bool],
        own: Callable[[], Iterable[str]],
    ) -> None:
        self._network = network
        self._blocked = blocked
        self._keeps = keeps
        self._own = own
        self._used: OrderedDict[PeerId, float] = OrderedDict()  # the longest unused first
        self._dead: OrderedDict[PeerId, float] = OrderedDict()
        self._dialling: dict[PeerId, trio.Event] = {}
        self._limit = trio.CapacityLimiter(MAX_DIALS)

    async def run(self) -> None:
        """Close what is idle, until cancelled."""
        while True:
            await trio.sleep(LOOK)
            self._close_idle()

    def is_contact(self, peer: PeerId) -> bool:
        """Whether a peer is connected for the DHT's sake alone."""
        return peer in self._used and not self._keeps(peer)

    def used(self, peer: PeerId) -> None:
        """A question passed, one way or the other."""
        self._used[peer] = trio.current_time()
        self._used.move_to_end(peer)
        while len(self._used) > MAX_CONTACTS:
            self._used.popitem(last=False)

    def usable(self, endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
        """Addresses that may be dialled, public ones first."""
        own = set(self._own())
        at_home = bool(own) and all(each.startswith(("/ip4/127.", "/ip6/::1/")) for each in own)
        found: list[tuple[bool, Endpoint]] = []
        for endpoint in dict.fromkeys(endpoints):
            address = endpoint.ip
            if endpoint.host in self._blocked or str(endpoint) in own:
                continue
            if address is not None and (address.is_link_local or (address.is_loopback and not at_home)):
                continue
            found.append((address is not None and not address.is_global, endpoint))
        return tuple(endpoint for _, endpoint in sorted(found, key=lambda each: each[0]))

    async def connect(self, peer: PeerId, endpoints: Iterable[Endpoint], *, anyway: bool = False) -> None:
        """Have a connection to a peer; ``anyway`` also to one that was silent a moment ago. Raises DialError."""
        while self._network.preferred(peer) is None:
            if (other := self._dialling.get(peer)) is not None:
                await other.wait()
                anyway = False
                continue
            if not anyway and self._dead.get(peer, float("-inf")) > trio.current_time():
                raise DialError(f"{peer} did not answer a moment ago")
            self.used(peer)
            self._dialling[peer] = trio.Event()
            try:
                chosen = self.usable(endpoints)[:MAX_ADDRESSES]
                await dial_any(self._network, peer, chosen, self._limit, DIAL_TIMEOUT)
            except DialError:
                self.silent(peer)
                raise
            finally:
                self._dialling.pop(peer).set()
            break
        self.used(peer)

    def silent(self, peer: PeerId) -> None:
        """A peer does not answer: leave it alone for a while."""
        self._dead[peer] = trio.current_time() + DEAD_FOR
        self._dead.move_to_end(peer)
        while len(self._dead) > MAX_DEAD:
            self._dead.popitem(last=False)

    def answers(self, peer: PeerId) -> None:
        """A peer answers."""
        self._dead.pop(peer, None)

    def _close_idle(self) -> None:
        now = trio.current_time()
        for peer, used_at in list(self._used.items()):
            if now - used_at < IDLE:
                break
            if peer in self._dialling:
                continue
            connections = self._network.connections(peer)
            if not connections or self._keeps(peer):
                del self._used[peer]
                continue
            for connection in connections:
                if connection.outbound:
                    connection.muxer.close()
