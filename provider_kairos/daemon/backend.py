"""The daemon as its API sees it: implements :class:`provider_kairos.api.backend.Backend` over the daemon's parts."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Mapping, Sequence

from provider_kairos.api.backend import PeerGate
from provider_kairos.api.model import ProviderDocument, StatusDocument, Traffic
from provider_kairos.clock import Clock
from provider_kairos.daemon.event_feed import EventFeed
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.parts import HasGate, NodeService
from provider_kairos.ledger.block import encode
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import RecordKey, Written
from provider_kairos.mesh.node import Mesh

__all__ = ["DaemonBackend"]


class DaemonBackend:
    """Reads from the ledger and the mesh, writes to the ledger."""

    def __init__(
        self,
        ledger: LedgerService,
        mesh: Mesh,
        clock: Clock,
        status: Callable[[str], StatusDocument],
        healthy: Callable[[], bool],
        *,
        feed: EventFeed,
        debug: bool = False,
        services: Sequence[NodeService] = (),
    ) -> None:
        self._ledger = ledger
        self._mesh = mesh
        self._clock = clock
        self._status = status
        self._healthy = healthy
        self._feed = feed
        self.debug = debug
        self._gate = next((service.gate for service in services if isinstance(service, HasGate)), None)
        self._instance = secrets.token_hex(8)

    @property
    def instance(self) -> str:
        """A random word made at start."""
        return self._instance

    @property
    def peer_id(self) -> str:
        """Our own peer ID."""
        return self._mesh.peer_id

    @property
    def revision(self) -> int:
        """Grows at every local change of the ledger."""
        return self._ledger.revision

    @property
    def block_index(self) -> int:
        """Index of the last block."""
        return self._ledger.ledger.block.index

    def block_json(self) -> str:
        """The last block as Go would print it."""
        return encode(self._ledger.ledger.block).decode("utf-8")

    def current(self) -> Mapping[str, Mapping[str, str]]:
        """Bucket to key to text."""
        return self._ledger.ledger.current()

    def bucket(self, name: str) -> Mapping[str, str] | None:
        """Key to text of one bucket."""
        return self._ledger.ledger.bucket(name)

    def get(self, bucket: str, key: str) -> str | None:
        """Text of one record."""
        return self._ledger.ledger.get(bucket, key)

    async def wait_revision(self, since: int, buckets: frozenset[str]) -> int:
        """Wait for a change of one of the buckets."""
        return await self._ledger.wait_revision(since, buckets)

    def bucket_names(self) -> Collection[str]:
        """Every bucket, also those that hold tombstones only."""
        return self._ledger.ledger.block.storage.keys()

    def entries(self, bucket: str) -> Mapping[str, Entry]:
        """Key to entry of one bucket, tombstones included."""
        return self._ledger.ledger.block.storage.get(bucket, {})

    def entry(self, bucket: str, key: str) -> Entry | None:
        """One entry, tombstones included."""
        return self._ledger.ledger.entry(bucket, key)

    @property
    def events(self) -> EventFeed:
        """What happens."""
        return self._feed

    def persist(self, bucket: str, key: str, text: str) -> Written:
        """Write one record and defend it for 20 s."""
        return self._ledger.persist(bucket, key, text)

    def delete_key(self, bucket: str, key: str) -> Written:
        """Delete one record and defend the deletion for 20 s."""
        return self._ledger.persist_delete(bucket, key)

    def delete_bucket(self, bucket: str) -> Written:
        """Delete every record of a bucket."""
        done = [self._ledger.persist_delete(bucket, key) for key in self._ledger.ledger.bucket(bucket) or {}]
        changed = frozenset[RecordKey]().union(*(each.changed for each in done))
        return Written(changed, tuple(refusal for each in done for refusal in each.refused))

    async def persisted(self) -> None:
        """Wait until what was written is safe on disk."""
        await self._ledger.persisted()

    def on_topic(self) -> Collection[str] | None:
        """Peers in our topic."""
        return self._mesh.on_chain() if self._mesh.ready else None

    def connected(self) -> Collection[str]:
        """Peers with an open connection."""
        return [peer.peer_id for peer in self._mesh.peers() if peer.connected]

    def peerstore(self) -> Sequence[str]:
        """Every known peer and ourselves."""
        return self._mesh.peerstore()

    def traffic(self) -> Traffic:
        """Bytes of all streams together."""
        return self._mesh.traffic.total()

    def traffic_by_protocol(self) -> Mapping[str, Traffic]:
        """Bytes per protocol ID."""
        return self._mesh.traffic.by_protocol()

    def traffic_by_peer(self) -> Mapping[str, Traffic]:
        """Bytes per peer ID."""
        return self._mesh.traffic.by_peer()

    def unix_time(self) -> float:
        """Unix seconds."""
        return self._clock.now().unix_float

    def healthy(self) -> bool:
        """Whether the daemon's tasks run."""
        return self._healthy()

    @property
    def gate(self) -> PeerGate | None:
        """The gate of the service that has one."""
        return self._gate

    def provider(self) -> ProviderDocument | None:
        """What the provider of this machine says of itself."""
        return self._feed.provider()

    def status(self) -> StatusDocument:
        """The document of GET /v1/status."""
        return self._status(self._instance)
