"""The API server: listener, connections, routes. One call, :func:`serve`, that runs until it is cancelled.

Specification: spec/edgevpn.md 11. Why h11 and a router of our own: docs/decisions/0003-api-server.md.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from typing import Protocol

import trio

from provider_kairos.api.address import parse_address
from provider_kairos.api.backend import Backend
from provider_kairos.api.http import Limits, Load, serve_connection
from provider_kairos.api.landing import landing_routes
from provider_kairos.api.listener import open_listener
from provider_kairos.api.native import native_routes
from provider_kairos.api.router import Router
from provider_kairos.api.routes import edgevpn_routes

__all__ = ["Limits", "routes", "serve"]

log = logging.getLogger(__name__)


class _Started(Protocol):
    """What a nursery's start() hands over."""

    def started(self, value: str) -> None:
        """Say that we listen, and where."""


_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


_DRAIN = 65536  # bytes of a request that is turned away, read so that closing does not reset the answer


async def _turn_away(stream: trio.SocketStream) -> None:
    """Answer 503 and close so that the client can read it: unread bytes at closing would reset the connection."""
    with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
        await stream.send_all(_BUSY)  # whoever left already needs no answer
        await stream.send_eof()
        left = _DRAIN
        while left > 0 and (data := await stream.receive_some(left)):
            left -= len(data)
    await trio.aclose_forcefully(stream)


def _make_room(load: Load, limits: Limits) -> bool:
    """Close the connection that has been without a request for longest, if for long enough; whether one was found.

    So neither idle connections nor clients that send a byte now and then keep others out.
    """
    waiting = [(since, slot) for slot in load.slots if (since := slot.waiting_since) is not None]
    since, slot = min(waiting, key=lambda each: each[0], default=(trio.current_time(), None))
    if slot is None or trio.current_time() - since < limits.crowded_seconds:
        return False
    log.info("all %d API connections are taken: one without a request is closed", limits.connections)
    load.slots.discard(slot)
    slot.scope.cancel()
    return True


def routes(backend: Backend) -> Router:
    """All routes of the daemon."""
    table = [*edgevpn_routes(backend), *native_routes(backend), *landing_routes()]
    if backend.debug:
        from provider_kairos.api.debug import debug_routes  # noqa: PLC0415 - hardly ever wanted

        table += debug_routes()
    return Router(table)


async def serve(
    backend: Backend,
    listen: str,
    *,
    unix_mode: int = 0o600,
    limits: Limits | None = None,
    environ: Mapping[str, str] | None = None,
    load: Load | None = None,
    task_status: _Started = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve the API at ``listen`` (``unix://PATH`` or ``HOST:PORT``) until cancelled.

    ``unix_mode`` is the mode of the socket file (see ``address.parse_unix_mode``). ``environ`` is looked at for a
    socket passed on by systemd; ``load`` is what clients cost, for whoever wants to see. Reports the address in use (with the real port) when it listens. Raises ConfigError
    for a bad address, HostError when the place cannot be had.
    """
    bounds = limits or Limits()
    router = routes(backend)
    present = load or Load()

    async def handle(stream: trio.SocketStream) -> None:
        if len(present.slots) >= bounds.connections and not _make_room(present, bounds):
            log.warning("more than %d API connections: one is turned away", bounds.connections)
            await _turn_away(stream)
            return
        await serve_connection(stream, router, bounds, present)

    address = parse_address(listen)
    async with open_listener(address, unix_mode, environ) as place:
        where = str(address)
        if not address.path:
            host, port = place.listeners[0].socket.getsockname()[:2]
            where = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        log.info("the API listens at %s", where)
        task_status.started(where)
        await place.serve(handle)
