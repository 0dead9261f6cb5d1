"""Everything that looks for peers: mDNS, the DHT, and the names of bootstrap peers (spec/edgevpn.md 6.1, 6.2).

Each runs in a task that is started again when it fails: a failure of discovery is a line in the log and a typed reason,
never more. What is found goes to the dialer. Relays and hole punching have their place here too, once they exist: beside
the DHT, with :attr:`Discovery.kad` as their source of candidates.
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import HostError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.addresses import Endpoint, Networks, parse_endpoint
from provider_kairos.mesh.bootstrap import Bootstrap
from provider_kairos.mesh.dht import Dht
from provider_kairos.mesh.dialer import Dialer
from provider_kairos.mesh.identify import Identity
from provider_kairos.mesh.kad import PROTOCOL, Kad
from provider_kairos.mesh.kad_links import Links, Network
from provider_kairos.mesh.rendezvous import Rendezvous
from provider_kairos.mesh.settings import DhtMode, DhtSettings, MeshSettings
from provider_kairos.mesh.views import DiscoveryDown, NoDiscovery

if TYPE_CHECKING:
    from provider_kairos.mesh.mdns import Mdns

__all__ = ["Discovery", "bootstrap_of", "restarting"]

log = logging.getLogger(__name__)

NAMES_AGAIN, NAMES_SOON = 600.0, 30.0
"""Seconds after which the names of bootstrap peers are resolved anew: all of them resolved, or not."""


def bootstrap_of(settings: MeshSettings) -> Bootstrap:
    """The bootstrap peers that were named, but for those without a peer ID. Raises ConfigError for nonsense."""
    parsed = ((text, parse_endpoint(text.strip())) for text in settings.bootstrap_peers)
    return Bootstrap(text for text, each in parsed if each is None or each[1] is not None)


class Discovery:
    """Discovery of one host. ``endpoints_of`` is what a connected peer says of itself, ``on_topic`` who is in our room."""

    def __init__(
        self,
        settings: MeshSettings,
        me: PeerId,
        network: Network,
        dialer: Dialer,
        *,
        clock: Clock,
        rng: random.Random,
        addresses: Callable[[], Sequence[str]],
        endpoints_of: Callable[[PeerId], Iterable[Endpoint]],
        on_topic: Callable[[], set[PeerId]],
    ) -> None:
        self.kad: Kad | None = None
        self._settings = settings
        self._me = me
        self._network = network
        self._dialer = dialer
        self._clock = clock
        self._addresses = addresses
        self._on_topic = on_topic
        self._bootstrap = bootstrap_of(settings)
        self._mdns: Mdns | None = None
        self._dht: Dht | None = None
        if settings.dht is not None:
            self._make_dht(settings.dht, rng, endpoints_of)

    def _make_dht(
        self,
        settings: DhtSettings,
        rng: random.Random,
        endpoints_of: Callable[[PeerId], Iterable[Endpoint]],
    ) -> None:
        announced = tuple(multiaddr.encode(text) for text in settings.announce)
        links = Links(
            self._network, Networks(self._settings.blocked_networks), keeps=self._is_ours, own=self._addresses
        )
        self.kad = Kad(
            self._me,
            self._network,
            links,
            self._clock,
            rng,
            server=settings.mode is DhtMode.SERVER,
            addresses=lambda: announced or self._own_addresses(),
            endpoints_of=endpoints_of,
        )
        self._dht = Dht(
            self.kad,
            self._bootstrap if self._bootstrap.addresses else Bootstrap(settings.defaults),
            Rendezvous(self._settings.token, settings.interval, rng),
            self._clock,
            rng,
            lead=self._dialer.lead,
            busy=self._is_busy,
            room=self._on_topic,
            addresses=self._addresses,
        )

    def _own_addresses(self) -> tuple[bytes, ...]:
        parsed = map(parse_endpoint, self._addresses())
        return tuple(multiaddr.encode_endpoint(each[0]) for each in parsed if each is not None)

    def _is_ours(self, peer: PeerId) -> bool:
        """Whether a peer is kept connected for other reasons than the DHT's."""
        return peer in self._dialer.known or peer in self._on_topic()

    def _is_busy(self, peer: PeerId) -> bool:
        known = self._dialer.known.get(peer)
        return known is not None and (known.rounds is not None or self._network.preferred(peer) is not None)

    async def run(self) -> None:
        """Look for peers until cancelled."""
        async with trio.open_nursery() as nursery:
            if self._bootstrap.named:
                nursery.start_soon(restarting, "bootstrap peers", self._keep_named)
            if self._settings.mdns:
                nursery.start_soon(restarting, "mDNS", self._run_mdns)
            if self._dht is not None:
                nursery.start_soon(restarting, "DHT", self._dht.run)
            await trio.sleep_forever()

    async def _run_mdns(self) -> None:
        from provider_kairos.mesh.mdns import Mdns, MdnsSettings  # noqa: PLC0415 - dnspython only where mDNS is on

        settings = MdnsSettings(self._settings.token.mdns, self._me, self._settings.blocked_networks)
        self._mdns = Mdns(settings, self._addresses, lambda peer, found: self._dialer.found(peer, found, "mdns"))
        await self._mdns.run()

    async def _keep_named(self) -> None:
        """Bootstrap peers behind /dnsaddr are kept like the others, at the addresses that their names have now."""
        while True:
            peers = await self._bootstrap.peers()
            for peer, endpoints in peers.items():
                self._dialer.keep(peer, endpoints)
            await trio.sleep(NAMES_AGAIN if all(peers.values()) else NAMES_SOON)

    # --- what the host tells ----------------------------------------------------------------------------------------

    def identified(self, peer: PeerId, identity: Identity) -> None:
        """A connected peer said what it serves."""
        if self.kad is None or self._dht is None:
            return
        serves = PROTOCOL in identity.protocols
        self.kad.identified(peer, serves=serves)
        known = self._dialer.known.get(peer)
        if serves and known is not None and known.permanent:
            self._dht.again()

    def lost(self, peer: PeerId) -> None:
        """A peer is connected no longer: it may be back under another address already."""
        if self._mdns is not None and not self.is_contact(peer):
            self._mdns.ask_again()
        if self._dht is not None and not self._on_topic():
            self._dht.wake()

    # --- what is known ----------------------------------------------------------------------------------------------

    def is_contact(self, peer: PeerId) -> bool:
        """Whether a peer is connected for the DHT's sake alone."""
        return self.kad is not None and self.kad.links.is_contact(peer)

    @property
    def counters(self) -> Counter[str]:
        """What happened in the DHT, by kind."""
        return self._dht.counters if self._dht is not None else Counter()

    def waiting(self) -> list[Waiting]:
        """Why it does not find, or does not look."""
        reasons: list[Waiting] = []
        if self._mdns is not None and self._mdns.problem is not None:
            reasons.append(DiscoveryDown(str(self._mdns.problem)))
        if self._dht is not None and not self._on_topic():
            reasons += self._dht.waiting()
        looks = self._dht is not None or self._settings.mdns or bool(self._settings.bootstrap_peers)
        if not looks and not self._network.peers():
            reasons.append(NoDiscovery())
        return reasons


async def restarting(name: str, run: Callable[[], Awaitable[None]]) -> None:
    """Keep something running: its failure is a line in the log, never more."""
    pause = 1.0
    while True:
        started = trio.current_time()
        try:
            await run()
        except HostError as error:
            log.warning("%s: %s", name, error)
        except Exception:  # discovery may break in ways of its own; the mesh goes on
            log.exception("%s failed, it is started again in %.0f s", name, pause)
        if trio.current_time() - started > 60:
            pause = 1.0
        await trio.sleep(pause)
        pause = min(pause * 2, 60.0)
