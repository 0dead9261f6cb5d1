"""One HTTP/1.1 request passed on from one connection to another, and the answer back: what proxy and egress share.

Bodies stream both ways with the backpressure of both connections; nothing is kept. Hop-by-hop headers end here
(RFC 9110 7.6.1; EdgeVPN's egress forwards them, spec/edgevpn.md 15.2-44). What the connections are and where a request
goes is decided above.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Protocol

import h11
import trio

from provider_kairos.errors import PeerError
from provider_kairos.mesh.streams import StreamEndedError

__all__ = ["Headers", "HttpSide", "RelayError", "TcpWire", "Wire", "end_to_end", "exchange", "plain"]

HEAD_BYTES = 64 * 1024
"""Longest head of a request or an answer."""

HEAD_PATIENCE = 60.0
"""Seconds for the head of a request."""

ANSWER_PATIENCE = 300.0
"""Seconds for the head of an answer: a server may think for long."""

BODY_PATIENCE = 300.0
"""Seconds without a byte in the middle of a body."""

READ = 65_536

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"expect",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"trailers",
        b"upgrade",
    }
)


class RelayError(PeerError):
    """The exchange cannot go on. ``side`` is who is to blame: ``client``, ``server``, or ``time``."""

    def __init__(self, side: str, text: str) -> None:
        super().__init__(text)
        self.side = side


class Fields(Protocol):
    """Headers of an h11 event."""

    def raw_items(self) -> list[tuple[bytes, bytes]]:
        """Names as they were written."""
        ...


class Wire(Protocol):
    """A byte stream under HTTP; a stream of a peer is one."""

    async def read(self, limit: int) -> bytes:
        """Some bytes; none at the end. Raises StreamEndedError."""
        ...

    async def write(self, data: bytes) -> None:
        """Send everything. Raises StreamEndedError."""
        ...


class TcpWire:
    """A TCP or TLS connection as a :class:`Wire`."""

    def __init__(self, stream: trio.SocketStream | trio.SSLStream[trio.SocketStream]) -> None:
        self.stream = stream

    async def read(self, limit: int) -> bytes:
        """Some bytes; none at the end. Raises StreamEndedError."""
        try:
            return bytes(await self.stream.receive_some(limit))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise StreamEndedError(_cause(error)) from error

    async def write(self, data: bytes) -> None:
        """Send everything. Raises StreamEndedError."""
        try:
            await self.stream.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise StreamEndedError(_cause(error)) from error


def _cause(error: BaseException) -> str:
    return str(error.__cause__ or error) or type(error).__name__


class HttpSide:
    """One end of HTTP on a wire. ``role`` is ours."""

    def __init__(self, role: type[h11.CLIENT | h11.SERVER], wire: Wire) -> None:
        self.http = h11.Connection(role, max_incomplete_event_size=HEAD_BYTES)
        self.wire = wire
        self._blame = "server" if role is h11.CLIENT else "client"

    async def receive(self, patience: float) -> h11.Event | type[h11.PAUSED]:
        """The next event. Raises RelayError: nonsense, an early end, too late."""
        try:
            with trio.fail_after(patience):
                while (event := self.http.next_event()) is h11.NEED_DATA:
                    await self.admonish()
                    self.http.receive_data(await self.wire.read(READ))
        except h11.RemoteProtocolError as error:
            raise RelayError(self._blame, f"that is no HTTP: {error}") from error
        except StreamEndedError as error:
            raise RelayError(self._blame, f"the connection broke: {error.message}") from error
        except trio.TooSlowError:
            raise RelayError("time", f"nothing came for {patience:.0f} s") from None
        return event  # type: ignore[return-value] # NEED_DATA is gone

    async def send(self, event: h11.Event) -> None:
        """Send an event. Raises RelayError."""
        try:
            if data := self.http.send(event):
                await self.wire.write(data)
        except h11.LocalProtocolError as error:
            raise RelayError(
                "server" if self._blame == "client" else "client", f"cannot be passed on: {error}"
            ) from error
        except StreamEndedError as error:
            raise RelayError(self._blame, f"the connection broke: {error.message}") from error

    async def admonish(self) -> None:
        """Tell a client that waits for it to go on with its body."""
        if self.http.our_role is h11.SERVER and self.http.they_are_waiting_for_100_continue:
            await self.send(h11.InformationalResponse(status_code=100, headers=[]))


def end_to_end(fields: Fields) -> Headers:
    """Headers without those that are for one connection only, or that the connection's ``Connection`` names."""
    headers = fields.raw_items()
    named = {
        token.strip().lower() for name, value in headers if name.lower() == b"connection" for token in value.split(b",")
    }
    kept = [(name, value) for name, value in headers if name.lower() not in _HOP_BY_HOP | named]
    if any(name.lower() == b"transfer-encoding" for name, _ in kept):
        # both lengths at once are how requests are smuggled past one of two readers
        kept = [(name, value) for name, value in kept if name.lower() != b"content-length"]
    return kept


async def exchange(client: HttpSide, server: HttpSide, request: h11.Request) -> None:
    """Send ``request`` (already as the server is to see it) with the client's body, and give the client the answer.

    Raises RelayError; nothing has been answered then unless the client's side has left its state ``SEND_RESPONSE``.
    """
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_pass_request, client, server, request)
            await _pass_answer(client, server)
            nursery.cancel_scope.cancel()  # an answer may come before the whole request was wanted
    except ExceptionGroup as group:
        matched, others = group.split(RelayError)
        if others is not None or matched is None:
            raise
        raise _first(matched) from None


def _first(group: ExceptionGroup[RelayError]) -> RelayError:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    assert isinstance(error, RelayError)
    return error


async def _pass_request(client: HttpSide, server: HttpSide, request: h11.Request) -> None:
    try:
        await server.send(request)
        while True:
            event = await client.receive(BODY_PATIENCE)
            if isinstance(event, h11.Data):
                await server.send(h11.Data(data=event.data))
            elif isinstance(event, h11.EndOfMessage):
                await server.send(h11.EndOfMessage())
                return
            else:
                raise RelayError("client", "the client went away")
    except RelayError as error:
        if error.side != "server":
            raise
        # it may have answered before it stopped reading: the answer tells


async def _pass_answer(client: HttpSide, server: HttpSide) -> None:
    patience = ANSWER_PATIENCE
    while True:
        event = await server.receive(patience)
        if isinstance(event, h11.InformationalResponse):
            continue
        if isinstance(event, h11.Response):
            await client.send(
                h11.Response(status_code=event.status_code, reason=event.reason, headers=_answer_headers(event.headers))
            )
            patience = BODY_PATIENCE
        elif isinstance(event, h11.Data):
            await client.send(h11.Data(data=event.data))
        elif isinstance(event, h11.EndOfMessage):
            await client.send(h11.EndOfMessage())
            return
        else:
            raise RelayError("server", "the connection ended before the answer was whole")


def _answer_headers(headers: Fields) -> Headers:
    """The connection to the client gets a framing of its own."""
    return [(name, value) for name, value in end_to_end(headers) if name.lower() != b"transfer-encoding"]


async def plain(client: HttpSide, status: int, text: str, headers: Sequence[tuple[str, str]] = ()) -> None:
    """Answer with one line of text, if the client can still be answered, and end the connection."""
    if client.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
        return
    body = f"{text}\n".encode()
    fields = [
        ("Content-Type", "text/plain; charset=utf-8"),
        ("X-Content-Type-Options", "nosniff"),
        ("Content-Length", str(len(body))),
        ("Connection", "close"),
        *headers,
    ]
    try:
        await client.send(h11.Response(status_code=status, reason=HTTPStatus(status).phrase, headers=fields))
        await client.send(h11.Data(data=body))
        await client.send(h11.EndOfMessage())
    except RelayError:
        return  # it is gone
