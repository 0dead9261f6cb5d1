"""Whom to connect, where and when (spec/libp2p.md 4.3; spec/edgevpn.md 6.1, 6.2).

One task per known peer keeps it connected: all its addresses are tried, the likeliest first, the next one shortly
after when there is no answer yet; failures are remembered per address, and the pause between rounds grows per peer,
with jitter. A fresh find (mDNS, DHT, identify) ends the pause. What a DHT says of a peer may be a day old: such a lead gets
a few rounds, side by side with others, and is forgotten when nobody answers, until it is found once more. When both sides find each other at once, the one with the
smaller peer ID dials and the other gives it a moment. How a connection is made is
:mod:`provider_kairos.mesh.swarm`'s business.
"""

from __future__ import annotations

import ipaddress
import logging
import random
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import Protocol

import trio

from provider_kairos.ids import PeerId
from provider_kairos.mesh.addresses import Endpoint, Networks, parse_endpoint
from provider_kairos.mesh.swarm import Connection, DialError

__all__ = ["Dialer", "Known"]

log = logging.getLogger(__name__)

STAGGER = 0.15
"""Seconds that an address has before the next one is tried beside it."""

COURTESY = 0.08
"""Seconds that the larger peer ID waits for the smaller one's dial."""

PAUSE_FIRST, PAUSE_MOST = 0.25, 30.0
STABLE = 10.0
"""Seconds after which a connection counts as a success that resets the pause."""

MAX_KNOWN = 1024
MAX_ADDRESSES = 32
MAX_DIALS = 32
MAX_LEAD_DIALS = 64
LEAD_ROUNDS = 2
"""Rounds of dialling for a peer that a DHT told us of."""

FORGET_AFTER = 3600.0
"""Seconds after which a peer that cannot be reached is forgotten, unless it is a bootstrap peer."""


class Dialing(Protocol):
    """What the dialer needs of the swarm."""

    def preferred(self, peer: PeerId) -> Connection | None:
        """The live connection to a peer."""

    def dial(self, endpoint: Endpoint, expected: PeerId | None) -> Awaitable[Connection]:
        """Connect; raises DialError."""


@dataclass(slots=True)
class Known:
    """What is known of one peer. ``endpoints`` maps to failures in a row.

    ``source`` is who told us first: mdns, dht, bootstrap, inbound, or something else. ``rounds`` are those that are left
    to a lead; None for a peer that is dialled until it is forgotten.
    """

    peer: PeerId
    endpoints: dict[Endpoint, int] = field(default_factory=dict)
    failures: int = 0
    last_error: str = ""
    heard_at: float = 0.0
    permanent: bool = False
    source: str = ""
    rounds: int | None = None
    wake: trio.Event = field(default_factory=trio.Event)
    changed: trio.Event = field(default_factory=trio.Event)


class Dialer:
    """Keeps known peers connected."""

    def __init__(
        self,
        me: PeerId,
        network: Dialing,
        blocked: Networks,
        rng: random.Random,
        *,
        bootstrap: Iterable[str] = (),
        own_endpoints: Callable[[], Iterable[str]] = tuple,
        connects: Callable[[PeerId], bool] = lambda _peer: True,
    ) -> None:
        self.known: dict[PeerId, Known] = {}
        self._me = me
        self._network = network
        self._blocked = blocked
        self._rng = rng
        self._bootstrap = [text.strip() for text in bootstrap]
        self._own_endpoints = own_endpoints
        self._connects = connects
        self._limit = trio.CapacityLimiter(MAX_DIALS)
        self._lead_limit = trio.CapacityLimiter(MAX_LEAD_DIALS)
        self._nursery: trio.Nursery | None = None

    async def run(self) -> None:
        """Dial until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for text in self._bootstrap:
                parsed = parse_endpoint(text)
                if parsed is None:
                    log.warning("bootstrap address %s is no TCP address, left out", text)
                    continue
                endpoint, peer = parsed
                if peer is None:
                    nursery.start_soon(self._keep_nameless, endpoint)
                else:
                    self.keep(peer, [endpoint])
            await trio.sleep_forever()

    # --- what we hear -----------------------------------------------------------------------------------------------

    def found(self, peer: str, addresses: Iterable[str], source: str = "") -> None:
        """Discovery found a peer: dial it, whatever was before."""
        parsed = [each[0] for each in map(parse_endpoint, addresses) if each is not None]
        self._learn(PeerId(peer), parsed, fresh=True, source=source)

    def lead(self, peer: PeerId, endpoints: Iterable[Endpoint]) -> None:
        """A DHT says that a peer is there: try it."""
        known = self.known.get(peer)
        rounds = None if known is not None and known.rounds is None else LEAD_ROUNDS
        self._learn(peer, endpoints, fresh=True, source="dht", rounds=rounds)

    def learn(self, peer: PeerId, endpoints: Iterable[Endpoint], *, member: bool = True) -> None:
        """A connected peer says where it listens; for when the connection is lost."""
        known = self.known.get(peer)
        rounds = known.rounds if known is not None and not member else None
        self._learn(peer, endpoints, source="inbound", rounds=rounds)

    def keep(self, peer: PeerId, endpoints: Iterable[Endpoint]) -> None:
        """A bootstrap peer: never forgotten."""
        self._learn(peer, endpoints, permanent=True, source="bootstrap")

    def connection_changed(self, peer: PeerId) -> None:
        """A connection came or went."""
        known = self.known.get(peer)
        if known is not None:
            known.changed.set()
            known.changed = trio.Event()

    def forget(self, peer: PeerId) -> None:
        """Do not connect it again by ourselves, unless it is a bootstrap peer or is found once more."""
        known = self.known.get(peer)
        if known is not None and not known.permanent:
            self._forget(known)

    async def wait_connected(self, peer: PeerId) -> bool:
        """Wait for a connection to a known peer, dialling at once; False when the peer is unknown."""
        known = self.known.get(peer)
        while self._network.preferred(peer) is None:
            if known is None:
                return False
            known.wake.set()
            await known.changed.wait()
        return True

    def _learn(
        self,
        peer: PeerId,
        endpoints: Iterable[Endpoint],
        *,
        permanent: bool = False,
        fresh: bool = False,
        source: str = "",
        rounds: int | None = None,
    ) -> None:
        if peer == self._me or not self._connects(peer):
            return
        now = trio.current_time()
        known = self.known.get(peer)
        if known is None:
            if len(self.known) >= MAX_KNOWN and not self._make_room():
                return
            known = self.known[peer] = Known(peer, source=source, rounds=rounds)
            if self._nursery is not None:
                self._nursery.start_soon(self._keep, known)
        known.heard_at = now
        known.permanent |= permanent
        known.rounds = rounds
        for endpoint in endpoints:
            if endpoint.host in self._blocked:
                continue
            if fresh:
                known.endpoints[endpoint] = 0
            else:
                known.endpoints.setdefault(endpoint, 0)
        while len(known.endpoints) > MAX_ADDRESSES:
            del known.endpoints[max(known.endpoints, key=lambda each: known.endpoints[each])]
        if fresh and self._network.preferred(peer) is None:
            known.wake.set()

    def _make_room(self) -> bool:
        spare = [each for each in self.known.values() if not each.permanent and not self._network.preferred(each.peer)]
        if not spare:
            return False
        self._forget(min(spare, key=lambda each: each.heard_at))
        return True

    def _forget(self, known: Known) -> None:
        self.known.pop(known.peer, None)
        known.wake.set()
        known.changed.set()

    # --- dialling ---------------------------------------------------------------------------------------------------

    async def _keep(self, known: Known) -> None:
        """Keep one peer connected until it is forgotten."""
        if self._me > known.peer and not known.permanent:
            await self._wait_for_theirs(known)
        while self.known.get(known.peer) is known:
            if self._network.preferred(known.peer) is not None:
                connected_at = trio.current_time()
                if known.rounds is not None:
                    known.rounds = LEAD_ROUNDS
                await known.changed.wait()
                if self._network.preferred(known.peer) is None:
                    if trio.current_time() - connected_at > STABLE:
                        known.failures = 0
                    await trio.sleep(self._rng.uniform(0, COURTESY))
                continue
            known.wake = trio.Event()
            if known.endpoints and await self._round(known):
                continue
            if self._network.preferred(known.peer) is not None:
                continue
            known.failures += 1
            if known.rounds is not None:
                known.rounds -= 1
            given_up = known.rounds == 0 or trio.current_time() - known.heard_at > FORGET_AFTER
            if not known.permanent and given_up:
                self._forget(known)
                return
            pause = min(PAUSE_FIRST * 2 ** min(known.failures - 1, 10), PAUSE_MOST)
            with trio.move_on_after(pause * self._rng.uniform(0.75, 1.25)):
                await known.wake.wait()
                await trio.sleep(self._rng.uniform(0, COURTESY))

    async def _wait_for_theirs(self, known: Known) -> None:
        with trio.move_on_after(COURTESY):
            while self._network.preferred(known.peer) is None:
                await known.changed.wait()

    async def _round(self, known: Known) -> bool:
        """Try all addresses once. True when connected."""
        order = self._order(known)
        errors: list[str] = []
        done = False

        async def attempt(endpoint: Endpoint, failed: trio.Event) -> None:
            nonlocal done
            try:
                async with self._limit if known.rounds is None else self._lead_limit:
                    await self._network.dial(endpoint, known.peer)
            except DialError as error:
                if endpoint in known.endpoints:
                    known.endpoints[endpoint] += 1
                errors.append(str(error))
                failed.set()
            else:
                known.endpoints[endpoint] = 0
                known.last_error = ""
                done = True
                nursery.cancel_scope.cancel()

        async def stand_back() -> None:
            """The peer's own dial is the better one of two: stop ours when it arrives."""
            while self._network.preferred(known.peer) is None:
                await known.changed.wait()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            if self._me > known.peer:
                nursery.start_soon(stand_back)
            async with trio.open_nursery() as attempts:
                for endpoint in order:
                    failed = trio.Event()
                    attempts.start_soon(attempt, endpoint, failed)
                    with trio.move_on_after(STAGGER):
                        await failed.wait()
            nursery.cancel_scope.cancel()
        if not done and errors:
            known.last_error = errors[-1]
        return done

    def _order(self, known: Known) -> list[Endpoint]:
        """Likeliest first: few failures, then global reach; loopback means this very machine, so it is last."""
        own = set(self._own_endpoints())

        def rank(endpoint: Endpoint) -> tuple[int, int, str]:
            kind = {"ip4": 0, "ip6": 1}.get(endpoint.family, 2)
            if endpoint.family in {"ip4", "ip6"} and ipaddress.ip_address(endpoint.host).is_loopback:
                kind = 3
            return known.endpoints[endpoint], kind, str(endpoint)

        return sorted((each for each in known.endpoints if str(each) not in own), key=rank)

    async def _keep_nameless(self, endpoint: Endpoint) -> None:
        """A bootstrap address without a peer ID: whoever answers there becomes a known peer."""
        failures = 0
        while True:
            try:
                async with self._limit:
                    connection = await self._network.dial(endpoint, None)
            except DialError as error:
                failures += 1
                log.debug("bootstrap %s: %s", endpoint, error)
            else:
                failures = 0
                self.keep(connection.peer, [endpoint])
                known = self.known.get(connection.peer)
                # Its own task reconnects it. When that fails again and again, somebody else may live there now.
                while known is not None and (self._network.preferred(known.peer) is not None or known.failures < 3):
                    with trio.move_on_after(STABLE):
                        await known.changed.wait()
            pause = min(PAUSE_FIRST * 2 ** min(failures, 10), PAUSE_MOST)
            await trio.sleep(pause * self._rng.uniform(0.75, 1.25))
