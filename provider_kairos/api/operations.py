"""The table of our own routes: what each is called, takes and answers with. The router and the document are made of it.

``name`` is a method of ``native``; types are those of ``native_model`` and ``model``. Nothing here runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from provider_kairos.api import native_model as shapes
from provider_kairos.api.events import KINDS
from provider_kairos.api.model import PeerStatus, ProviderDocument, StatusDocument, WatchDocument

__all__ = ["EVENTS", "OPERATIONS", "Operation", "Query"]

TEXT = "text/plain; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"
STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Query:
    """One parameter of the query; ``many`` may be given several times."""

    name: str
    kind: type
    words: str
    many: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Operation:
    """One route. ``answer`` is the type of its JSON, None where ``media`` is something else.

    ``errors`` are the statuses that it may refuse with, beside those that every route may. ``older`` is the same route's
    path in earlier versions.
    """

    method: str
    path: str
    name: str
    words: str
    answer: Any = None
    body: Any = None
    query: tuple[Query, ...] = ()
    errors: tuple[int, ...] = ()
    media: str = "application/json"
    older: str = ""


_DELETED = Query("deleted", bool, "`true`: tombstones too")

OPERATIONS: Final[tuple[Operation, ...]] = (
    # the node
    Operation(
        "GET",
        "/v1/status",
        "status",
        "How the node does: phases, what it waits for, peers, VPN, ledger, counters",
        StatusDocument,
        older="/api/v1/status",
    ),
    Operation(
        "GET",
        "/v1/healthz",
        "healthz",
        "200 `ok` while the daemon's tasks run, else 503",
        media=TEXT,
        errors=(503,),
        older="/api/v1/healthz",
    ),
    Operation("GET", "/v1/peers", "peers", "Every other node that this one knows", shapes.PeersDocument),
    Operation("GET", "/v1/peers/:peer_id", "peer", "One of them", PeerStatus, errors=(404,)),
    Operation("GET", "/v1/counters", "counters", "What happened since the start, by kind", shapes.CountersDocument),
    Operation("GET", "/v1/traffic", "traffic", "Bytes by protocol and by peer", shapes.TrafficDocument),
    Operation("GET", "/v1/metrics", "metrics", "The same and more, as Prometheus reads it", media=METRICS),
    Operation(
        "GET",
        "/v1/provider",
        "provider",
        "What the provider of this machine says of itself",
        ProviderDocument,
        errors=(404,),
    ),
    Operation(
        "GET",
        "/v1/peergate",
        "gate",
        "Whether the peer gate is closed to strangers",
        shapes.GateDocument,
        errors=(404,),
    ),
    Operation(
        "PUT",
        "/v1/peergate",
        "set_gate",
        "Close or open it",
        shapes.GateDocument,
        body=shapes.GateBody,
        errors=(400, 404, 415),
    ),
    # the ledger
    Operation("GET", "/v1/ledger", "ledger", "Which buckets there are", shapes.LedgerDocument),
    Operation(
        "GET",
        "/v1/ledger/:bucket",
        "bucket",
        "The records of a bucket; an unknown one is empty",
        shapes.BucketDocument,
        query=(_DELETED,),
        errors=(400,),
    ),
    Operation(
        "DELETE",
        "/v1/ledger/:bucket",
        "delete_bucket",
        "Delete every record of a bucket",
        shapes.WriteDocument,
        errors=(409, 503),
    ),
    Operation(
        "GET",
        "/v1/ledger/:bucket/:key?",
        "record",
        "One record",
        shapes.RecordDocument,
        query=(_DELETED,),
        errors=(400, 404),
    ),
    Operation(
        "PUT",
        "/v1/ledger/:bucket/:key?",
        "put_record",
        "Write one record",
        shapes.WriteDocument,
        body=shapes.WriteBody,
        errors=(400, 409, 415, 503),
    ),
    Operation(
        "DELETE",
        "/v1/ledger/:bucket/:key?",
        "delete_record",
        "Delete one record; one that is absent too",
        shapes.WriteDocument,
        errors=(409, 503),
    ),
    # what the ledger says
    Operation("GET", "/v1/nodes", "nodes", "Nodes with a virtual IP, this one included", shapes.NodesDocument),
    Operation("GET", "/v1/services", "services", "Services that peers expose", shapes.ServicesDocument),
    Operation("GET", "/v1/files", "files", "Files that peers serve", shapes.FilesDocument),
    Operation("GET", "/v1/users", "users", "Peers that use services or files", shapes.UsersDocument),
    Operation("GET", "/v1/dns", "dns", "The name server's entries", shapes.DnsDocument),
    Operation(
        "PUT",
        "/v1/dns/:pattern?",
        "put_dns",
        "Write the entry of a pattern",
        shapes.WriteDocument,
        body=shapes.DnsBody,
        errors=(400, 409, 415, 503),
    ),
    Operation(
        "DELETE",
        "/v1/dns/:pattern?",
        "delete_dns",
        "Delete the entry of a pattern",
        shapes.WriteDocument,
        errors=(409, 503),
    ),
    # what happens
    Operation(
        "GET",
        "/v1/watch",
        "watch",
        "The state of buckets, as soon as one has changed after `since` of `instance`; without `since` at once",
        WatchDocument,
        query=(
            Query("bucket", str, "which; none: all", many=True),
            Query("instance", str, "of the answer that `since` comes from"),
            Query("since", int, "the revision that was seen"),
            Query("timeout", float, "seconds after which there is an answer anyway, 0 to 60; 25"),
        ),
        errors=(400,),
        older="/api/v1/watch",
    ),
    Operation(
        "GET",
        "/v1/events",
        "events",
        "What happens, as a stream of server-sent events",
        query=(
            Query("kind", str, "which; none: all", many=True, choices=KINDS),
            Query("bucket", str, "records of these buckets only", many=True),
            Query("key", str, "records of these keys only", many=True),
            Query("snapshot", bool, "`true`: the present state first"),
            Query("last_event_id", str, "as the header Last-Event-ID, for clients that cannot set it"),
        ),
        errors=(400, 503),
        media=STREAM,
    ),
    Operation("GET", "/v1/openapi.json", "openapi", "This document", media="application/openapi+json"),
)

EVENTS: Final[dict[str, Any]] = {
    "hello": shapes.HelloEvent,
    "ledger": shapes.LedgerEvent,
    "peer": shapes.PeerEvent,
    "address": shapes.AddressEvent,
    "phase": shapes.PhaseEvent,
    "waiting": shapes.WaitingEvent,
    "role": shapes.RoleEvent,
    "synced": shapes.SyncedEvent,
    "lost": shapes.LostEvent,
}
"""What the data of each kind of event holds."""
