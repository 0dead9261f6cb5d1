"""Discovery over a DHT: find a way in, meet the nodes of our network there, again and again (spec/edgevpn.md 6.2).

With no contact in the table the bootstrap peers are tried, ever less often while none answers, anew at once when this
machine's addresses change. A server needs none: it may be the first of its DHT. With a contact the rounds of :mod:`rendezvous` run, points side by side and each with a time limit:
one that hangs costs nobody else anything. Who is found goes to the dialer; a record whose owner cannot be reached (EdgeVPN's
nodes change their identity at every start and leave such records behind for a day) is tried ever less often. Nothing
here ends the mesh, and why it does not work is a typed reason.

Mode ``auto`` is a client: whether others can reach us is not found out yet (that takes AutoNAT, as does everything about
relays and hole punching; :attr:`Kad.server` is where their answer would go).
"""

from __future__ import annotations

import logging
import random
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import PeerError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.addresses import Endpoint
from provider_kairos.mesh.bootstrap import Bootstrap
from provider_kairos.mesh.kad import Kad, Meeting
from provider_kairos.mesh.kad_wire import KadMessage, KadPeer, Kind
from provider_kairos.mesh.multistream import NegotiationError
from provider_kairos.mesh.rendezvous import Point, Rendezvous
from provider_kairos.mesh.views import DhtNobodyFound, DhtNoBootstrap

__all__ = ["Dht"]

log = logging.getLogger(__name__)

POINT_TIMEOUT = 60.0
POINTS_AT_ONCE = 2
RETRY_FIRST, RETRY_MOST = 2.0, 300.0
"""Seconds between two tries of all bootstrap peers."""

LOOK = 10.0
"""Seconds between two looks at our own addresses."""

LEAD_FIRST, LEAD_MOST = 20.0, 1800.0
"""Seconds until a found peer that could not be reached is tried once more."""

FOLLOWED = 3
"""Times that a found peer is tried again without being found again: the first try may fall into a busy moment."""

FOLLOW = 5.0
"""Seconds between two looks at whose turn it is."""

MAX_LEADS = 512
ENOUGH = 3
"""Contacts below which the bootstrap peers are asked now and then."""


@dataclass(slots=True)
class _Lead:
    """A peer that was found: where, how often it was tried, and from when on it may be tried again."""

    endpoints: tuple[Endpoint, ...]
    tries: int = 0
    due: float = float("-inf")


class Dht:
    """The discovery of one host. ``lead`` takes a peer and its addresses.

    ``room`` are the peers of our network that are connected; ``busy`` says whether a peer is connected or being dialled.
    """

    def __init__(
        self,
        kad: Kad,
        bootstrap: Bootstrap,
        rendezvous: Rendezvous,
        clock: Clock,
        rng: random.Random,
        *,
        lead: Callable[[PeerId, Iterable[Endpoint]], None],
        busy: Callable[[PeerId], bool],
        room: Callable[[], set[PeerId]],
        addresses: Callable[[], Iterable[str]],
    ) -> None:
        self.kad = kad
        self._bootstrap = bootstrap
        self._rendezvous = rendezvous
        self._clock = clock
        self._rng = rng
        self._lead = lead
        self._busy = busy
        self._room = room
        self._addresses = addresses
        self._counts: Counter[str] = Counter()
        self._leads: OrderedDict[PeerId, _Lead] = OrderedDict()
        self._trouble: DhtNoBootstrap | None = None
        self._rounds = 0
        self._wake = trio.Event()
        kad.on_first_contact = self.wake

    @property
    def counters(self) -> Counter[str]:
        """What happened, by kind."""
        return self._counts + self.kad.counters

    def _alone(self) -> bool:
        return not self._room()

    def waiting(self) -> list[Waiting]:
        """Why nobody is found; of interest while nobody of ours is connected."""
        nodes = len(self.kad.table)
        if nodes:
            return [DhtNobodyFound(nodes)] if self._rounds else []
        return [self._trouble] if self._trouble is not None else []

    def wake(self) -> None:
        """Something changed (the last peer of our room is gone): look whether a round is due."""
        self._wake.set()

    def again(self) -> None:
        """A bootstrap peer is back, perhaps without the records that it held: a full round is due."""
        self._rendezvous.hurry()
        self._wake.set()

    async def run(self) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.kad.run)
            nursery.start_soon(self._keep_a_way_in)
            nursery.start_soon(self._follow_leads)
            while True:
                self._wake = trio.Event()
                if not len(self.kad.table) and not self.kad.server:
                    await self._wake.wait()
                    continue
                await self._round()
                with trio.move_on_after(self._rendezvous.wait(self._clock.now(), alone=self._alone())):
                    await self._wake.wait()

    # --- the way in -------------------------------------------------------------------------------------------------

    async def _keep_a_way_in(self) -> None:
        """Knock at the bootstrap peers' while we know nobody, and now and then while we know few."""
        pause = RETRY_FIRST
        while True:
            if len(self.kad.table) < ENOUGH:
                await self._knock()
            empty = not len(self.kad.table)
            wait = pause * self._rng.uniform(0.75, 1.25) if empty else RETRY_MOST
            pause = min(pause * 2, RETRY_MOST) if empty else RETRY_FIRST
            if await self._changes_within(wait, empty=empty):
                pause = RETRY_FIRST

    async def _knock(self) -> None:
        """Ask all bootstrap peers at once; whoever answers is a contact from then on."""
        before = len(self.kad.table)
        found = await self._bootstrap.peers()
        peers = {peer: endpoints for peer, endpoints in found.items() if peer != self.kad.me}
        message = KadMessage(Kind.FIND_NODE, multiaddr.peer_id_bytes(self.kad.me))
        refused = 0

        async def ask(peer: PeerId) -> None:
            nonlocal refused
            try:
                await self.kad.ask(peer, peers[peer], message, trusted=True)
            except PeerError as error:
                log.debug("bootstrap peer %s: %s", peer, error)
                refused += isinstance(error, NegotiationError)

        async with trio.open_nursery() as nursery:
            for peer in peers:
                nursery.start_soon(ask, peer)
        if len(self.kad.table) > before:
            log.info("the DHT is reached: %d of %d bootstrap peers answer", len(self.kad.table), len(peers))
            self._trouble = None
            await self.kad.look_around()
        elif not before and (peers or not self.kad.server):  # a server may be the first one of its DHT
            self._counts["dht_bootstrap_failed"] += 1
            trouble = DhtNoBootstrap(len(peers), refused)
            if self._trouble is None:
                log.warning("%s; it is tried again", trouble.text())
            self._trouble = trouble

    async def _changes_within(self, seconds: float, *, empty: bool) -> bool:
        """True when this machine's addresses changed meanwhile, or the table is ``empty`` no longer, or now."""
        before = list(self._addresses())
        until = trio.current_time() + seconds
        while (left := until - trio.current_time()) > 0:
            await trio.sleep(min(left, LOOK))
            if (not len(self.kad.table)) != empty or list(self._addresses()) != before:
                return True
        return False

    # --- rounds -----------------------------------------------------------------------------------------------------

    async def _round(self) -> None:
        """Meet at every point that is due."""
        now = self._clock.now()
        alone = self._alone()
        full = self._rendezvous.full_round_due(now, alone=alone)
        points = self._rendezvous.points(now, alone=alone) if full else self._rendezvous.new_points(now)
        if not points:
            return
        limit = trio.CapacityLimiter(POINTS_AT_ONCE)
        async with trio.open_nursery() as nursery:
            for point in points:
                nursery.start_soon(self._meet, point, limit)
        self._rounds += 1
        self._counts["dht_rounds"] += 1
        if full:
            self._rendezvous.done(self._clock.now(), alone=self._alone())

    async def _meet(self, point: Point, limit: trio.CapacityLimiter) -> None:
        async with limit:
            meeting = Meeting()
            with trio.move_on_after(POINT_TIMEOUT):
                meeting = await self.kad.meet(point.key, provide=point.provide, found=self._take)
        if meeting.told:
            self._rendezvous.announced(point)
        log.debug("rendezvous: %d nodes answered, %d told, %d found", meeting.answered, meeting.told, meeting.found)

    def _take(self, provider: KadPeer) -> None:
        """Somebody was found at our rendezvous."""
        peer = provider.peer
        endpoints = self.kad.links.usable(provider.endpoints())
        if not endpoints:
            self._counts["dht_peers_without_tcp_address"] += 1
            return
        lead = self._leads.pop(peer, None) or _Lead(endpoints)
        if peer in self._room():
            return
        lead.endpoints = endpoints
        self._leads[peer] = lead
        while len(self._leads) > MAX_LEADS:
            self._leads.popitem(last=False)
        self._follow(peer, lead)

    def _follow(self, peer: PeerId, lead: _Lead) -> None:
        """Have a peer dialled if it is its turn."""
        now = trio.current_time()
        if now >= lead.due and not self._busy(peer):
            self._counts["dht_peers_found"] += 1
            self._lead(peer, lead.endpoints)
            lead.due = now + min(LEAD_FIRST * 2**lead.tries, LEAD_MOST)
            lead.tries = min(lead.tries + 1, 16)

    async def _follow_leads(self) -> None:
        """Try those again that were found not long ago."""
        while True:
            await trio.sleep(FOLLOW)
            room = self._room()
            for peer, lead in list(self._leads.items()):
                if peer in room:
                    del self._leads[peer]
                elif lead.tries <= FOLLOWED:
                    self._follow(peer, lead)
