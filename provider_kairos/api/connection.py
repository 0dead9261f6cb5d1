"""One HTTP/1.1 connection to a daemon, h11 on a trio stream; and the one place where errors of it get their names.

Why not httpx: docs/decisions/0003-api-server.md (70 ms of CPU and 4.4 MB per process for a socket on the same
machine). What a caller sees: :class:`UnreachableError`, :class:`PermissionHostError`, :class:`TimeoutHostError`,
:class:`PeerError`.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import h11
import trio

from provider_kairos.api.address import Address
from provider_kairos.errors import HostError, PeerError, PermissionHostError, UnreachableError

__all__ = ["MAX_ANSWER", "Answer", "Connection"]

MAX_ANSWER = 64 << 20
"""Bytes of an answer that we are willing to hold; a ledger is at most 20 MiB."""

_REMEDY = "start the daemon (systemctl start edgevpn@kairos), or name another address with --api or EDGEVPN_API"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and body of one answer."""

    status: int
    body: bytes


@contextmanager
def _named_errors(address: Address) -> Iterator[None]:
    """Give the errors of sockets and of h11 their place in our tree."""
    try:
        yield
    except PermissionError as error:
        raise PermissionHostError(
            f"the daemon's API at {address} may not be opened by this user", hint="run as root"
        ) from error
    except FileNotFoundError as error:
        raise UnreachableError(f"no daemon listens at {address}: the socket does not exist", hint=_REMEDY) from error
    except h11.RemoteProtocolError as error:
        raise PeerError(f"what answers at {address} does not speak HTTP: {error}") from error
    except trio.BrokenResourceError as error:
        raise UnreachableError(f"the daemon at {address} closed the connection", hint=_REMEDY) from error
    except OSError as error:
        if error.errno in {errno.EMFILE, errno.ENFILE, errno.ENOMEM}:
            raise HostError(f"cannot open a socket to {address}: {error.strerror}") from error
        raise UnreachableError(f"no daemon answers at {address}: {error.strerror or error}", hint=_REMEDY) from error


class Connection:
    """A connection; use one at a time. After any exception or cancellation it is broken and must be closed."""

    def __init__(self, address: Address, stream: trio.SocketStream) -> None:
        self.address = address
        self._stream = stream
        self._h11 = h11.Connection(h11.CLIENT, max_incomplete_event_size=1 << 20)
        self.used = 0

    @classmethod
    async def to(cls, address: Address) -> Connection:
        """Connect."""
        with _named_errors(address):
            if address.path:
                stream = await trio.open_unix_socket(address.path)
            else:
                host = "127.0.0.1" if address.host in {"0.0.0.0", "::"} else address.host
                stream = await trio.open_tcp_stream(host, address.port)
        return cls(address, stream)

    @property
    def reusable(self) -> bool:
        """Whether another request may be sent."""
        return self._h11.our_state is h11.IDLE

    async def request(self, method: str, target: str, body: bytes = b"") -> Answer:
        """Send one request and read its whole answer."""
        headers = [self._host(), ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        message = self._h11.send(h11.Request(method=method, target=target, headers=headers)) or b""
        if body:
            message += self._h11.send(h11.Data(data=body)) or b""
        message += self._h11.send(h11.EndOfMessage()) or b""
        with _named_errors(self.address):
            await self._stream.send_all(message)
            answer = await self._receive()
        self.used += 1
        if self._h11.our_state is h11.DONE and self._h11.their_state is h11.DONE:
            self._h11.start_next_cycle()
        return answer

    def _host(self) -> tuple[str, str]:
        return "Host", "unix" if self.address.path else str(self.address).removeprefix("http://")

    async def open(self, target: str, headers: Sequence[tuple[str, str]] = ()) -> Answer | None:
        """Ask for a stream. None when it is coming (read it with :meth:`piece`), else the answer that refuses it."""
        request = h11.Request(method="GET", target=target, headers=[self._host(), *headers])
        with _named_errors(self.address):
            await self._stream.send_all((self._h11.send(request) or b"") + (self._h11.send(h11.EndOfMessage()) or b""))
            while not isinstance(event := await self._next(started=False), h11.Response):
                pass
            return None if event.status_code == 200 else await self._receive(event.status_code)

    async def piece(self) -> bytes:
        """The next bytes of a stream; nothing at its end, in order or not."""
        with _named_errors(self.address):
            try:
                while not isinstance(event := await self._next(started=True), h11.Data):
                    if isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
                        return b""
            except h11.RemoteProtocolError:
                if self._h11.trailing_data[1]:  # closed in the middle: the daemon was stopped
                    return b""
                raise
            return bytes(event.data)

    async def _next(self, *, started: bool) -> object:
        """The next event. Raises BrokenResourceError when the other side closes before it began to answer."""
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            data = await self._stream.receive_some(65536)
            if not data and not started:
                raise trio.BrokenResourceError("closed before an answer")
            self._h11.receive_data(data)
        return event

    async def _receive(self, status: int = 0) -> Answer:
        body = bytearray()
        while True:
            event = await self._next(started=bool(status))
            if isinstance(event, h11.Response):
                status = event.status_code
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_ANSWER:
                    raise PeerError(f"the daemon at {self.address} answers with more than {MAX_ANSWER >> 20} MiB")
            elif isinstance(event, h11.EndOfMessage):
                return Answer(status, bytes(body))
            elif isinstance(event, h11.ConnectionClosed):
                raise trio.BrokenResourceError("closed within an answer")

    def close(self) -> None:
        """Close at once, without waiting."""
        self._stream.socket.close()
