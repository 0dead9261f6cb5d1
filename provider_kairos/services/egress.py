"""Lets other nodes out: HTTP requests over EdgeVPN's protocol, tunnels (CONNECT) over ours (spec/edgevpn.md 8.5).

EdgeVPN's: one HTTP/1.1 request per stream, https when the port is 443, the answer, the end. A CONNECT there is
answered 501, because the Go proxy passes on whatever answer comes and a client takes any 2xx for a tunnel (spec 17).
Ours, ``/kairos-p2p/egress/1``: a greeting ``{"connect": "HOST:PORT"}``, then bytes both ways. Who may ask: peers in
``users``, as everywhere. What may be reached: :mod:`provider_kairos.services.egress_policy`.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import socket
import ssl
from collections import Counter
from contextlib import suppress
from urllib.parse import urlsplit

import h11
import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import PeerError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.streams import MeshStream, StreamEndedError
from provider_kairos.services import greeting
from provider_kairos.services.egress_policy import Address, EgressPolicy
from provider_kairos.services.endpoints import Endpoint
from provider_kairos.services.http_relay import (
    HEAD_PATIENCE,
    HttpSide,
    RelayError,
    TcpWire,
    end_to_end,
    exchange,
    plain,
)
from provider_kairos.services.limits import Gate, GateFullError
from provider_kairos.services.records import EGRESS_BUCKET, EGRESS_VALUE
from provider_kairos.services.seams import LedgerAccess, MeshAccess
from provider_kairos.services.tunnel import Tally, splice
from provider_kairos.services.users import NotAUserError, Users

__all__ = [
    "BLAME",
    "EDGEVPN_PROTOCOL",
    "PROTOCOL",
    "EgressServer",
    "TargetError",
    "authority_of",
    "host_header",
    "target_of",
]

log = logging.getLogger(__name__)

PROTOCOL = "/kairos-p2p/egress/1"
EDGEVPN_PROTOCOL = "/edgevpn/egress/0.1"

MAX_STREAMS = 256
MAX_STREAMS_PER_PEER = 64

HEADER_PATIENCE = 10.0
"""Seconds for a peer's greeting."""

DIAL_PATIENCE = 10.0
"""Seconds for looking a name up and connecting."""


_ABSOLUTE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")

BLAME = {"client": 400, "server": 502, "time": 504}
"""The status for who is to blame for a broken exchange."""


class TargetError(PeerError):
    """A request cannot be sent where it wants to go; ``status`` is HTTP's word for it, ``code`` ours."""

    def __init__(self, status: int, code: str, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.code = code


class EgressServer:
    """The way out of this node."""

    name = "egress"

    def __init__(self, ledger: LedgerAccess, mesh: MeshAccess, clock: Clock, policy: EgressPolicy) -> None:
        self._ledger = ledger
        self._mesh = mesh
        self._policy = policy
        self._users = Users(ledger, mesh.peer_id, clock)
        self._gate = Gate(MAX_STREAMS, MAX_STREAMS_PER_PEER)
        self._counts: Counter[str] = Counter()
        self._complaints = Complaints()
        self._tls: ssl.SSLContext | None = None

    @property
    def counters(self) -> Counter[str]:
        """Requests and tunnels; what was refused, by kind."""
        total = self._counts + Counter({f"egress_{kind}": n for kind, n in self._complaints.counters.items()})
        return total + Counter({"egress_open": self._gate.open})

    def waiting(self) -> list[Waiting]:
        """Nothing: it serves as soon as the mesh does."""
        return []

    async def run(self) -> None:
        """Announce and serve until cancelled."""
        log.info("egress: other nodes get out through this one")
        self._ledger.announce(EGRESS_BUCKET, self._mesh.peer_id, EGRESS_VALUE)
        self._mesh.set_stream_handler(PROTOCOL, self._serve_ours)
        self._mesh.set_stream_handler(EDGEVPN_PROTOCOL, self._serve_edgevpns)
        try:
            await trio.sleep_forever()
        finally:
            self._mesh.remove_handler(PROTOCOL)
            self._mesh.remove_handler(EDGEVPN_PROTOCOL)
            self._ledger.retract(EGRESS_BUCKET, self._mesh.peer_id)

    # --- tunnels ----------------------------------------------------------------------------------------------------

    async def _serve_ours(self, peer: PeerId, stream: MeshStream) -> None:
        try:
            with self._gate.pass_through(peer):
                with trio.fail_after(HEADER_PATIENCE):
                    asked = greeting.text_of(await greeting.read(stream), "connect")
                await self._users.admit(peer)
                local = await self._connect(authority_of(asked, default=None))
                try:
                    await stream.write(greeting.encode({"ok": True}))
                except BaseException:
                    local.socket.close()
                    raise
                self._counts["egress_tunnels"] += 1
                tally = Tally()
                try:
                    await splice(local, stream, tally=tally)
                finally:
                    self._counts["egress_tunnel_bytes_out"] += tally.into
                    self._counts["egress_tunnel_bytes_in"] += tally.out
        except TargetError as error:
            await self._refuse(peer, stream, error.code, error.message)
        except GateFullError as error:
            await self._refuse(peer, stream, "full", error.message)
        except NotAUserError as error:
            await self._refuse(peer, stream, "not_a_user", error.message)
        except trio.TooSlowError:
            await self._refuse(peer, stream, "no_greeting", f"no greeting within {HEADER_PATIENCE:.0f} s")

    async def _refuse(self, peer: PeerId, stream: MeshStream, kind: str, text: str) -> None:
        self._complaints.complain(peer, kind, text)
        with suppress(StreamEndedError, PeerError):
            await stream.write(greeting.refusal(kind, text))
        await stream.close()

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _serve_edgevpns(self, peer: PeerId, stream: MeshStream) -> None:
        client = HttpSide(h11.SERVER, stream)
        try:
            with self._gate.pass_through(peer):
                await self._users.admit(peer)
                await self._request(client)
        except NotAUserError as error:
            self._complaints.complain(peer, "not_a_user", error.message)
            await stream.reset()
        except GateFullError as error:
            self._complaints.complain(peer, "full", error.message)
            await plain(client, 503, f"egress: {error.message}")
        except TargetError as error:
            self._complaints.complain(peer, error.code, error.message)
            await plain(client, error.status, f"egress: {error.message}")
        except RelayError as error:
            self._complaints.complain(peer, "broken_off", error.message)
            if client.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
                await stream.reset()  # half an answer must not look like a whole one
            await plain(client, BLAME[error.side], f"egress: {error.message}")

    async def _request(self, client: HttpSide) -> None:
        request = await client.receive(HEAD_PATIENCE)
        if not isinstance(request, h11.Request):
            raise RelayError("client", "the stream ended before a request came")
        if request.method == b"CONNECT":
            raise TargetError(
                501, "connect_refused", "CONNECT cannot go over EdgeVPN's protocol; it takes kairos-p2p at both ends"
            )
        secure, endpoint, path = target_of(request)
        # what a head says is judged, and the server connected, before the body is read
        local = await self._connect(endpoint)
        stream: trio.SocketStream | trio.SSLStream[trio.SocketStream] = local
        try:
            if secure:
                stream = await self._secure(local, endpoint.host)
            headers = [(name, value) for name, value in end_to_end(request.headers) if name.lower() != b"host"]
            headers.insert(0, (b"Host", host_header(endpoint, secure=secure)))
            headers.append((b"Connection", b"close"))
            self._counts["egress_requests"] += 1
            await exchange(
                client,
                HttpSide(h11.CLIENT, TcpWire(stream)),
                h11.Request(method=request.method, target=path, headers=headers),
            )
        finally:
            await trio.aclose_forcefully(stream)

    async def _secure(self, stream: trio.SocketStream, host: str) -> trio.SSLStream[trio.SocketStream]:
        if self._tls is None:
            self._tls = await trio.to_thread.run_sync(ssl.create_default_context)
        secured = trio.SSLStream(stream, self._tls, server_hostname=host, https_compatible=True)
        try:
            with trio.fail_after(DIAL_PATIENCE):
                await secured.do_handshake()
        except trio.BrokenResourceError as error:
            cause = error.__cause__
            words = getattr(cause, "verify_message", None) or getattr(cause, "reason", None) or cause
            raise TargetError(502, "tls_failed", f"{host}: TLS failed: {words}") from error
        except trio.TooSlowError:
            raise TargetError(504, "tls_failed", f"{host}: no TLS within {DIAL_PATIENCE:.0f} s") from None
        return secured

    # --- connecting -------------------------------------------------------------------------------------------------

    async def _connect(self, endpoint: Endpoint) -> trio.SocketStream:
        """A connection to an address of ``endpoint`` that the policy lets through. Raises TargetError."""
        try:
            with trio.fail_after(DIAL_PATIENCE):
                addresses = await _look_up(endpoint)
                good, why = self._policy.pick(addresses)
                if not good:
                    raise TargetError(403, "forbidden", f"{endpoint.host} may not be reached from here: {why}")
                return await _connect_any(good, endpoint)
        except trio.TooSlowError:
            raise TargetError(504, "unreachable", f"{endpoint}: no answer within {DIAL_PATIENCE:.0f} s") from None


async def _look_up(endpoint: Endpoint) -> list[Address]:
    try:
        found = await trio.socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        words = getattr(error, "strerror", None) or "no host name"
        raise TargetError(502, "unknown_host", f"{endpoint.host}: {words}") from error
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
    return [ipaddress.ip_address(text) for text in texts]


async def _connect_any(addresses: list[Address], endpoint: Endpoint) -> trio.SocketStream:
    """One after the other, so that none but these is connected to."""
    problem = "no address"
    for address in addresses:
        family = socket.AF_INET6 if address.version == 6 else socket.AF_INET
        raw = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await raw.connect((str(address), endpoint.port))
        except OSError as error:
            raw.close()
            problem = os.strerror(error.errno) if error.errno else str(error)
        except BaseException:
            raw.close()
            raise
        else:
            stream = trio.SocketStream(raw)
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return stream
    raise TargetError(502, "unreachable", f"{endpoint}: {problem}")


# --- where a request goes -------------------------------------------------------------------------------------------


def target_of(request: h11.Request) -> tuple[bool, Endpoint, bytes]:
    """Whether a request wants TLS, the endpoint, and the target in origin form. Raises TargetError.

    The authority of an absolute target wins over the ``Host`` header (RFC 9112 3.2.2). As in EdgeVPN, port 443 means
    https; an absolute target may say it too.
    """
    target = request.target.decode("latin-1")
    hosts = [value.decode("latin-1") for name, value in request.headers if name.lower() == b"host"]
    if absolute := _ABSOLUTE.match(target):
        scheme, rest = absolute[1], target[absolute.end() :]
        end = min((at for at in map(rest.find, "/?#") if at >= 0), default=len(rest))
        authority, path = rest[:end].rpartition("@")[2], rest[end:]
        if scheme.lower() not in {"http", "https"}:
            raise TargetError(400, "bad_target", f"the scheme {scheme[:20]!r} cannot be fetched")
        path = path.partition("#")[0]
        path = path if path.startswith("/") else f"/{path}"
    else:
        scheme, authority, path = "http", hosts[0] if len(hosts) == 1 else "", target
    if not authority:
        raise TargetError(400, "bad_target", "the request names no host")
    endpoint = authority_of(authority, default=443 if scheme.lower() == "https" else 80)
    return scheme.lower() == "https" or endpoint.port == 443, endpoint, path.encode("latin-1")


def authority_of(text: str, *, default: int | None) -> Endpoint:
    """Read ``HOST:PORT`` of a request; without ``default`` the port has to be there. Raises TargetError."""
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    port = default if port is None else port
    clear = host is not None and not parts.path and not parts.query and not parts.fragment and "@" not in text
    if not clear or not host or not port or len(host) > 255 or not host.isprintable() or " " in host:
        raise TargetError(400, "bad_target", f"{text[:80]!r} is no host and port")
    return Endpoint(host, port)


def host_header(endpoint: Endpoint, *, secure: bool) -> bytes:
    """The ``Host`` of a request to an endpoint."""
    host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
    usual = 443 if secure else 80
    return (host if endpoint.port == usual else f"{host}:{endpoint.port}").encode("latin-1", "replace")
