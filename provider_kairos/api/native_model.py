"""The shapes of our own API under ``/v1``: what each answer, each body and each event holds.

Field names are snake_case, times are seconds, absent facts are null. Every whole document carries ``"schema": 1``; what
comes from the ledger carries ``instance`` and ``revision`` too, so that a reader knows where to go on. ``openapi`` makes
the published document of these types and their docstrings; ``operations`` says which route answers with which. The
status document and the long poll's are in ``model``, because older tools know them.

Versions of records are above 2^53, where many JSON readers lose digits: they travel as text.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

from provider_kairos.api.model import PeerStatus, PhaseStatus

__all__ = [
    "AddressEvent",
    "BucketDocument",
    "BucketSummary",
    "CountersDocument",
    "DnsBody",
    "DnsDocument",
    "DnsRecord",
    "ErrorDocument",
    "FilesDocument",
    "GateBody",
    "GateDocument",
    "HelloEvent",
    "LedgerDocument",
    "LedgerEvent",
    "LostEvent",
    "NamedRecord",
    "NodeFacts",
    "NodesDocument",
    "PeerEvent",
    "PeersDocument",
    "PhaseEvent",
    "Record",
    "RecordDocument",
    "Refusal",
    "RoleEvent",
    "ServicesDocument",
    "SyncedEvent",
    "TrafficCount",
    "TrafficDocument",
    "UsersDocument",
    "WaitingEvent",
    "WriteBody",
    "WriteDocument",
]

Encoding = Literal["base64", "json", "none"]


class ErrorDocument(TypedDict):
    """Answer to a request that was not carried out: a stable word for programs, a sentence for people."""

    code: str
    message: str


# -- the ledger --------------------------------------------------------------------------------------------------------


class Record(TypedDict):
    """One record of the ledger, tombstones included.

    ``text`` is the ledger text exactly; ``value`` is what it holds and ``encoding`` how: ``base64`` as tools store
    values (JSON, base64, JSON), ``json`` as daemons write theirs, ``none`` when the text is neither (``value`` is null).
    ``author`` (a peer ID), ``version`` and ``updated_at`` (Unix seconds) are null where the network signs no records.
    """

    key: str
    value: Any
    encoding: Encoding
    text: str
    author: str | None
    version: str | None
    updated_at: int | None
    deleted: bool
    signed: bool


class RecordDocument(Record):
    """One record with its place."""

    schema: int
    instance: str
    revision: int
    bucket: str


class BucketDocument(TypedDict):
    """One bucket; records sorted by key."""

    schema: int
    instance: str
    revision: int
    bucket: str
    records: list[Record]


class BucketSummary(TypedDict):
    """Size of one bucket: live records, and tombstones."""

    name: str
    records: int
    deleted: int


class LedgerDocument(TypedDict):
    """Which buckets there are, sorted by name; ``index`` is that of the last block."""

    schema: int
    instance: str
    revision: int
    index: int
    buckets: list[BucketSummary]


class WriteBody(TypedDict):
    """What to store: any JSON value, in the coding that tools use (``base64``, the default) or as ``json``."""

    value: Any
    encoding: NotRequired[Literal["base64", "json"]]


class Refusal(TypedDict):
    """A record that was not written, because it belongs to a peer that is alive."""

    key: str
    owner: str
    reason: str


class WriteDocument(TypedDict):
    """A write that is safe on this node's disk. ``changed`` counts records; 0 when everything was so already."""

    schema: int
    instance: str
    revision: int
    changed: int
    refused: list[Refusal]


# -- what the ledger says ----------------------------------------------------------------------------------------------


class NodeFacts(TypedDict):
    """A node with an address. ``online``: heartbeat younger than 20 minutes; ``own``: this node itself."""

    peer_id: str
    hostname: str
    os: str
    arch: str
    address: str
    version: str
    own: bool
    connected: bool
    on_topic: bool
    online: bool
    heartbeat_age: float | None


class NodesDocument(TypedDict):
    """Nodes with an address, sorted by it as text."""

    schema: int
    revision: int
    nodes: list[NodeFacts]


class NamedRecord(TypedDict):
    """Something that a peer offers under a name."""

    name: str
    peer_id: str
    own: bool
    connected: bool
    online: bool


class ServicesDocument(TypedDict):
    """Services that peers expose."""

    schema: int
    revision: int
    services: list[NamedRecord]


class FilesDocument(TypedDict):
    """Files that peers serve."""

    schema: int
    revision: int
    files: list[NamedRecord]


class UsersDocument(TypedDict):
    """Peers that use services or files; the name is when they came."""

    schema: int
    revision: int
    users: list[NamedRecord]


class DnsRecord(TypedDict):
    """Names that match ``pattern`` (a regular expression) and their records: type name to text."""

    pattern: str
    records: dict[str, str]
    author: str | None
    updated_at: int | None


class DnsDocument(TypedDict):
    """The name server's entries, sorted by pattern."""

    schema: int
    revision: int
    entries: list[DnsRecord]


class DnsBody(TypedDict):
    """Records of a pattern: type name (``A``, ``AAAA``, ``TXT``, ...) to text."""

    records: dict[str, str]


# -- the node ----------------------------------------------------------------------------------------------------------


class PeersDocument(TypedDict):
    """Every other node that this one knows."""

    schema: int
    peers: list[PeerStatus]


class CountersDocument(TypedDict):
    """What happened since the daemon started, by kind."""

    schema: int
    instance: str
    uptime_seconds: float
    counters: dict[str, int]


class TrafficCount(TypedDict):
    """Bytes since start, and bytes per second."""

    bytes_in: int
    bytes_out: int
    rate_in: float
    rate_out: float


class TrafficDocument(TypedDict):
    """Traffic of all streams, by protocol ID and by peer ID."""

    schema: int
    total: TrafficCount
    by_protocol: dict[str, TrafficCount]
    by_peer: dict[str, TrafficCount]


class GateDocument(TypedDict):
    """Whether the peer gate is closed to strangers."""

    schema: int
    enabled: bool


class GateBody(TypedDict):
    """Close the peer gate to strangers, or open it."""

    enabled: bool


# -- events ------------------------------------------------------------------------------------------------------------


class HelloEvent(TypedDict):
    """First event of a stream. ``resumed``: nothing was missed since the event that the client named."""

    schema: int
    instance: str
    sequence: int
    revision: int
    resumed: bool


class LedgerEvent(Record):
    """A record as it is now; ``snapshot``: it is part of the state and not a change."""

    bucket: str
    revision: int
    snapshot: bool


class SyncedEvent(TypedDict):
    """The whole state has been sent: what follows are changes."""

    revision: int


class LostEvent(TypedDict):
    """The client was too slow, and so many events were dropped: what it knows is old. State follows where asked for."""

    missed: int


class PeerEvent(TypedDict):
    """A peer came or went: in the ledger room (``joined``, ``left``) or as a connection."""

    peer_id: str
    change: Literal["joined", "left", "connected", "disconnected"]
    connected: bool
    on_topic: bool
    snapshot: bool


class AddressEvent(TypedDict):
    """The virtual IP with prefix length, null while there is none."""

    address: str | None
    interface: str | None


class PhaseEvent(TypedDict):
    """A phase was reached."""

    ready: bool
    phases: list[PhaseStatus]


class WaitingEvent(TypedDict):
    """Everything that the daemon waits for now; a reason holds ``code``, ``text`` and its facts."""

    waiting: list[Mapping[str, object]]


class RoleEvent(TypedDict):
    """The node's role, as the provider of this machine says it; null where it says nothing."""

    role: str | None
    leader: str | None
    first_master: str | None
    address: str | None
    configured: bool
    ready: bool
