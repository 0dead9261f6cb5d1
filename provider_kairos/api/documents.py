"""EdgeVPN's documents, made of what the daemon knows: no HTTP, no waiting.

Specification: spec/edgevpn.md 8.2 to 8.7 and 11.2. Reading a record follows Go: a text that is no object, or a field
of the wrong type, gives empty fields instead of an error. Lists are sorted by key, where Go's order is random.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

from provider_kairos.api.backend import Backend
from provider_kairos.api.dnstypes import NAMES
from provider_kairos.api.model import (
    DnsEntry,
    FileRecord,
    MachineRecord,
    NodeRecord,
    ServiceRecord,
    Summary,
    UserRecord,
    ValueCodingError,
    plain_value,
)

__all__ = ["dns", "files", "heartbeats", "machines", "nodes", "parse_time", "peerstore", "services", "summary", "users"]

MACHINE_ONLINE_SECONDS = 20 * 60
NODE_ONLINE_SECONDS = 10 * 60

_TIME = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(?:([Zz])|([+-])(\d\d):(\d\d))", re.ASCII
)


def parse_time(text: str) -> float:
    """Unix seconds of an RFC 3339 time with 0 to 9 digits of fraction. Raises ValueError."""
    found = _TIME.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is no RFC 3339 time")
    *date, fraction, _, sign, hours, minutes = found.groups()
    offset = timedelta(hours=int(hours or 0), minutes=int(minutes or 0)) * (-1 if sign == "-" else 1)
    if abs(offset) >= timedelta(days=1):
        raise ValueError(f"{text[:40]!r} has an impossible offset")
    whole = datetime(*map(int, date), tzinfo=timezone(offset)).astimezone(UTC).timestamp()  # type: ignore[misc,arg-type]
    return whole + float(f"0.{fraction or 0}")


def heartbeats(backend: Backend) -> dict[str, float]:
    """Unix seconds of each peer's last heartbeat; what is no time is left out."""
    times: dict[str, float] = {}
    for peer, text in (backend.bucket("healthcheck") or {}).items():
        try:
            times[peer] = parse_time(plain_value(text))
        except (ValueError, TypeError, OverflowError, ValueCodingError):
            continue
    return times


def _field(text: str) -> Callable[[str], str]:
    """Reader of the text fields of a record: names in any case, absent or wrong ones empty."""
    try:
        value = plain_value(text)
    except ValueCodingError:
        value = None
    folded = {k.lower(): v for k, v in value.items()} if isinstance(value, dict) else {}

    def read(name: str) -> str:
        found = folded.get(name.lower())
        return found if isinstance(found, str) else ""

    return read


def _records(backend: Backend, bucket: str) -> list[Callable[[str], str]]:
    return [_field(text) for _, text in sorted((backend.bucket(bucket) or {}).items())]


def machines(backend: Backend) -> list[MachineRecord]:
    """GET /api/machines."""
    now = backend.unix_time()
    seen = heartbeats(backend)
    topic = set(backend.on_topic() or ())
    connected = set(backend.connected())
    return [
        MachineRecord(
            PeerID=read("PeerID"),
            Hostname=read("Hostname"),
            OS=read("OS"),
            Arch=read("Arch"),
            Address=read("Address"),
            Version=read("Version"),
            Connected=read("PeerID") in connected,
            OnChain=read("PeerID") in topic,
            Online=seen.get(read("PeerID"), 0.0) + MACHINE_ONLINE_SECONDS > now,
        )
        for read in _records(backend, "machines")
    ]


def users(backend: Backend) -> list[UserRecord]:
    """GET /api/users."""
    return [UserRecord(PeerID=read("PeerID"), Timestamp=read("Timestamp")) for read in _records(backend, "users")]


def services(backend: Backend) -> list[ServiceRecord]:
    """GET /api/services."""
    return [ServiceRecord(PeerID=read("PeerID"), Name=read("Name")) for read in _records(backend, "services")]


def files(backend: Backend) -> list[FileRecord]:
    """GET /api/files."""
    return [FileRecord(PeerID=read("PeerID"), Name=read("Name")) for read in _records(backend, "files")]


def dns(backend: Backend) -> list[DnsEntry]:
    """GET /api/dns: numbers of record types become names."""
    entries: list[DnsEntry] = []
    for regex, text in sorted((backend.bucket("dns") or {}).items()):
        try:
            stored: Any = plain_value(text)
        except ValueCodingError:
            stored = None
        entries.append(DnsEntry(Regex=regex, Records=_named(stored if isinstance(stored, dict) else {})))
    return entries


def _named(stored: Mapping[str, Any]) -> dict[str, str]:
    named = {
        NAMES.get(int(number), ""): text
        for number, text in stored.items()
        if number.isascii() and number.isdigit() and len(number) <= 5 and isinstance(text, str)
    }
    return dict(sorted(named.items()))


def nodes(backend: Backend) -> list[NodeRecord]:
    """GET /api/nodes: peers in the topic and peers with a young heartbeat."""
    now = backend.unix_time()
    alive = {peer for peer, time in heartbeats(backend).items() if time + NODE_ONLINE_SECONDS > now}
    return [NodeRecord(ID=peer, Online=True) for peer in sorted(alive | set(backend.on_topic() or ()))]


def peerstore(backend: Backend) -> list[NodeRecord]:
    """GET /api/peerstore."""
    return [NodeRecord(ID=peer, Online=False) for peer in sorted(backend.peerstore())]


def summary(backend: Backend) -> Summary | None:
    """GET /api/summary; None (the route answers 500) until the room exists."""
    topic = backend.on_topic()
    if topic is None:
        return None

    def count(bucket: str) -> int:
        return len(backend.bucket(bucket) or {})

    return Summary(
        Files=count("files"),
        Machines=count("machines"),
        Users=count("users"),
        Services=count("services"),
        BlockChain=backend.block_index,
        OnChainNodes=len(topic),
        Peers=len(backend.peerstore()),
        NodeID=backend.peer_id,
    )
