"""HTTP/1.1 for one connection: h11 on a trio socket, with limits, and nothing that a client sends ends the server.

This file knows requests and answers, not routes (``router``) nor the daemon (``routes``, ``native``). Error texts
below the level of JSON are those of Go's net/http, because EdgeVPN's clients see them (spec/edgevpn.md 11.1, 17).

What all clients together may cost is counted in :class:`Load`: bytes of requests that are not complete and of answers
that are not taken. Over the limit a client is told 503 before anything is made for it.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

import h11
import trio

__all__ = ["Handler", "Limits", "Load", "Request", "Response", "Send", "serve_connection"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What clients may cost us; sizes in bytes, times in seconds."""

    header_bytes: int = (1 << 20) + 4096  # as in Go: a value travels in the path and may be large
    body_bytes: int = 1 << 20
    idle_seconds: float = 75.0  # between two requests of a connection
    request_seconds: float = 10.0  # from the first byte of a request to its last
    send_seconds: float = 30.0
    connections: int = 64
    held_bytes: int = 64 << 20  # of all clients together
    crowded_seconds: float = 1.0  # while all connections are taken, one without a request may be closed after this


@dataclass(slots=True, eq=False)
class Slot:
    """One connection in the crowd. ``waiting_since`` is None while a request of it is being answered."""

    scope: trio.CancelScope
    waiting_since: float | None


@dataclass(slots=True)
class Load:
    """What the clients of one server cost now: bytes kept for them, and their connections."""

    held: int = 0
    slots: set[Slot] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Request:
    """A whole request. ``target`` is as the client sent it; header names are lower-case."""

    method: str
    target: bytes
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    gone: Callable[[], Awaitable[None]]
    """Returns when the client has closed the connection; for handlers that wait."""

    def header(self, name: bytes) -> bytes:
        """Value of the first header of that (lower-case) name, or nothing."""
        return next((value for key, value in self.headers if key == name), b"")


@dataclass(frozen=True, slots=True)
class Response:
    """An answer; ``Content-Length`` is added. An empty ``content_type`` means: no body, no such headers."""

    status: int
    body: bytes = b""
    content_type: str = "application/json"
    headers: Sequence[tuple[str, str]] = ()
    close: bool = False
    stream: Callable[[Send], Awaitable[None]] | None = None
    """Writes the body piece by piece, for as long as it likes; ended when the client goes away."""
    done: Callable[[], None] = lambda: None
    """Called when the stream has ended, however it did."""


Send = Callable[[bytes], Awaitable[None]]
"""Sends one piece; raises BrokenResourceError when the client does not read."""

Handler = Callable[[Request], Awaitable[Response]]


class _HangUpError(Exception):
    """The connection is to be closed, after ``answer`` where there is one."""

    def __init__(self, answer: Response | None = None) -> None:
        super().__init__()
        self.answer = answer


def _plain(status: HTTPStatus, detail: str = "") -> Response:
    text = f"{status.value} {status.phrase}" + (f": {detail}" if detail else "")
    return Response(status, text.encode(), "text/plain; charset=utf-8", close=True)


INTERNAL_ERROR = Response(HTTPStatus.INTERNAL_SERVER_ERROR, b'{"message":"Internal Server Error"}\n')


async def serve_connection(
    stream: trio.SocketStream, handler: Handler, limits: Limits, load: Load | None = None
) -> None:
    """Answer the requests of one connection until either side closes it. Raises nothing but cancellation."""
    server = _Server(stream, handler, limits, load or Load())
    try:
        with server.scope:
            await server.run()
    except (trio.BrokenResourceError, trio.ClosedResourceError, ConnectionError):
        log.debug("an API client went away within an exchange")
    except Exception:
        log.exception("an API connection failed")
    finally:
        server.leave()
        with trio.CancelScope(shield=True):
            await trio.aclose_forcefully(stream)


class _Server:
    def __init__(self, stream: trio.SocketStream, handler: Handler, limits: Limits, load: Load) -> None:
        self._stream = stream
        self._handler = handler
        self._limits = limits
        self._load = load
        self._held = 0  # our part of load.held
        self.scope = trio.CancelScope()
        self._slot = Slot(self.scope, trio.current_time())
        load.slots.add(self._slot)
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=limits.header_bytes)
        self._method = ""
        self._busy = False  # whether a part of a request has arrived

    def leave(self) -> None:
        """Cost nothing any more."""
        self._release()
        self._load.slots.discard(self._slot)

    async def run(self) -> None:
        try:
            while True:
                self._method = ""
                request = await self._read_request()
                self._slot.waiting_since = None
                response = await self._answer(request)
                if response.stream is None:
                    await self._send(response)
                else:
                    try:
                        await self._send_stream(response, response.stream)
                    finally:
                        response.done()
                self._release()
                if response.close or self._h11.our_state is not h11.DONE or self._h11.their_state is not h11.DONE:
                    return
                self._h11.start_next_cycle()
                self._slot.waiting_since = trio.current_time()
        except _HangUpError as hang_up:
            if hang_up.answer is not None and self._h11.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
                await self._send(hang_up.answer)
                await self._drain()

    async def _answer(self, request: Request) -> Response:
        if self._load.held > self._limits.held_bytes:
            raise _HangUpError(_plain(HTTPStatus.SERVICE_UNAVAILABLE))
        try:
            return await self._handler(request)
        except _HangUpError:
            raise
        except Exception:
            # The path is not logged: it may hold a join token.
            log.exception("a handler of the API failed on a %s request", request.method)
            return INTERNAL_ERROR

    # -- what we cost

    def _hold(self, size: int) -> None:
        self._held += size
        self._load.held += size

    def _release(self) -> None:
        self._load.held -= self._held
        self._held = 0

    # -- reading

    async def _read_request(self) -> Request:
        with trio.CancelScope() as scope:
            self._busy = bool(self._h11.trailing_data[0])
            seconds = self._limits.request_seconds if self._busy else self._limits.idle_seconds
            scope.deadline = trio.current_time() + seconds
            head = await self._next(scope)
            if not isinstance(head, h11.Request):
                raise _HangUpError  # closed between two requests
            self._method = head.method.decode("ascii")
            # h11 looks at its limit only between two reads; a last read may jump over it.
            if len(head.target) + sum(len(n) + len(v) + 4 for n, v in head.headers) > self._limits.header_bytes:
                raise _HangUpError(_plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE))
            body = bytearray()
            while True:
                if self._h11.they_are_waiting_for_100_continue:
                    go_on = h11.InformationalResponse(status_code=100, headers=[])
                    await self._stream.send_all(self._h11.send(go_on) or b"")
                event = await self._next(scope)
                if isinstance(event, h11.Data):
                    body += event.data
                    if len(body) > self._limits.body_bytes:
                        raise _HangUpError(_plain(HTTPStatus.REQUEST_ENTITY_TOO_LARGE))
                elif isinstance(event, h11.EndOfMessage):
                    break
                else:
                    raise _HangUpError  # closed within the body
            return Request(self._method, head.target, tuple(head.headers), bytes(body), self._gone)
        raise _HangUpError(_plain(HTTPStatus.REQUEST_TIMEOUT) if self._busy else None)

    async def _next(self, scope: trio.CancelScope) -> object:
        """The next event of h11. The first byte of a request starts the time for all of it."""
        try:
            while (event := self._h11.next_event()) is h11.NEED_DATA:
                data = await self._stream.receive_some(65536)
                if not self._busy:
                    self._busy = True
                    scope.deadline = trio.current_time() + self._limits.request_seconds
                self._hold(len(data))
                if self._load.held > self._limits.held_bytes:
                    raise _HangUpError(_plain(HTTPStatus.SERVICE_UNAVAILABLE))
                self._h11.receive_data(data)
        except h11.RemoteProtocolError as error:
            raise _HangUpError(_refusal(error)) from error
        return event

    async def _gone(self) -> None:
        """Return when the client has closed its side. What it sends meanwhile stays unread."""
        try:
            if await self._stream.socket.recv(1, socket.MSG_PEEK):
                await trio.sleep_forever()  # the next request, pipelined: it is still there
        except OSError:
            return

    # -- writing

    def _head(self, response: Response, headers: Sequence[tuple[str, str]]) -> bytes:
        all_headers = [*response.headers, *headers]
        if response.close:
            all_headers.append(("Connection", "close"))
        reason = HTTPStatus(response.status).phrase
        return self._h11.send(h11.Response(status_code=response.status, headers=all_headers, reason=reason)) or b""

    async def _send(self, response: Response) -> None:
        described = [("Content-Type", response.content_type), ("Content-Length", str(len(response.body)))]
        out = self._head(response, described if response.content_type else ())
        if response.body and self._method != "HEAD":
            out += self._h11.send(h11.Data(data=response.body)) or b""
        out += self._h11.send(h11.EndOfMessage()) or b""
        await self._write(out)

    async def _send_stream(self, response: Response, write: Callable[[Send], Awaitable[None]]) -> None:
        """The body as it comes. Ends with the writer, or with the client."""
        await self._write(self._head(response, [("Content-Type", response.content_type)]))
        finished = False
        try:
            async with trio.open_nursery() as nursery:

                async def end_when_gone() -> None:
                    await self._gone()
                    nursery.cancel_scope.cancel()

                nursery.start_soon(end_when_gone)
                await write(self._send_piece)
                finished = True
                nursery.cancel_scope.cancel()
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            finished = False
        if not finished:
            raise trio.BrokenResourceError("the client went away")
        await self._write(self._h11.send(h11.EndOfMessage()) or b"")

    async def _send_piece(self, piece: bytes) -> None:
        await self._write(self._h11.send(h11.Data(data=piece)) or b"")
        self._release()

    async def _write(self, out: bytes) -> None:
        self._hold(len(out))
        with trio.move_on_after(self._limits.send_seconds) as scope:
            await self._stream.send_all(out)
        if scope.cancelled_caught:
            log.info("an API client did not read its answer within %g s", self._limits.send_seconds)
            raise trio.BrokenResourceError("the client does not read")

    async def _drain(self) -> None:
        """Read on for a moment after a refusal: closing with unread data would reset it away."""
        with trio.move_on_after(1):
            await self._stream.send_eof()
            for _ in range(64):
                if not await self._stream.receive_some(65536):
                    return


def _refusal(error: h11.RemoteProtocolError) -> Response:
    """What Go's server says to a message that is no proper HTTP."""
    if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
        return _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
    if "Host" in str(error):
        return _plain(HTTPStatus.BAD_REQUEST, "missing required Host header")
    return _plain(HTTPStatus.BAD_REQUEST)
