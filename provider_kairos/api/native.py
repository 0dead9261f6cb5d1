"""Our own routes under ``/api/v1``: status, a long poll, and a health check. snake_case, ``"schema": 1``.

``GET /api/v1/watch?bucket=A&bucket=B&instance=I&since=N&timeout=25`` answers as soon as one of the buckets has
changed after revision N of instance I, at the latest after ``timeout`` seconds (0 to 60), with the state of all of
them. Without ``since``, or when the daemon is another instance by now, it answers at once. A client that goes away
ends the wait.
"""

from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import trio

from provider_kairos.api.backend import Backend
from provider_kairos.api.http import Response
from provider_kairos.api.model import SCHEMA, WatchDocument
from provider_kairos.api.router import Call, HttpError, Route

__all__ = ["native_routes"]

DEFAULT_TIMEOUT = 25.0
MAX_TIMEOUT = 60.0
MAX_BUCKETS = 64


def native_routes(backend: Backend) -> list[Route]:
    """The table of our routes."""
    api = _Native(backend)
    return [
        Route("GET", "/api/v1/status", api.status),
        Route("GET", "/api/v1/watch", api.watch),
        Route("GET", "/api/v1/healthz", api.healthz),
    ]


class _Native:
    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    async def status(self, _call: Call) -> Any:
        return self._backend.status()

    async def healthz(self, _call: Call) -> Response:
        if self._backend.healthy():
            return Response(HTTPStatus.OK, b"ok\n", "text/plain; charset=utf-8")
        return Response(HTTPStatus.SERVICE_UNAVAILABLE, b"unhealthy\n", "text/plain; charset=utf-8")

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
