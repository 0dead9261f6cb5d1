"""How a client reaches a daemon: which address answers, connections kept for the next request, errors with their names.

Knows paths and bodies, not what they mean (``client``) nor streams of events (``follow``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import trio

from provider_kairos.api.address import Address, parse_address
from provider_kairos.api.connection import Answer, Connection
from provider_kairos.errors import HostError, LocalError, PeerError, TimeoutHostError, UnreachableError

__all__ = ["NotYetError", "Transport", "short", "status_error"]


class NotYetError(HostError):
    """The daemon answers with 500 or 503: it has not finished its start, or is overloaded."""


class Transport:
    """Requests to one daemon; several addresses are tried in order until one answers.

    Usable from several trio tasks at once: each request takes an idle connection or opens one. Cancelling a call
    drops its connection and nothing else.
    """

    def __init__(self, address: str | Sequence[str], timeout: float) -> None:
        texts = [address] if isinstance(address, str) else list(address)
        if not texts:
            raise LocalError("a client needs an address")
        self._addresses: list[Address] = [parse_address(text) for text in texts]
        self._timeout = timeout
        self._idle: list[Connection] = []
        self._native: bool | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The client stays usable."""
        while self._idle:
            self._idle.pop().close()

    @property
    def address(self) -> str:
        """The address in use: the one that answered last, or the first of those to try."""
        return str(self._addresses[0])

    @property
    def native(self) -> bool | None:
        """Whether the daemon is one of ours; None until that is known."""
        return self._native

    async def connect(self) -> Connection:
        """A new connection. Raises UnreachableError when no address answers."""
        last: UnreachableError | None = None
        for address in self._addresses:
            try:
                connection = await Connection.to(address)
            except UnreachableError as error:
                last = last or error
                continue
            if address is not self._addresses[0]:
                # Stay with what answered, so that one run does not mix two daemons.
                self._addresses.remove(address)
                self._addresses.insert(0, address)
            return connection
        assert last is not None
        self._native = None  # who answers next may be another program
        if len(self._addresses) > 1:
            places = ", ".join(str(a) for a in self._addresses)
            raise UnreachableError(f"no daemon answers at any of {places}", hint=last.hint) from last
        raise last

    async def request(self, method: str, path: str, body: bytes = b"", *, timeout: float | None = None) -> Answer:
        """One request and its answer, whatever the status. Raises UnreachableError, TimeoutHostError, PeerError."""
        limit = self._timeout if timeout is None else timeout
        try:
            with trio.fail_after(limit):
                while True:
                    fresh = not self._idle
                    connection = await self.connect() if fresh else self._idle.pop()
                    try:
                        answer = await connection.request(method, path, body)
                    except UnreachableError:
                        connection.close()
                        if fresh:
                            raise
                        continue  # the daemon closed an idle connection; every request of ours may be repeated
                    except BaseException:
                        connection.close()
                        raise
                    if connection.reusable:
                        self._idle.append(connection)
                    else:
                        connection.close()
                    return answer
        except trio.TooSlowError:
            raise self.too_slow(limit) from None

    def too_slow(self, limit: float) -> TimeoutHostError:
        """The error for a daemon that says nothing for ``limit`` seconds."""
        return TimeoutHostError(
            f"the daemon at {self.address} did not answer within {limit:g} s",
            hint="see whether it is alive: systemctl status edgevpn@kairos",
        )

    async def call(self, method: str, path: str, body: bytes = b"", *, timeout: float | None = None) -> Any:
        """One request and the value that it is answered with. Raises for every status other than 200."""
        answer = await self.request(method, path, body, timeout=timeout)
        if answer.status != 200:
            raise status_error(self.address, method, path, answer)
        return self.value(answer, path)

    def value(self, answer: Answer, path: str) -> Any:
        """The JSON value of an answer. Raises PeerError."""
        try:
            return json.loads(answer.body)
        except (ValueError, RecursionError) as error:
            raise PeerError(
                f"the daemon at {self.address} answers {short(path)} with something that is no JSON"
            ) from error

    async def native_call(self, path: str, older: str = "", *, timeout: float | None = None) -> Any | None:
        """GET of one of our own routes, or of its older path; None when the daemon has neither."""
        for each in (path, older):
            if not each:
                continue
            answer = await self.request("GET", each, timeout=timeout)
            if answer.status == 404:
                continue
            self._native = True
            if answer.status != 200:
                raise status_error(self.address, "GET", each, answer)
            return self.value(answer, each)
        self._native = False
        return None


def status_error(address: str, method: str, path: str, answer: Answer) -> Exception:
    """Which error a status other than 200 stands for."""
    what = f"the daemon at {address} answers {method} {short(path)} with status {answer.status}"
    match answer.status:
        case 500 | 503:
            return NotYetError(what, hint="it may not have finished its start; its log says more")
        case 409:
            return PeerError(f"{what}: {_message(answer)}")
        case 413 | 414 | 431:
            return HostError(what, hint="the value is too large for the API (about 1 MB)")
        case 400 | 404 | 405:
            return LocalError(what)
        case _:
            return PeerError(what)


def _message(answer: Answer) -> str:
    """The sentence of a refusal, which names no value."""
    try:
        value: Mapping[str, Any] = json.loads(answer.body)
        return str(value["message"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return "it gives no reason"


def short(path: str) -> str:
    """A path without a value: the fourth segment of a PUT may be a join token."""
    return "/".join(path.partition("?")[0].split("/")[:5])
