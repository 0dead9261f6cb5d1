"""A TLS server of threads that garbage, slow clients and wrong TLS cannot end.

The handshake happens in the connection's own thread under a time limit; the number of connections is bounded and
each has a small stack. What a request means is the business of the handler function that a :class:`Listener` is
given (``routes``).
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import socket
import socketserver
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, cast

from provider_kairos.errors import ProviderError
from provider_kairos.lab.k3s import KUBELET_VERSION, MARK
from provider_kairos.lab.k3s.life import Fatal

__all__ = ["Answer", "Listener", "Request", "json_answer", "listen_on", "server_context", "status"]

log = logging.getLogger(__name__)

PATIENCE = 15.0
MAX_CONNECTIONS = 256
MAX_BODY = 8 * 1024 * 1024
PLAIN_HTTP = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"


@dataclass(frozen=True, slots=True)
class Request:
    """One request. ``basic`` is (user, password) or None; ``subject`` the client certificate's (name, groups) or None."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = field(default=b"", repr=False)
    basic: tuple[str, str] | None = field(default=None, repr=False)
    subject: tuple[str, tuple[str, ...]] | None = None
    peer: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer. With ``takeover`` the connection is handed to that function after the headers were sent."""

    code: int
    body: bytes = field(default=b"", repr=False)
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    takeover: Callable[[socket.socket], None] | None = None


def json_answer(value: Any, code: int = 200) -> Answer:
    """``value`` as JSON."""
    return Answer(code, json.dumps(value).encode() + b"\n", "application/json")


def status(code: int, reason: str, message: str) -> Answer:
    """Kubernetes' error document."""
    document = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": code,
    }
    return json_answer(document, code)


def server_context(certificate: Path, key: Path, client_ca: Path | None = None) -> ssl.SSLContext:
    """TLS for a listener; with ``client_ca`` a client may show a certificate of that authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(certificate, key)
    if client_ca is not None:
        context.load_verify_locations(client_ca)
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _subject_of(connection: ssl.SSLSocket) -> tuple[str, tuple[str, ...]] | None:
    shown = connection.getpeercert()
    if not shown:
        return None
    pairs = [pair for part in cast("tuple[Any, ...]", shown.get("subject", ())) for pair in part]
    names = [value for kind, value in pairs if kind == "commonName"]
    groups = tuple(value for kind, value in pairs if kind == "organizationName")
    return (names[0], groups) if names else None


def _basic_of(header: str | None) -> tuple[str, str] | None:
    kind, _, encoded = (header or "").partition(" ")
    if kind.lower() != "basic":
        return None
    try:
        user, _, password = base64.b64decode(encoded.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return ("", "")  # credentials, and wrong ones
    return user, password


class _Handler(BaseHTTPRequestHandler):
    """Reads one request after another from a connection and answers with what the listener's function returns."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server: Listener
    connection: socket.socket

    def version_string(self) -> str:
        return f"k3s-{MARK}/{KUBELET_VERSION}"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class names it
        log.debug("%s %s", self.client_address[0], format % args)

    def _answer(self) -> None:
        try:
            length = int(self.headers.get("Content-Length") or 0)
        except ValueError:
            length = -1
        if not 0 <= length <= MAX_BODY:
            self.close_connection = True
            self._send(status(413, "RequestEntityTooLarge", "request body too large"))
            return
        body = self.rfile.read(length) if length else b""
        if len(body) < length:
            self.close_connection = True
            return
        request = Request(
            self.command,
            self.path,
            {key.lower(): value for key, value in self.headers.items()},
            body,
            _basic_of(self.headers.get("Authorization")),
            _subject_of(self.connection) if isinstance(self.connection, ssl.SSLSocket) else None,
            str(self.client_address[0]),
        )
        try:
            answer = self.server.respond(request)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("Cannot answer %s %s: %r", request.method, request.path.partition("?")[0], error)
            answer = status(400, "BadRequest", "the request cannot be understood")
        except ProviderError as error:  # the disk, mostly
            log.error("Cannot answer %s: %s", request.path.partition("?")[0], error)  # noqa: TRY400 - one line
            answer = status(500, "InternalError", str(error))
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        self.send_response(answer.code)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if answer.takeover is not None:
            self.end_headers()
            self.wfile.flush()
            self.close_connection = True
            self.connection.settimeout(None)
            answer.takeover(self.connection)
            return
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_HEAD = _answer  # noqa: N815 - the base class looks for these


class Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """One listening socket, its accept thread and its connections."""

    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], context: ssl.SSLContext, respond: Callable[[Request], Answer]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        self.context = context
        self.respond = respond
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind; the IPv6 wildcard takes IPv4 too."""
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(self.server_address[0] != "::"))
        super().server_bind()

    def start(self) -> None:
        """Accept connections in a thread of its own."""
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 3600}, daemon=True).start()

    def verify_request(self, request: Any, client_address: Any) -> bool:  # noqa: ARG002 - the base class names them
        """Refuse when every slot is taken; the slow ones give theirs back when their time is over."""
        return self._slots.acquire(blocking=False)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Start the connection's thread."""
        try:
            super().process_request(request, client_address)
        except RuntimeError as error:  # no more threads
            self._slots.release()
            log.warning("Refused a connection from %s: %s", client_address[0], error)
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handshake, then requests, then close; every failure is the peer's."""
        raw: socket.socket = request
        connection: socket.socket = raw
        try:
            raw.settimeout(PATIENCE)
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if raw.recv(1, socket.MSG_PEEK)[:1] not in (b"\x16", b""):
                raw.sendall(PLAIN_HTTP)
                return
            connection = self.context.wrap_socket(raw, server_side=True)
            self.finish_request(connection, client_address)
        except (OSError, ValueError) as error:  # ssl.SSLError and time-outs are OSErrors
            log.debug("http: TLS handshake or request error from %s: %s", client_address[0], error)
        finally:
            self._slots.release()
            self.shutdown_request(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 - likewise
        """Say what went wrong while accepting, in one line."""
        log.warning("Connection from %s failed: %r", client_address, sys.exc_info()[1])


def listen_on(
    addresses: list[str], port: int, context: ssl.SSLContext, respond: Callable[[Request], Answer]
) -> list[Listener]:
    """Open ``port`` on each of ``addresses``. ``0.0.0.0`` takes IPv6 as well where the machine has it.

    Raises:
        Fatal: the first address cannot be had. Others may fail (no IPv6).
    """
    threading.stack_size(512 * 1024)
    opened: list[Listener] = []
    for index, address in enumerate(addresses):
        choices = ["::", "0.0.0.0"] if address == "0.0.0.0" else [address]
        for choice in choices:
            try:
                listener = Listener((choice, port), context, respond)
            except OSError as error:
                if choice == "::" or index:
                    log.debug("cannot listen on [%s]:%d: %s", choice, port, error)
                    continue
                reason = (error.strerror or str(error)).lower()
                for other in opened:
                    other.server_close()
                raise Fatal(f"Error: listen tcp {address}:{port}: bind: {reason}") from error
            listener.start()
            opened.append(listener)
            break
    return opened
