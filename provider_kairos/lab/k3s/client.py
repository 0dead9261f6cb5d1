"""HTTPS requests, one connection each, with the error texts of Go's client (k3s notes, sections 4.2 and 6)."""

from __future__ import annotations

import base64
import errno
import http.client
import json
import os
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from provider_kairos.errors import UnreachableError

__all__ = ["Client", "HttpError", "Reply", "RequestError", "basic_header", "context_for", "memory_file"]

ERRNO_TEXTS = {
    errno.ECONNREFUSED: "connect: connection refused",
    errno.EHOSTUNREACH: "connect: no route to host",
    errno.ENETUNREACH: "connect: network is unreachable",
    errno.EADDRNOTAVAIL: "connect: cannot assign requested address",
    errno.ETIMEDOUT: "connect: connection timed out",
}


class RequestError(UnreachableError):
    """No answer came; the message is ``Get "<url>": <reason>``."""


class HttpError(UnreachableError):
    """The answer was no success. ``code`` and ``detail`` are the server's."""

    def __init__(self, url: str, reply: Reply) -> None:
        super().__init__(f"{url}: {reply.code} {http.client.responses.get(reply.code, '')}")
        self.code = reply.code
        self.detail = reply.message()


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer."""

    code: int
    body: bytes = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict)

    def json(self) -> Any:
        """The body as JSON.

        Raises:
            ValueError: it is none.
        """
        return json.loads(self.body)

    def message(self) -> str:
        """The message of a Status document, or the body as text."""
        try:
            document = self.json()
        except ValueError:
            return self.body.decode("utf-8", "replace").strip()
        return str(document.get("message", "")) if isinstance(document, dict) else ""


def basic_header(user: str, password: str) -> dict[str, str]:
    """The ``Authorization`` header of basic authentication."""
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def memory_file(data: bytes) -> tuple[int, str]:
    """``data`` in a file that exists only for this process: descriptor (close it) and path. For keys."""
    descriptor = os.memfd_create("k3s-standin", os.MFD_CLOEXEC)
    with os.fdopen(descriptor, "wb", closefd=False) as stream:
        stream.write(data)
    return descriptor, f"/proc/self/fd/{descriptor}"


def context_for(ca: bytes | None, certificate: bytes = b"", key: bytes = b"") -> ssl.SSLContext:
    """TLS that trusts ``ca`` (None: anybody, for ``/cacerts``), perhaps with a client certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if ca is None:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    else:
        context.load_verify_locations(cadata=ca.decode("ascii"))
    if certificate:
        descriptor, path = memory_file(certificate + key)
        try:
            context.load_cert_chain(path)
        finally:
            os.close(descriptor)
    return context


def _reason(error: Exception, target: str) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"tls: failed to verify certificate: x509: {error.verify_message}"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return f"read tcp {target}: read: connection reset by peer"
    if isinstance(
        error, http.client.BadStatusLine | http.client.IncompleteRead | ssl.SSLEOFError | ssl.SSLZeroReturnError
    ):
        return "EOF"
    if isinstance(error, TimeoutError):
        return "context deadline exceeded"
    if isinstance(error, socket.gaierror):
        return f"dial tcp: lookup {target.rpartition(':')[0]}: no such host"
    if isinstance(error, OSError) and error.errno in ERRNO_TEXTS:
        return f"dial tcp {target}: {ERRNO_TEXTS[error.errno]}"
    return str(error) or type(error).__name__


class Client:
    """Requests to one ``host:port``."""

    def __init__(
        self,
        target: str,
        context: ssl.SSLContext,
        headers: Mapping[str, str] | None = None,
        timeout: float = 10.0,
    ) -> None:
        self.target = target
        self.context = context
        self.headers = dict(headers or {})
        self.timeout = timeout

    def request(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """One request on a connection of its own; any status is an answer.

        Raises:
            RequestError: no connection, TLS refused, or no answer.
        """
        connection = http.client.HTTPSConnection(self.target, context=self.context, timeout=self.timeout)
        try:
            connection.request(method, path, body, {**self.headers, **(headers or {}), "Connection": "close"})
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), dict(answer.getheaders()))
        except (OSError, http.client.HTTPException, ValueError) as error:
            verb = method.capitalize()
            raise RequestError(f'{verb} "https://{self.target}{path}": {_reason(error, self.target)}') from error
        finally:
            connection.close()

    def get(self, path: str) -> Reply:
        """A GET that must succeed.

        Raises:
            RequestError: no answer.
            HttpError: another status than 200.
        """
        return self.expect("GET", path)

    def expect(
        self, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
    ) -> Reply:
        """A request that must succeed; raises as :meth:`get`."""
        reply = self.request(method, path, body, headers)
        if reply.code not in (200, 201):
            raise HttpError(f"https://{self.target}{path}", reply)
        return reply

    def open_stream(self, path: str, headers: Mapping[str, str]) -> socket.socket:
        """Ask for ``path`` as a websocket and return the open connection after the 101.

        Raises:
            RequestError: no connection or no answer.
            HttpError: another status than 101.
        """
        connection = http.client.HTTPSConnection(self.target, context=self.context, timeout=self.timeout)
        try:
            connection.request("GET", path, None, {**self.headers, **headers})
            answer = connection.getresponse()
            if answer.status != 101 or connection.sock is None:
                raise HttpError(f"https://{self.target}{path}", Reply(answer.status, answer.read()))
            stream: socket.socket = connection.sock
            connection.sock = None
            return stream
        except (OSError, http.client.HTTPException) as error:
            raise RequestError(f'Get "https://{self.target}{path}": {_reason(error, self.target)}') from error
        finally:
            connection.close()
