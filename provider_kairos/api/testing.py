"""A daemon that is only its state, and a server around it: for tests of the API and of everything that uses it.

Writes take effect at once; nothing is gossiped, nothing expires. ``FakeBackend().persist("kairos", "ip-master",
ledger_text("10.1.0.1"))`` is a daemon that has heard of a master.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import trio

from provider_kairos.api.backend import PeerGate
from provider_kairos.api.http import Limits
from provider_kairos.api.model import StatusDocument, Traffic
from provider_kairos.api.revisions import Revisions
from provider_kairos.api.server import serve
from provider_kairos.token import gojson

__all__ = ["PEER", "FakeBackend", "FakeGate", "ask", "raw_exchange", "serving"]

PEER = "12D3KooWExWTbqjm7iCZKTHZrrbhhrSjWbE6kPbUQstnNBUUMNU1"


class FakeGate:
    """A peer gate that is only its state."""

    def __init__(self, *, enabled: bool = True) -> None:
        self.enabled = enabled

    def switch(self, *, on: bool) -> None:
        """At once."""
        self.enabled = on


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

    async def wait_revision(self, since: int, buckets: frozenset[str]) -> int:
        """Wait as the daemon does; ``waiting`` counts the waiters."""
        self.waiting += 1
        try:
            return await self.revisions.wait(since, buckets)
        finally:
            self.waiting -= 1

    def persist(self, bucket: str, key: str, text: str) -> None:
        """Write."""
        self.data.setdefault(bucket, {})[key] = text
        self.revisions.changed([bucket])

    def delete_key(self, bucket: str, key: str) -> None:
        """Delete a record."""
        if self.data.get(bucket, {}).pop(key, None) is not None:
            self.revisions.changed([bucket])

    def delete_bucket(self, bucket: str) -> None:
        """Delete a bucket."""
        if self.data.pop(bucket, None):
            self.revisions.changed([bucket])

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

    def status(self) -> StatusDocument:
        """A minimal document."""
        return cast("StatusDocument", {"schema": 1, "instance": self.instance, "ready": True, "peer_id": self.peer_id})


@asynccontextmanager
async def serving(
    backend: Any, listen: str, limits: Limits | None = None, unix_mode: int = 0o600
) -> AsyncIterator[str]:
    """The server, running; gives the address."""
    async with trio.open_nursery() as nursery:

        async def start(task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            await serve(backend, listen, unix_mode=unix_mode, limits=limits, task_status=task_status)

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
