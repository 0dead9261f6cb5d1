"""What a DHT server answers: one request in, one answer or none out (libp2p specs/kad-dht; as go-libp2p-kad-dht does).

FIND_NODE, GET_PROVIDERS, ADD_PROVIDER and PING are served. A value is never had: GET_VALUE is answered with nearer
nodes alone, PUT_VALUE is refused by ending the stream, as Go refuses what its validators do not know. Neither the asker nor
ourselves are named as nearer nodes, but a peer that is asked for by its own ID is, whoever it is. A peer may announce
nobody but itself. How often a peer may ask is bounded (:class:`RateLimit`).

Sans-IO; streams are :mod:`provider_kairos.mesh.kad`'s.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from provider_kairos.clock import Now
from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.kad_providers import Providers
from provider_kairos.mesh.kad_table import Table
from provider_kairos.mesh.kad_wire import KadMessage, KadPeer, Kind, distance_key

__all__ = ["RateLimit", "Server"]

MAX_PROVIDER_KEY = 80
"""Bytes; Go's limit."""

RATE, BURST = 20.0, 60.0
"""Requests of one peer: per second in the long run, and at once."""

MAX_RATED = 1024
"""Peers whose rate is remembered."""


class RateLimit:
    """A bucket of tokens per peer."""

    def __init__(self, rate: float = RATE, burst: float = BURST) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens: OrderedDict[PeerId, tuple[float, float]] = OrderedDict()

    def allows(self, peer: PeerId, now: Now) -> bool:
        """Whether a peer may ask once more."""
        tokens, since = self._tokens.pop(peer, (self._burst, now.mono))
        tokens = min(tokens + max(now.mono - since, 0.0) * self._rate, self._burst)
        allowed = tokens >= 1
        self._tokens[peer] = (tokens - 1 if allowed else tokens, now.mono)
        if len(self._tokens) > MAX_RATED:
            self._tokens.popitem(last=False)
        return allowed


class Server:
    """Answers from a table and a store. ``contact(peer)`` gives what is known of a peer that is no DHT server."""

    def __init__(
        self,
        me: PeerId,
        table: Table,
        providers: Providers,
        contact: Callable[[PeerId], KadPeer | None],
    ) -> None:
        self._me = me
        self._table = table
        self._providers = providers
        self._contact = contact

    def answer(self, asker: PeerId, request: KadMessage, now: Now) -> KadMessage | None:
        """The answer, None where none is due. Raises PeerError for what is refused: the stream is to be reset."""
        match request.kind:
            case Kind.PING:
                return request
            case Kind.FIND_NODE:
                self._need_key(request)
                return KadMessage(Kind.FIND_NODE, closer=self._named(request.key) + self._nearer(asker, request.key))
            case Kind.GET_VALUE:
                self._need_key(request)
                return KadMessage(Kind.GET_VALUE, request.key, closer=self._nearer(asker, request.key))
            case Kind.GET_PROVIDERS:
                self._need_key(request, MAX_PROVIDER_KEY)
                found = self._providers.of(request.key, now)
                return KadMessage(Kind.GET_PROVIDERS, request.key, self._nearer(asker, request.key), found)
            case Kind.ADD_PROVIDER:
                self._need_key(request, MAX_PROVIDER_KEY)
                own = [each for each in request.providers if each.peer == asker and each.addresses]
                if not own:
                    raise PeerError("announces others, or no address")
                self._providers.add(request.key, own[0], now)
                return None
            case Kind.PUT_VALUE:
                raise PeerError("values are not kept here")

    @staticmethod
    def _need_key(request: KadMessage, longest: int | None = None) -> None:
        if not request.key:
            raise PeerError(f"{request.kind.name} without a key")
        if longest is not None and len(request.key) > longest:
            raise PeerError(f"{request.kind.name} with a key of {len(request.key)} bytes")

    def _named(self, key: bytes) -> tuple[KadPeer, ...]:
        """The peer whose ID the key is."""
        peer = multiaddr.peer_id(key)
        found = self._contact(peer) if peer is not None else None
        return (found,) if found is not None and found.addresses else ()

    def _nearer(self, asker: PeerId, key: bytes) -> tuple[KadPeer, ...]:
        named = multiaddr.peer_id(key)
        nearest = self._table.nearest(distance_key(key), self._table.k, without=(asker, named or asker))
        return tuple(
            KadPeer(each.peer, tuple(map(multiaddr.encode_endpoint, each.endpoints)))
            for each in nearest
            if each.endpoints
        )
