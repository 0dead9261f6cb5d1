"""The DHT on streams: questions out, answers in, lookups over many nodes (``/ipfs/kad/1.0.0``; libp2p specs/kad-dht).

Every question has a stream of its own and a time limit; streams of others may carry many questions, as Go's do. A
client asks only; a server answers too, and then identify says so. Which mode it is, and when which key is provided and
looked for, is decided above (:mod:`provider_kairos.mesh.dht`). Engines: :mod:`kad_query` (one lookup), :mod:`kad_table`
(whom we know), :mod:`kad_server` (answers), :mod:`kad_links` (connections).
"""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.addresses import Endpoint
from provider_kairos.mesh.kad_links import Links, Network
from provider_kairos.mesh.kad_providers import Providers
from provider_kairos.mesh.kad_query import Lookup
from provider_kairos.mesh.kad_server import RateLimit, Server
from provider_kairos.mesh.kad_table import K, Table
from provider_kairos.mesh.kad_wire import (
    MAX_REQUEST,
    MAX_RESPONSE,
    PROTOCOL,
    KadMessage,
    KadPeer,
    Kind,
    decode,
    distance_key,
    encode,
)
from provider_kairos.mesh.muxer_stream import Stream
from provider_kairos.mesh.wire import DelimitedReader, encode_delimited, read_delimited

__all__ = ["PROTOCOL", "Kad", "Meeting"]

log = logging.getLogger(__name__)

ANSWER_TIMEOUT = 10.0
IDLE_STREAM = 60.0
"""Seconds without a request after which a stream of a client is reset."""

MAX_SERVED = 256
MAX_SERVED_PER_PEER = 8
"""Streams of clients that are open at once."""

MAX_PROBES = 8
REFRESH = 600.0
"""Seconds between two looks at the table, in server mode."""

CHECK_AFTER = 900.0
"""Seconds after which a contact of a server must answer anew."""

MAX_CHECKS = 10
DEEPEST_REFRESH = 8
"""Buckets nearer than this are filled by looking for ourselves."""


@dataclass(slots=True)
class Meeting:
    """What became of one rendezvous: nodes that answered, and that were told of us; peers that were found."""

    answered: int = 0
    told: int = 0
    found: int = 0


class Kad:
    """One node of the DHT."""

    def __init__(
        self,
        me: PeerId,
        network: Network,
        links: Links,
        clock: Clock,
        rng: random.Random,
        *,
        server: bool,
        addresses: Callable[[], Iterable[bytes]],
        endpoints_of: Callable[[PeerId], Iterable[Endpoint]],
    ) -> None:
        """``addresses`` are our own, as we publish them; ``endpoints_of`` says what a connected peer told of itself.

        ``on_first_contact`` is called when somebody answered while we knew nobody.
        """
        self.me = me
        self.server = server
        self.on_first_contact: Callable[[], None] = lambda: None
        self.links = links
        self.table = Table(me)
        self.providers = Providers()
        self._network = network
        self._clock = clock
        self._rng = rng
        self._addresses = addresses
        self._endpoints_of = endpoints_of
        self._answers = Server(me, self.table, self.providers, self._contact)
        self._limit = RateLimit()
        self._counts: Counter[str] = Counter()
        self._served: Counter[PeerId] = Counter()
        self._probing: set[PeerId] = set()
        self._nursery: trio.Nursery | None = None

    @property
    def counters(self) -> Counter[str]:
        """What was asked, answered, refused and dropped, by kind."""
        return self._counts + self.providers.counters

    def connected(self, peer: PeerId) -> bool:
        """Whether there is a connection, whatever the peer serves."""
        return self._network.preferred(peer) is not None

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Close idle connections, look into who serves a DHT, and as a server keep the table fresh."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                nursery.start_soon(self.links.run)
                task_status.started()
                while True:
                    await trio.sleep(REFRESH * self._rng.uniform(0.8, 1.2))
                    if self.server:
                        await self._refresh()
            finally:
                self._nursery = None

    # --- serving ----------------------------------------------------------------------------------------------------

    async def serve(self, stream: Stream) -> None:
        """Answer on a client's stream until it ends. Raises PeerError for bytes that are no message."""
        peer = stream.peer
        if self._served[peer] >= MAX_SERVED_PER_PEER or self._served.total() >= MAX_SERVED:
            self._counts["dht_streams_over_limit"] += 1
            stream.reset()
            return
        self._served[peer] += 1
        reader = DelimitedReader(stream.read, MAX_REQUEST)
        try:
            while True:
                with trio.move_on_after(IDLE_STREAM) as patience:
                    data = await reader.next()
                    if data is None:
                        return
                    if not await self._answer(stream, data):
                        break
                if patience.cancelled_caught:
                    break
            stream.reset()
        finally:
            self._served[peer] -= 1
            if not self._served[peer]:
                del self._served[peer]

    async def _answer(self, stream: Stream, data: bytes) -> bool:
        """Answer one request. False when the stream is to end."""
        now = self._clock.now()
        if not self._limit.allows(stream.peer, now):
            self._counts["dht_requests_over_limit"] += 1
            return False
        request = decode(data)
        self.links.used(stream.peer)
        try:
            answer = self._answers.answer(stream.peer, request, now)
        except PeerError as error:
            self._counts["dht_requests_refused"] += 1
            log.debug("DHT request of %s refused: %s", stream.peer, error)
            return False
        self._counts["dht_requests"] += 1
        if answer is not None:
            await stream.write(encode_delimited(encode(answer)))
        return True

    def _contact(self, peer: PeerId) -> KadPeer | None:
        if peer == self.me:
            return KadPeer(peer, tuple(self._addresses()), connected=True)
        known = self.table.get(peer)
        endpoints = dict.fromkeys((*self._endpoints_of(peer), *(known.endpoints if known is not None else ())))
        addresses = tuple(map(multiaddr.encode_endpoint, endpoints))
        return KadPeer(peer, addresses, connected=self.connected(peer))

    # --- who is there -----------------------------------------------------------------------------------------------

    def identified(self, peer: PeerId, *, serves: bool) -> None:
        """A connected peer said whether it serves the DHT: one that does is asked something before it is believed."""
        if not serves:
            self.table.remove(peer)
        elif (
            self._nursery is not None
            and peer not in self._probing
            and len(self._probing) < MAX_PROBES
            and self.table.wants(peer, self._clock.now())
        ):
            self._probing.add(peer)
            self._nursery.start_soon(self._probe, peer)

    async def _probe(self, peer: PeerId) -> None:
        try:
            await self.ask(peer, (), KadMessage(Kind.FIND_NODE, multiaddr.peer_id_bytes(peer)))
        except PeerError as error:
            log.debug("%s does not answer as a DHT node: %s", peer, error)
        finally:
            self._probing.discard(peer)

    async def _refresh(self) -> None:
        """Ask contacts that were silent for long, then look for ourselves and for keys all over."""
        now = self._clock.now()
        async with trio.open_nursery() as nursery:
            for contact in self.table.silent(now, CHECK_AFTER)[:MAX_CHECKS]:
                nursery.start_soon(self._probe, contact.peer)
        await self.look_around()
        if len(self.table) >= K:  # a smaller network is known whole
            for bucket in range(min(self.table.depth, DEEPEST_REFRESH)):
                await self._look_for(self._key_in(bucket))

    async def look_around(self) -> int:
        """Look for ourselves: the nodes around us come to know us, and we them. Returns how many answered."""
        return await self._look_for(multiaddr.peer_id_bytes(self.me))

    async def _look_for(self, key: bytes) -> int:
        lookup = self._lookup(key)
        await self._run(lookup, KadMessage(Kind.FIND_NODE, key))
        return len(lookup.nearest())

    def _key_in(self, bucket: int) -> bytes:
        """A key that lies in a bucket of ours; found by trying, so the bucket must be a low one."""
        while True:
            key = b"\x12\x20" + self._rng.randbytes(32)
            if self.table.bucket_of(distance_key(key)) == bucket:
                return key

    # --- asking -----------------------------------------------------------------------------------------------------

    async def ask(
        self,
        peer: PeerId,
        endpoints: Iterable[Endpoint],
        message: KadMessage,
        *,
        trusted: bool = False,
    ) -> KadMessage:
        """One question to one node, which is connected first. ``trusted``: the user named it.

        A node that answers is a contact from then on, one that does not is none. Raises PeerError.
        """
        endpoints = tuple(endpoints)
        self._counts["dht_questions"] += 1
        try:
            await self.links.connect(peer, endpoints, anyway=trusted)
            with trio.move_on_after(ANSWER_TIMEOUT):
                answer = await self._exchange(peer, message)
                self.links.answers(peer)
                self.links.used(peer)
                told = (*endpoints, *self._endpoints_of(peer))
                first = not len(self.table)
                self.table.answered(peer, self.links.usable(told), self._clock.now(), trusted=trusted)
                if first:
                    self.on_first_contact()
                return answer
            raise PeerError(f"{peer} did not answer within {ANSWER_TIMEOUT:.0f} s")
        except PeerError:
            self._counts["dht_questions_failed"] += 1
            self.links.silent(peer)
            self.table.remove(peer)
            raise

    async def _exchange(self, peer: PeerId, message: KadMessage) -> KadMessage:
        stream = await self._network.open_stream(peer, (PROTOCOL,))
        try:
            await stream.write(encode_delimited(encode(message)))
            answer = decode(await read_delimited(stream.read, MAX_RESPONSE))
        except BaseException:
            stream.reset()
            raise
        await stream.close()
        if answer.kind != message.kind:
            raise PeerError(f"answers {message.kind.name} with {answer.kind.name}")
        return answer

    async def _tell(self, peer: PeerId, message: KadMessage) -> bool:
        """Send a message that has no answer to a node that is connected. False when that failed."""
        try:
            with trio.move_on_after(ANSWER_TIMEOUT):
                stream = await self._network.open_stream(peer, (PROTOCOL,))
                try:
                    await stream.write(encode_delimited(encode(message)))
                except BaseException:
                    stream.reset()
                    raise
                await stream.close()
                return True
        except PeerError as error:
            log.debug("%s took no provider record: %s", peer, error)
        return False

    # --- lookups ----------------------------------------------------------------------------------------------------

    def _lookup(self, key: bytes) -> Lookup:
        where = distance_key(key)
        lookup = Lookup(self.me, where)
        for contact in self.table.nearest(where):
            lookup.hear(contact.peer, contact.endpoints)
        return lookup

    async def _run(
        self, lookup: Lookup, message: KadMessage, take: Callable[[KadMessage], None] = lambda _answer: None
    ) -> None:
        """Ask until the lookup is over."""
        changed = trio.Event()

        async def one(peer: PeerId, endpoints: tuple[Endpoint, ...]) -> None:
            try:
                answer = await self.ask(peer, endpoints, message)
            except PeerError:
                lookup.failed(peer)
            else:
                lookup.answered(peer, self._reachable(answer.closer))
                take(answer)
            changed.set()

        async with trio.open_nursery() as nursery:
            while True:
                changed = trio.Event()
                for peer, endpoints in lookup.take():
                    nursery.start_soon(one, peer, endpoints)
                if lookup.over:
                    break
                await changed.wait()
            nursery.cancel_scope.cancel()

    def _reachable(self, peers: Iterable[KadPeer]) -> list[tuple[PeerId, tuple[Endpoint, ...]]]:
        """Nodes that we could ask, with the addresses at which."""
        found = []
        for each in peers:
            endpoints = self.links.usable(each.endpoints())
            if endpoints or each.peer in self.table or self.connected(each.peer):
                found.append((each.peer, endpoints))
        return found

    async def meet(self, key: bytes, *, provide: bool, found: Callable[[KadPeer], None]) -> Meeting:
        """Find who provides ``key`` and, with ``provide``, be found there: one lookup for both.

        ``found`` is called once for each peer, as soon as it is heard of. May be cancelled at any time.
        """
        meeting = Meeting()
        seen = {self.me}

        def take(providers: Iterable[KadPeer]) -> None:
            for each in providers:
                if each.peer not in seen and each.addresses:
                    seen.add(each.peer)
                    meeting.found += 1
                    found(each)

        now = self._clock.now()
        own = KadPeer(self.me, tuple(self._addresses()))
        if self.server:
            take(self.providers.of(key, now))
            if provide and own.addresses:
                self.providers.add(key, own, now)
        lookup = self._lookup(key)
        await self._run(lookup, KadMessage(Kind.GET_PROVIDERS, key), lambda answer: take(answer.providers))
        nearest = lookup.nearest()
        meeting.answered = len(nearest)
        if provide and own.addresses:
            message = KadMessage(Kind.ADD_PROVIDER, key, providers=(own,))

            async def tell(peer: PeerId) -> None:
                taken = await self._tell(peer, message)
                meeting.told += taken

            async with trio.open_nursery() as nursery:
                for peer in nearest:
                    nursery.start_soon(tell, peer)
        self._counts["dht_lookups"] += 1
        return meeting
