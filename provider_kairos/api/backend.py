"""What the API server needs of the daemon: one protocol, implemented by the daemon and by a fake in the tests.

The getters are synchronous and cheap: they read state that the daemon's own tasks keep. All of them run in the trio
thread. Only :meth:`Backend.wait_revision` waits, and it may be cancelled at any time.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from provider_kairos.api.events import EventLog
from provider_kairos.api.model import ProviderDocument, StatusDocument, Traffic
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import Written

__all__ = ["Backend", "EventSource", "PeerGate"]


class EventSource(Protocol):
    """What a stream of events reads."""

    @property
    def log(self) -> EventLog:
        """What happened lately."""
        ...

    def present(self, kinds: Collection[str]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """Kind and data of events that together describe the present state, records apart."""
        ...


class PeerGate(Protocol):
    """Whether only peers that have shown a trusted key are heard (spec/edgevpn.md 13): ``/api/peergate``."""

    @property
    def enabled(self) -> bool:
        """Whether the gate is closed to strangers."""
        ...

    def switch(self, *, on: bool) -> None:
        """Close it to strangers, or open it to everybody."""
        ...


class Backend(Protocol):
    """The daemon as its API sees it. Texts are *ledger texts*: the JSON text of the stored value."""

    @property
    def instance(self) -> str:
        """A random word made at start: revisions of two instances do not compare."""
        ...

    @property
    def peer_id(self) -> str:
        """Our own peer ID."""
        ...

    # -- ledger, reading

    @property
    def revision(self) -> int:
        """Grows at every local change of the ledger."""
        ...

    @property
    def block_index(self) -> int:
        """Index of the last block."""
        ...

    def block_json(self) -> str:
        """The last block, signed envelopes and tombstones included, as Go would print it."""
        ...

    def current(self) -> Mapping[str, Mapping[str, str]]:
        """Bucket to key to text; tombstones hidden, empty buckets absent."""
        ...

    def bucket(self, name: str) -> Mapping[str, str] | None:
        """Key to text of one bucket, None when it is absent."""
        ...

    def get(self, bucket: str, key: str) -> str | None:
        """Text of one record, None when it is absent."""
        ...

    def bucket_names(self) -> Collection[str]:
        """Every bucket, also those that hold tombstones only."""
        ...

    def entries(self, bucket: str) -> Mapping[str, Entry]:
        """Key to entry of one bucket, tombstones included; empty when it is absent."""
        ...

    def entry(self, bucket: str, key: str) -> Entry | None:
        """One entry, tombstones included; None when there never was one, or it is forgotten."""
        ...

    async def wait_revision(self, since: int, buckets: frozenset[str]) -> int:
        """The present revision, as soon as one of ``buckets`` (empty: any) changed after revision ``since``."""
        ...

    @property
    def events(self) -> EventSource:
        """What happens, and the present state of what is no record."""
        ...

    # -- ledger, writing: all return at once; the daemon defends the write for 20 s (EdgeVPN's Persist)

    def persist(self, bucket: str, key: str, text: str) -> Written:
        """Write one record."""
        ...

    def delete_key(self, bucket: str, key: str) -> Written:
        """Delete one record."""
        ...

    def delete_bucket(self, bucket: str) -> Written:
        """Delete every record of a bucket."""
        ...

    async def persisted(self) -> None:
        """Return when everything written so far is safe on disk: only then is a write acknowledged."""
        ...

    # -- mesh

    def on_topic(self) -> Collection[str] | None:
        """Peers in our topic without ourselves; None before the room exists."""
        ...

    def connected(self) -> Collection[str]:
        """Peers with an open connection."""
        ...

    def peerstore(self) -> Sequence[str]:
        """Every known peer, ourselves included."""
        ...

    def traffic(self) -> Traffic:
        """Bytes of all streams together."""
        ...

    def traffic_by_protocol(self) -> Mapping[str, Traffic]:
        """Bytes per protocol ID."""
        ...

    def traffic_by_peer(self) -> Mapping[str, Traffic]:
        """Bytes per peer ID."""
        ...

    # -- ourselves

    def unix_time(self) -> float:
        """Unix seconds, for judging the age of heartbeats."""
        ...

    def healthy(self) -> bool:
        """Whether the daemon's tasks run (not whether the node has peers)."""
        ...

    @property
    def debug(self) -> bool:
        """Whether ``/debug`` is served."""
        ...

    @property
    def gate(self) -> PeerGate | None:
        """The peer gate; None when this node has none."""
        ...

    def provider(self) -> ProviderDocument | None:
        """What the provider of this machine says of itself; None where it says nothing."""
        ...

    def status(self) -> StatusDocument:
        """The document of GET /v1/status."""
        ...
