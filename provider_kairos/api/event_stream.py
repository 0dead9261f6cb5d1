"""``GET /v1/events``: what happens, as server-sent events (the format of HTML's EventSource).

A stream begins with ``hello``. A client that names the last event it saw (``Last-Event-ID``) and has missed nothing goes
on from there. Any other is sent the present state first where it asks for it (``snapshot=true``): records and peers, the
address, phases, reasons and the role, then ``synced``; what changed meanwhile follows. When a client falls behind what
is kept, it gets ``lost`` and the same again. Nothing is gathered for a slow client: a record is read when it is sent.

While nothing happens a comment goes out every :data:`HEARTBEAT` seconds, with the present position, so that a dead
connection is noticed and a quiet client can resume.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import trio

from provider_kairos.api.backend import Backend
from provider_kairos.api.events import Event
from provider_kairos.api.http import Send
from provider_kairos.api.model import SCHEMA
from provider_kairos.api.native_model import HelloEvent, LedgerEvent, LostEvent, SyncedEvent
from provider_kairos.api.records import record
from provider_kairos.token import gojson

__all__ = ["HEARTBEAT", "Filter", "stream_events"]

HEARTBEAT = 15.0
PIECE = 16_384
"""Bytes that are sent together when there are as many."""


@dataclass(frozen=True, slots=True)
class Filter:
    """What a stream tells. Empty ``buckets`` and ``keys`` stand for all; they are about records only."""

    kinds: Collection[str]
    buckets: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    snapshot: bool = False

    def takes(self, event: Event) -> bool:
        """Whether the stream tells this event."""
        return event.kind in self.kinds and (event.kind != "ledger" or self.wants(event.bucket, event.key))

    def wants(self, bucket: str, key: str) -> bool:
        """Whether it is about this record."""
        return (not self.buckets or bucket in self.buckets) and (not self.keys or key in self.keys)


async def stream_events(backend: Backend, wanted: Filter, last_seen: str, send: Send) -> None:
    """Tell one client, until cancelled. ``last_seen`` is what it names as the last event; empty for none."""
    await _Stream(backend, wanted, send).run(last_seen)


class _Stream:
    def __init__(self, backend: Backend, wanted: Filter, send: Send) -> None:
        self._backend = backend
        self._log = backend.events.log
        self._wanted = wanted
        self._send = send
        self._pending: list[bytes] = []
        self._size = 0
        self._at = 0  # sequence number of the last event that was looked at

    async def run(self, last_seen: str) -> None:
        resumed = self._resume(last_seen)
        hello: HelloEvent = {
            "schema": SCHEMA,
            "instance": self._backend.instance,
            "sequence": self._at,
            "revision": self._backend.revision,
            "resumed": resumed,
        }
        await self._tell("hello", hello, position="here" if resumed or not self._wanted.snapshot else "none")
        if not resumed and self._wanted.snapshot:
            await self._state()
        while True:
            await self._flush()
            await self._wait()
            if self._log.knows(self._at):
                await self._changes()
            else:
                await self._lost()

    def _resume(self, last_seen: str) -> bool:
        self._at = self._log.last
        instance, _, number = last_seen.rpartition("-")
        if instance != self._backend.instance or not (number.isascii() and number.isdigit() and len(number) < 20):
            return False
        if not self._log.knows(int(number)):
            return False
        self._at = int(number)
        return True

    async def _wait(self) -> None:
        while self._log.last <= self._at:
            with trio.move_on_after(HEARTBEAT) as scope:
                await self._log.wait(self._at)
            if scope.cancelled_caught:
                await self._send(f":\nid: {self._backend.instance}-{self._at}\n\n".encode())

    async def _changes(self) -> None:
        events = self._log.after(self._at)
        # of a record that changed several times the last change says everything
        newest = {(e.bucket, e.key): e.sequence for e in events if e.kind == "ledger"}
        for event in events:
            self._at = event.sequence
            if not self._wanted.takes(event):
                continue
            if event.kind != "ledger":
                await self._tell_text(event.kind, event.data)
            elif newest[event.bucket, event.key] == event.sequence:
                await self._tell("ledger", self._record(event.bucket, event.key, snapshot=False))

    async def _lost(self) -> None:
        missed = self._log.last - self._at
        self._at = self._log.last
        lost: LostEvent = {"missed": missed}
        await self._tell("lost", lost, position="none" if self._wanted.snapshot else "here")
        if self._wanted.snapshot:
            await self._state()

    async def _state(self) -> None:
        """The present state; what changes while it is being sent follows, because we stand at the beginning of it."""
        self._at = self._log.last
        if "ledger" in self._wanted.kinds:
            for bucket, key in self._places():
                if self._backend.get(bucket, key) is not None:
                    await self._tell("ledger", self._record(bucket, key, snapshot=True), position="same")
        for kind, data in self._backend.events.present(self._wanted.kinds):
            await self._tell(kind, data, position="same")
        synced: SyncedEvent = {"revision": self._backend.revision}
        await self._tell("synced", synced)

    def _places(self) -> list[tuple[str, str]]:
        names = self._wanted.buckets or self._backend.current().keys()
        wants: Callable[[str, str], bool] = self._wanted.wants
        return [(n, key) for n in sorted(names) for key in sorted(self._backend.bucket(n) or {}) if wants(n, key)]

    def _record(self, bucket: str, key: str, *, snapshot: bool) -> LedgerEvent:
        shown = record(key, self._backend.entry(bucket, key))
        return {**shown, "bucket": bucket, "revision": self._backend.revision, "snapshot": snapshot}

    # -- writing

    async def _tell(self, kind: str, data: Any, *, position: str = "here") -> None:
        await self._tell_text(kind, gojson.dumps(data), position)

    async def _tell_text(self, kind: str, data: str, position: str = "here") -> None:
        """``position``: where a client may resume afterwards: ``here``, ``none`` (nowhere), or the ``same`` as before."""
        place = {"here": f"id: {self._backend.instance}-{self._at}\n", "none": "id\n", "same": ""}[position]
        piece = f"event: {kind}\n{place}data: {data}\n\n".encode("utf-8", "replace")
        self._pending.append(piece)
        self._size += len(piece)
        if self._size >= PIECE:
            await self._flush()

    async def _flush(self) -> None:
        if self._pending:
            out = b"".join(self._pending)
            self._pending.clear()
            self._size = 0
            await self._send(out)
