"""Our own routes under ``/v1``: status, peers, the long poll, the stream of events (``operations`` is their table).

``GET /v1/watch?bucket=A&bucket=B&instance=I&since=N&timeout=25`` answers as soon as one of the buckets has changed
after revision N of instance I, at the latest after ``timeout`` seconds (0 to 60), with the state of all of them.
Without ``since``, or when the daemon is another instance by now, it answers at once. A client that goes away ends the
wait. What earlier versions had under ``/api/v1`` is still there.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from importlib import resources
from typing import Any

import trio

from provider_kairos.api import native_model as shapes
from provider_kairos.api.backend import Backend
from provider_kairos.api.event_stream import Filter, stream_events
from provider_kairos.api.events import KINDS, TooManyReadersError
from provider_kairos.api.http import Response, Send
from provider_kairos.api.model import SCHEMA, Traffic, WatchDocument
from provider_kairos.api.native_ledger import LedgerRoutes, flag, json_object
from provider_kairos.api.operations import METRICS, OPERATIONS, STREAM, TEXT
from provider_kairos.api.router import Call, HttpError, Route

__all__ = ["native_routes"]

DEFAULT_TIMEOUT = 25.0
MAX_TIMEOUT = 60.0
MAX_BUCKETS = 64


def native_routes(backend: Backend) -> list[Route]:
    """The routes of the table, each also under its older path."""
    handlers = (_Node(backend), LedgerRoutes(backend))
    routes: list[Route] = []
    for operation in OPERATIONS:
        handler = next(getattr(each, operation.name) for each in handlers if hasattr(each, operation.name))
        routes += [Route(operation.method, path, handler) for path in (operation.path, operation.older) if path]
    return routes


class _Node:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def status(self, _call: Call) -> Any:
        return self._backend.status()

    async def healthz(self, _call: Call) -> Response:
        if self._backend.healthy():
            return Response(HTTPStatus.OK, b"ok\n", TEXT)
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, b"unhealthy\n", TEXT)

    async def peers(self, _call: Call) -> shapes.PeersDocument:
        return {"schema": SCHEMA, "peers": self._backend.status()["peers"]}

    async def peer(self, call: Call) -> Any:
        for each in self._backend.status()["peers"]:
            if each["peer_id"] == call.params["peer_id"]:
                return each
        raise HttpError(HTTPStatus.NOT_FOUND, "no such peer is known")

    async def counters(self, _call: Call) -> shapes.CountersDocument:
        status = self._backend.status()
        return {
            "schema": SCHEMA,
            "instance": self._backend.instance,
            "uptime_seconds": status["uptime_seconds"],
            "counters": dict(sorted(status["counters"].items())),
        }

    async def traffic(self, _call: Call) -> shapes.TrafficDocument:
        return {
            "schema": SCHEMA,
            "total": _count(self._backend.traffic()),
            "by_protocol": {name: _count(each) for name, each in sorted(self._backend.traffic_by_protocol().items())},
            "by_peer": {name: _count(each) for name, each in sorted(self._backend.traffic_by_peer().items())},
        }

    async def metrics(self, _call: Call) -> Response:
        from provider_kairos.api.exposition import exposition  # noqa: PLC0415 - where nobody scrapes it costs nothing

        return Response(HTTPStatus.OK, exposition(self._backend).encode("utf-8", "replace"), METRICS)

    async def provider(self, _call: Call) -> Any:
        document = self._backend.provider()
        if document is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "the provider of this machine has said nothing")
        return document

    async def gate(self, _call: Call) -> shapes.GateDocument:
        return {"schema": SCHEMA, "enabled": self._gate().enabled}

    async def set_gate(self, call: Call) -> shapes.GateDocument:
        gate = self._gate()
        enabled = json_object(call.request, {"enabled"}).get("enabled")
        if not isinstance(enabled, bool):
            raise HttpError(HTTPStatus.BAD_REQUEST, "enabled is neither true nor false")
        gate.switch(on=enabled)
        return {"schema": SCHEMA, "enabled": gate.enabled}

    def _gate(self) -> Any:
        if self._backend.gate is None:
            raise HttpError(HTTPStatus.NOT_FOUND, "this node has no peer gate")
        return self._backend.gate

    async def openapi(self, _call: Call) -> Response:
        text = (resources.files("provider_kairos.api") / "openapi.json").read_bytes()
        return Response(HTTPStatus.OK, text, "application/openapi+json")

    # -- what happens

    async def events(self, call: Call) -> Response:
        kinds = call.query.get("kind") or KINDS
        if unknown := sorted(set(kinds) - set(KINDS)):
            raise HttpError(HTTPStatus.BAD_REQUEST, f"there are no events of kind {unknown[0][:40]!r}")
        wanted = Filter(
            frozenset(kinds),
            frozenset(call.query.get("bucket", ())),
            frozenset(call.query.get("key", ())),
            snapshot=flag(call.query, "snapshot"),
        )
        last = call.request.header(b"last-event-id").decode("latin-1") or call.query.get("last_event_id", [""])[-1]
        try:
            leave = self._backend.events.log.admit(wanted.kinds)
        except TooManyReadersError:
            raise HttpError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "too many streams of events are open",
                code="too-many-streams",
                headers=[("Retry-After", "5")],
            ) from None

        async def write(send: Send) -> None:
            await stream_events(self._backend, wanted, last, send)

        return Response(
            HTTPStatus.OK,
            content_type=STREAM,
            headers=[("Cache-Control", "no-store")],
            stream=write,
            done=leave,
        )

    async def watch(self, call: Call) -> WatchDocument:
        buckets = call.query.get("bucket", ())
        if len(buckets) > MAX_BUCKETS:
            raise HttpError(HTTPStatus.BAD_REQUEST, f"at most {MAX_BUCKETS} buckets may be watched at once")
        since = _number(call.query, "since", -1, int)
        timeout = min(max(_number(call.query, "timeout", DEFAULT_TIMEOUT, float), 0.0), MAX_TIMEOUT)
        instance = (call.query.get("instance") or [self._backend.instance])[0]
        if since >= 0 and instance == self._backend.instance:
            await self._wait(call, since, frozenset(buckets), timeout)
        current = self._backend.current() if not buckets else {name: self._backend.bucket(name) for name in buckets}
        return WatchDocument(
            schema=SCHEMA,
            instance=self._backend.instance,
            revision=self._backend.revision,
            buckets={name: dict(keys) if keys else None for name, keys in current.items()},
        )

    async def _wait(self, call: Call, since: int, buckets: frozenset[str], timeout: float) -> None:
        """Until a change, the time-out, or the client's leaving (then the answer goes nowhere)."""
        with trio.move_on_after(timeout):
            async with trio.open_nursery() as nursery:

                async def end_when_gone() -> None:
                    await call.request.gone()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(end_when_gone)
                await self._backend.wait_revision(since, buckets)
                nursery.cancel_scope.cancel()


def _count(traffic: Traffic) -> shapes.TrafficCount:
    return {
        "bytes_in": traffic["TotalIn"],
        "bytes_out": traffic["TotalOut"],
        "rate_in": traffic["RateIn"],
        "rate_out": traffic["RateOut"],
    }


def _number(query: Mapping[str, Any], name: str, default: float, kind: type) -> Any:
    text = (query.get(name) or [""])[0]
    if not text:
        return default
    try:
        value = kind(text)
    except ValueError:
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{name}={text[:40]!r} is no number") from None
    if value != value:  # noqa: PLR0124 - NaN passes every comparison below
        raise HttpError(HTTPStatus.BAD_REQUEST, f"{name} is no number")
    return value
