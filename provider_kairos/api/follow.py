"""Following a daemon instead of asking it again and again: its events, and the state of buckets as it changes.

Three ways, best first, chosen by what the daemon has: the stream of ``/v1/events``; the long poll of ``/v1/watch`` (ours
of an earlier version, or when too many streams are open); polling once a second (EdgeVPN's). Whoever follows need not know
which. Only the stream tells anything but records.

A daemon that goes away, or says nothing for :data:`PATIENCE` seconds, ends the following with an error: what to do then is
the caller's decision. ``last_id`` says where to go on.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

import trio

from provider_kairos.api.connection import Connection
from provider_kairos.api.model import ValueCodingError, decode_value, plain_value
from provider_kairos.api.paths import quote_native
from provider_kairos.api.sse import EventReader
from provider_kairos.api.transport import Transport, status_error
from provider_kairos.api.watching import WatchCursor, WatchResult
from provider_kairos.errors import NotFoundError, PeerError, UnreachableError

__all__ = ["BucketFollower", "DaemonEvent", "EventFollower", "Watcher"]

log = logging.getLogger(__name__)

PATIENCE = 40.0
"""Seconds of silence after which a daemon counts as stuck: its heartbeats come every 15 s."""

CONTROL = frozenset({"hello", "synced", "lost"})


@dataclass(frozen=True, slots=True)
class DaemonEvent:
    """One event; what ``data`` holds depends on ``kind`` (docs/reference/api.md). ``id`` is for resuming."""

    kind: str
    data: Mapping[str, Any] = field(repr=False)
    id: str = ""


class Watcher(Protocol):
    """What following needs of :class:`provider_kairos.api.client.DaemonClient`."""

    async def watch(
        self, buckets: Sequence[str], since: WatchCursor | None = None, timeout: float = 25.0
    ) -> WatchResult:
        """The buckets as soon as they differ."""
        ...

    async def ledger(self) -> dict[str, dict[str, str]]:
        """Bucket to key to ledger text."""
        ...


class _Stream:
    """The stream of a daemon that has it."""

    def __init__(self, transport: Transport, query: str, last_id: str) -> None:
        self._transport = transport
        self._query = query
        self._reader = EventReader()
        self._reader.last_id = last_id
        self._connection: Connection | None = None

    @property
    def last_id(self) -> str:
        return self._reader.last_id

    async def open(self) -> bool:
        """False when the daemon has no stream for us. Raises what a request raises."""
        last = self._reader.last_id
        with trio.move_on_after(PATIENCE) as scope:
            connection = await self._transport.connect()
            try:
                headers = [("Last-Event-ID", last)] if last and last.isascii() and last.isprintable() else []
                refusal = await connection.open(f"/v1/events?{self._query}", headers)
            except BaseException:
                connection.close()
                raise
        if scope.cancelled_caught:
            raise self._transport.too_slow(PATIENCE)
        if refusal is None:
            self._connection = connection
            return True
        connection.close()
        if refusal.status not in {404, 503}:
            raise status_error(self._transport.address, "GET", "/v1/events", refusal)
        return False

    async def read(self) -> list[DaemonEvent]:
        """Events, at least one unless a heartbeat came. Raises UnreachableError at the end of the stream."""
        assert self._connection is not None
        with trio.move_on_after(PATIENCE) as scope:
            piece = await self._connection.piece()
        if scope.cancelled_caught:
            raise self._transport.too_slow(PATIENCE)
        if not piece:
            raise UnreachableError(
                f"the daemon at {self._transport.address} ended the stream of events",
                hint="it was stopped or restarted",
            )
        return [
            _decoded(event.kind, event.data, event.id, self._transport.address) for event in self._reader.feed(piece)
        ]

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _decoded(kind: str, data: str, place: str, address: str) -> DaemonEvent:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise PeerError(f"the daemon at {address} sends an event with an unexpected shape")
    return DaemonEvent(kind, value, place)


class EventFollower:
    """Events of a daemon, one after the other: ``async with client.events(...) as events: async for event in events``.

    Without a stream there are ``ledger`` events alone, made of what differs between two looks, with the fields ``bucket``,
    ``key``, ``text``, ``value``, ``deleted`` and ``snapshot``.
    """

    def __init__(
        self,
        transport: Transport,
        watcher: Watcher,
        *,
        kinds: Sequence[str] = (),
        buckets: Sequence[str] = (),
        keys: Sequence[str] = (),
        snapshot: bool = True,
        last_id: str = "",
        poll_interval: float = 1.0,
    ) -> None:
        chosen = [("kind", kinds), ("bucket", buckets), ("key", keys)]
        query = [f"{name}={quote_native(text)}" for name, texts in chosen for text in texts]
        query.append(f"snapshot={str(snapshot).lower()}")
        self._stream = _Stream(transport, "&".join(query), last_id)
        self._transport = transport
        self._watcher = watcher
        self._kinds, self._buckets, self._keys = kinds, tuple(buckets), frozenset(keys)
        self._snapshot = snapshot
        self._poll_interval = poll_interval
        self._ready: list[DaemonEvent] = []
        self._seen: dict[tuple[str, str], str] | None = None
        self._cursor: WatchCursor | None = None
        self.streaming = False
        """Whether the daemon tells by itself."""

    @property
    def last_id(self) -> str:
        """The last event that was seen, for going on there; empty where there is no stream."""
        return self._stream.last_id

    async def __aenter__(self) -> Self:
        self.streaming = await self._stream.open()
        if not self.streaming:
            if self._kinds and "ledger" not in self._kinds:
                raise NotFoundError(f"the daemon at {self._transport.address} tells of records only")
            log.info("the daemon at %s has no stream of events for us: looking again", self._transport.address)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> DaemonEvent:
        while not self._ready:
            self._ready = await (self._stream.read() if self.streaming else self._look())
        return self._ready.pop(0)

    async def batch(self) -> list[DaemonEvent]:
        """All events that are there, at least one."""
        first = await self.__anext__()
        rest, self._ready = self._ready, []
        return [first, *rest]

    # -- without a stream

    async def _look(self) -> list[DaemonEvent]:
        if self._buckets:
            result = await self._watcher.watch(self._buckets, self._cursor)
            self._cursor = result.cursor
            state: Mapping[str, Mapping[str, str] | None] = result.texts
        else:
            if self._seen is not None:
                await trio.sleep(self._poll_interval)
            state = await self._watcher.ledger()
        now = {
            (bucket, key): text
            for bucket, texts in state.items()
            for key, text in (texts or {}).items()
            if not self._keys or key in self._keys
        }
        first, before = self._seen is None, self._seen or {}
        self._seen = now
        changed = [place for place, text in now.items() if before.get(place) != text]
        events = [_record(place, now[place], snapshot=first) for place in changed if not first or self._snapshot]
        events += [_record(place, None, snapshot=False) for place in before if place not in now]
        if first:
            hello = DaemonEvent("hello", {"resumed": False})
            events = [hello, *events, *([DaemonEvent("synced", {})] if self._snapshot else [])]
        return events


def _record(place: tuple[str, str], text: str | None, *, snapshot: bool) -> DaemonEvent:
    bucket, key = place
    value = None
    for read in (decode_value, plain_value):
        try:
            value = read(text or "")
            break
        except ValueCodingError:
            continue
    facts = {"bucket": bucket, "key": key, "text": text or "", "value": value}
    return DaemonEvent("ledger", {**facts, "deleted": text is None, "snapshot": snapshot})


class BucketFollower:
    """The state of buckets, at once and after every change: ``async with client.follow(...) as states: async for ...``.

    Changes that come together are one state.
    """

    def __init__(self, transport: Transport, watcher: Watcher, buckets: Sequence[str]) -> None:
        self._names = tuple(dict.fromkeys(buckets))
        self._events = EventFollower(transport, watcher, kinds=("ledger",), buckets=self._names)
        self._texts: dict[str, dict[str, str]] = {name: {} for name in self._names}
        self._cursor = WatchCursor()
        self._synced = False

    async def __aenter__(self) -> Self:
        await self._events.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._events.__aexit__(kind, error, trace)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchResult:
        while True:
            events = await self._events.batch()
            news = [self._take(event) for event in events]
            if any(news) and self._synced:
                texts = {name: dict(found) if (found := self._texts[name]) else None for name in self._names}
                return WatchResult(self._cursor, texts, native=self._events.streaming)

    def _take(self, event: DaemonEvent) -> bool:
        """Note an event; whether the state may be another one."""
        data = event.data
        if event.kind in CONTROL:
            if event.kind == "hello":
                self._cursor = WatchCursor(str(data.get("instance", "")), self._cursor.revision)
            self._synced = event.kind == "synced"
            if not self._synced:
                self._texts = {name: {} for name in self._names}
            return self._synced
        bucket, key, text = data.get("bucket"), data.get("key"), data.get("text")
        if bucket not in self._texts or not isinstance(key, str) or not isinstance(text, str):
            return False
        if data.get("deleted"):
            self._texts[bucket].pop(key, None)
        else:
            self._texts[bucket][key] = text
        revision = data.get("revision")
        if isinstance(revision, int):
            self._cursor = WatchCursor(self._cursor.instance, revision)
        return True
