"""The shapes of the HTTP API and the coding of values; no server, no client, no socket.

Specification: spec/edgevpn.md 11.2, 11.3 and spec/provider.md 4.1, 4.3. The first half are EdgeVPN's records: exact
field names in Go's order, because Go prints a structure in the order in which it is declared and people compare text.
The second half is ours (``/v1``, snake_case, ``schema: 1``).

**The coding of values, three layers.** To store the value ``v``:

1. ``j`` = JSON text of ``v``: the string ``master`` becomes ``"master"`` with its quotes;
2. ``b`` = URL-safe base64 of ``j`` with padding: ``Im1hc3RlciI=``. It is the path segment of the PUT;
3. the daemon stores the JSON text of ``b``, ``"Im1hc3RlciI="`` with quotes. That is the *ledger text*.

Reading goes back the same way. ``GET /api/ledger/B/K`` wraps the ledger text once more as a JSON string; that layer
belongs to HTTP and is not part of :func:`decode_value`. Records that daemons write themselves (``machines``,
``healthcheck``, ...) are plain JSON: their ledger text is read with :func:`plain_value`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Mapping
from typing import Any, Final, Literal, NotRequired, TypedDict

from provider_kairos.errors import PeerError
from provider_kairos.token import gojson

__all__ = [
    "ANNOUNCING",
    "SCHEMA",
    "Announcing",
    "DnsEntry",
    "FileRecord",
    "LedgerStatus",
    "MachineRecord",
    "NodeRecord",
    "PeerStatus",
    "PhaseStatus",
    "ProviderDocument",
    "ServiceRecord",
    "StatusDocument",
    "Summary",
    "Traffic",
    "UserRecord",
    "ValueCodingError",
    "VpnStatus",
    "WaitingRecord",
    "WatchDocument",
    "decode_value",
    "encode_value",
    "ledger_text",
    "plain_value",
]

SCHEMA: Final = 1
"""Version of the documents under ``/v1``; grows when a field changes its meaning or goes away."""


class ValueCodingError(PeerError):
    """A ledger text does not hold a value in the coding above."""


# -- coding ------------------------------------------------------------------------------------------------------------


def encode_value(value: Any) -> str:
    """The path segment that stores ``value`` (layers 1 and 2)."""
    return base64.urlsafe_b64encode(gojson.dumps(value).encode("utf-8")).decode("ascii")


def ledger_text(value: Any) -> str:
    """The ledger text that a daemon makes of ``value`` (all three layers)."""
    return f'"{encode_value(value)}"'


def decode_value(text: str) -> Any:
    """The value behind a ledger text (all three layers back).

    Raises :class:`ValueCodingError` when any layer does not fit; callers that read what others wrote treat that as
    absent and count it.
    """
    segment = plain_value(text)
    if not isinstance(segment, str):
        raise ValueCodingError("the ledger text is not a JSON string")
    try:
        # Go's decoder skips line ends and so do we; anything else outside the alphabet is refused.
        raw = base64.b64decode(segment.translate({10: None, 13: None}).encode("ascii"), altchars=b"-_", validate=True)
        return json.loads(raw)
    except (binascii.Error, UnicodeError, ValueError, RecursionError) as error:
        raise ValueCodingError("the ledger text is not base64 of JSON") from error


def plain_value(text: str) -> Any:
    """The value of a record that a daemon wrote itself: plain JSON. Raises :class:`ValueCodingError`."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueCodingError("the ledger text is not JSON") from error


# -- EdgeVPN's records -------------------------------------------------------------------------------------------------


class Announcing(TypedDict):
    """Answer to every write."""

    State: str


ANNOUNCING: Final[Announcing] = {"State": "Announcing"}


class Summary(TypedDict):
    """GET /api/summary. ``OnChainNodes``: peers in the topic without us; ``Peers``: known peers, us included."""

    Files: int
    Machines: int
    Users: int
    Services: int
    BlockChain: int
    OnChainNodes: int
    Peers: int
    NodeID: str


class MachineRecord(TypedDict):
    """One of GET /api/machines. ``Online``: heartbeat younger than 20 minutes; ``OnChain``: in the topic."""

    PeerID: str
    Hostname: str
    OS: str
    Arch: str
    Address: str
    Version: str
    Connected: bool
    OnChain: bool
    Online: bool


class UserRecord(TypedDict):
    """One of GET /api/users."""

    PeerID: str
    Timestamp: str


class ServiceRecord(TypedDict):
    """One of GET /api/services."""

    PeerID: str
    Name: str


class FileRecord(TypedDict):
    """One of GET /api/files."""

    PeerID: str
    Name: str


class DnsEntry(TypedDict):
    """One of GET /api/dns and the body of POST: regular expression, type name to text."""

    Regex: str
    Records: dict[str, str]


class NodeRecord(TypedDict):
    """One of GET /api/nodes (``Online`` always true) and GET /api/peerstore (always false)."""

    ID: str
    Online: bool


class Traffic(TypedDict):
    """Bytes and bytes per second; GET /api/metrics and its two children."""

    TotalIn: int
    TotalOut: int
    RateIn: float
    RateOut: float


# -- ours --------------------------------------------------------------------------------------------------------------


class WaitingRecord(TypedDict):
    """A typed reason (errors.Waiting.as_dict); further keys are the facts of that reason."""

    code: str
    text: str


class PhaseStatus(TypedDict):
    """One phase on the way to a running node, in order; ``seconds`` is what it took or takes so far."""

    name: str
    state: Literal["pending", "active", "done", "failed"]
    seconds: float | None


class PeerStatus(TypedDict):
    """What this node knows of another one. The three facts stand apart: in the ledger, in the topic, connected."""

    peer_id: str
    hostname: str | None
    address: str | None
    heartbeat_age: float | None
    on_topic: bool
    connected: bool
    native: bool | None
    direction: str | None
    security: str | None
    rtt_ms: float | None
    agent: str | None
    addresses: list[str]
    last_error: str | None
    found_by: str | None


class LedgerStatus(TypedDict):
    """Size and mode of the ledger."""

    index: int
    revision: int
    ownership: str
    buckets: int
    records: int


class VpnStatus(TypedDict):
    """The virtual interface; ``address`` with prefix length, null until one is leased."""

    enabled: bool
    interface: str | None
    address: str | None
    mtu: int | None


class ConnectionsStatus(TypedDict):
    """Connections of the mesh. ``members`` are those of peers that the ledger knows; ``known`` counts peers."""

    open: int
    inbound: int
    members: int
    known: int
    low: int
    high: int
    most: int


class StatusDocument(TypedDict):
    """GET /v1/status. ``ready`` means: mesh joined, ledger alive, and an address where a VPN is wanted."""

    schema: int
    instance: str
    version: str
    peer_id: str
    hostname: str
    ready: bool
    uptime_seconds: float
    phases: list[PhaseStatus]
    waiting: list[Mapping[str, object]]
    vpn: VpnStatus
    ledger: LedgerStatus
    peers: list[PeerStatus]
    connections: ConnectionsStatus
    counters: dict[str, int]
    extra: NotRequired[dict[str, object]]


class WatchDocument(TypedDict):
    """GET /v1/watch. ``instance`` changes when the daemon restarts; revisions compare within one instance only."""

    schema: int
    instance: str
    revision: int
    buckets: dict[str, dict[str, str] | None]


class ProviderDocument(TypedDict, total=False):
    """``/run/kairos-p2p/provider.json``: what the provider of this machine says of itself (``provider.status``).

    Null where nothing is known. ``configured`` means: the role is carried out, nothing is left to do; ``ready``: the
    service says that it is up; ``error``: a configuration that cannot work.
    """

    schema: int
    pid: int
    updated: str
    uptime: float
    uuid: str
    network_id: str
    role: str | None
    leader: str | None
    first_master: str | None
    address: str | None
    api: str
    minimum_nodes: int | None
    distribution: str | None
    service: str | None
    configured: bool
    ready: bool
    error: str | None
    phases: list[PhaseStatus]
    waiting: list[Mapping[str, object]]
