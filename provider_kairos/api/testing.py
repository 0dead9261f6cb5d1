"""A daemon that is only its state, and a server around it: for tests of the API and of everything that uses it.

Writes take effect at once; nothing is gossiped, nothing expires. ``FakeBackend().persist("kairos", "ip-master",
ledger_text("10.1.0.1"))`` is a daemon that has heard of a master.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from provider_kairos.api.backend import PeerGate
from provider_kairos.api.events import EventLog
from provider_kairos.api.http import Limits, Load
from provider_kairos.api.model import PeerStatus, ProviderDocument, StatusDocument, Traffic
from provider_kairos.api.revisions import Revisions
from provider_kairos.api.server import serve
from provider_kairos.ledger.entry import Entry
from provider_kairos.ledger.model import Rejection, Written
from provider_kairos.token import gojson

__all__ = ["PEER", "FakeBackend", "FakeEvents", "FakeGate", "ask", "raw_exchange", "serving"]

PEER = "12D3KooWExWTbqjm7iCZKTHZrrbhhrSjWbE6kPbUQstnNBUUMNU1"


class FakeGate:
    """A peer gate that is only its state."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled

    def switch(self, *, on: bool) -> None:
        """At once."""
        self.enabled = on


class FakeEvents:
    """An event log, and a present state that is what it was set to."""

    def __init__(self, log: EventLog | None = None) -> None:
        self.log = log or EventLog()
        self.state: list[tuple[str, Mapping[str, Any]]] = []

    def present(self, kinds: Collection[str]) -> list[tuple[str, Mapping[str, Any]]]:
        """The events of ``state`` that are wanted."""
        return [each for each in self.state if each[0] in kinds]


class FakeBackend:
    """Implements :class:`~provider_kairos.api.backend.Backend`; all its state is public and may be set."""

    def __init__(self, data: Mapping[str, Mapping[str, str]] | None = None, peer_id: str = PEER) -> None:
        self.data: dict[str, dict[str, str]] = {name: dict(keys) for name, keys in (data or {}).items()}
        self.peer_id = peer_id
        self.instance = "fake1"
        self.revisions = Revisions()
        self.block_index = 0
        self.block: str | None = None
        self.topic: list[str] | None = []
        self.links: list[str] = []
        self.known = [peer_id]
        self.now = 1_700_000_000.0
        self.is_healthy = True
        self.total = Traffic(TotalIn=0, TotalOut=0, RateIn=0.0, RateOut=0.0)
        self.protocols: dict[str, Traffic] = {}
        self.peers: dict[str, Traffic] = {}
        self.gate: PeerGate | None = None
        self.debug = False
        self.events = FakeEvents()
        self.authors: dict[tuple[str, str], str] = {}
        self.graves: set[tuple[str, str]] = set()
        self.document: ProviderDocument | None = None
        self.others: list[PeerStatus] = []
        self.counters: dict[str, int] = {}
        self.reasons: list[Mapping[str, object]] = []
        self.waiting = 0
        self.flushed = 0

    @property
    def revision(self) -> int:
        """Revision of the last write."""
        return self.revisions.latest

    def block_json(self) -> str:
        """The block as set, else a minimal one."""
        return self.block if self.block is not None else gojson.dumps({"Index": self.block_index})

    def current(self) -> Mapping[str, Mapping[str, str]]:
        """All buckets that have keys."""
        return {name: keys for name, keys in self.data.items() if keys}

    def bucket(self, name: str) -> Mapping[str, str] | None:
        """One bucket."""
        return self.data.get(name) or None

    def get(self, bucket: str, key: str) -> str | None:
        """One record."""
        return self.data.get(bucket, {}).get(key)

    def bucket_names(self) -> set[str]:
        """Buckets with records or tombstones."""
        return {name for name, keys in self.data.items() if keys} | {bucket for bucket, _ in self.graves}

    def entries(self, bucket: str) -> dict[str, Entry]:
        """Entries as of :meth:`entry`."""
        keys = {*self.data.get(bucket, {}), *(key for name, key in self.graves if name == bucket)}
        return {key: entry for key in keys if (entry := self.entry(bucket, key)) is not None}

    def entry(self, bucket: str, key: str) -> Entry | None:
        """A record of ``authors``, else of ours; what was deleted is a tombstone."""
        text = self.data.get(bucket, {}).get(key)
        if text is None and (bucket, key) not in self.graves:
            return None
        author = self.authors.get((bucket, key), self.peer_id)
        return Entry(text or "", author, 2**60 + 1, int(self.now), deleted=text is None, sig=b"signature")

    async def wait_revision(self, since: int, buckets: frozenset[str]) -> int:
        """Wait as the daemon does; ``waiting`` counts the waiters."""
        self.waiting += 1
        try:
            return await self.revisions.wait(since, buckets)
        finally:
            self.waiting -= 1

    def persist(self, bucket: str, key: str, text: str) -> Written:
        """Write; a record of somebody else (``authors``) is refused."""
        if refused := self._refused(bucket, key):
            return Written(refused=refused)
        self.graves.discard((bucket, key))
        changed = self.data.setdefault(bucket, {}).get(key) != text
        self.data[bucket][key] = text
        return self._changed({(bucket, key)} if changed else set())

    def delete_key(self, bucket: str, key: str) -> Written:
        """Delete a record."""
        if key not in self.data.get(bucket, {}):
            return Written()
        if refused := self._refused(bucket, key):
            return Written(refused=refused)
        del self.data[bucket][key]
        self.graves.add((bucket, key))
        return self._changed({(bucket, key)})

    def delete_bucket(self, bucket: str) -> Written:
        """Delete a bucket."""
        done = [self.delete_key(bucket, key) for key in list(self.data.get(bucket, {}))]
        changed = frozenset[tuple[str, str]]().union(*(each.changed for each in done))
        return Written(changed, tuple(refusal for each in done for refusal in each.refused))

    def _refused(self, bucket: str, key: str) -> tuple[Rejection, ...]:
        owner = self.authors.get((bucket, key), self.peer_id)
        return () if owner == self.peer_id else (Rejection(bucket, key, owner, "it belongs to a live peer"),)

    def _changed(self, places: set[tuple[str, str]]) -> Written:
        if places:
            self.revisions.changed({bucket for bucket, _ in places})
            self.events.log.records(places)
        return Written(frozenset(places))

    async def persisted(self) -> None:
        """At once; ``flushed`` counts."""
        self.flushed += 1
        await trio.lowlevel.checkpoint()

    def on_topic(self) -> list[str] | None:
        """As set."""
        return self.topic

    def connected(self) -> list[str]:
        """As set."""
        return self.links

    def peerstore(self) -> list[str]:
        """As set."""
        return self.known

    def traffic(self) -> Traffic:
        """As set."""
        return self.total

    def traffic_by_protocol(self) -> Mapping[str, Traffic]:
        """As set."""
        return self.protocols

    def traffic_by_peer(self) -> Mapping[str, Traffic]:
        """As set."""
        return self.peers

    def unix_time(self) -> float:
        """As set."""
        return self.now

    def healthy(self) -> bool:
        """As set."""
        return self.is_healthy

    def provider(self) -> ProviderDocument | None:
        """As set."""
        return self.document

    def status(self) -> StatusDocument:
        """A whole document; what matters of it may be set."""
        current = self.current()
        return {
            "schema": 1,
            "instance": self.instance,
            "version": "0.0",
            "peer_id": self.peer_id,
            "hostname": "fake",
            "ready": True,
            "uptime_seconds": 1.5,
            "phases": [{"name": "mesh", "state": "done", "seconds": 0.5}],
            "waiting": self.reasons,
            "vpn": {"enabled": True, "interface": "edgevpn0", "address": "10.1.0.1/24", "mtu": 1200},
            "ledger": {
                "index": self.block_index,
                "revision": self.revision,
                "ownership": "enforce",
                "buckets": len(current),
                "records": sum(map(len, current.values())),
            },
            "peers": self.others,
            "connections": {"open": 0, "inbound": 0, "members": 0, "known": 1, "low": 0, "high": 0, "most": 0},
            "counters": self.counters,
        }


@asynccontextmanager
async def serving(
    backend: Any, listen: str, limits: Limits | None = None, unix_mode: int = 0o600, load: Load | None = None
) -> AsyncIterator[str]:
    """The server, running; gives the address."""
    async with trio.open_nursery() as nursery:

        async def start(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            await serve(backend, listen, unix_mode=unix_mode, limits=limits, load=load, task_status=task_status)

        address = await nursery.start(start)
        try:
            yield address
        finally:
            nursery.cancel_scope.cancel()


async def raw_exchange(address: str, data: bytes, *, half_close: bool = False) -> bytes:
    """Send bytes, read until the server closes."""
    stream = await trio.open_unix_socket(address.removeprefix("unix://"))
    async with stream:
        await stream.send_all(data)
        if half_close:
            await stream.send_eof()
        out = b""
        while chunk := await stream.receive_some(65536):
            out += chunk
        return out


async def ask(
    address: str, method: str, path: str, body: bytes = b"", headers: str = ""
) -> tuple[int, dict[str, str], str]:
    """One request on a connection of its own: status, headers (lower-case names), body."""
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}"
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    answer = await raw_exchange(address, head.encode("utf-8", "surrogateescape") + b"\r\n" + body)
    top, _, rest = answer.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    pairs = dict(line.split(": ", 1) for line in lines)
    return int(first.split()[1]), {k.lower(): v for k, v in pairs.items()}, rest.decode("utf-8", "surrogateescape")
