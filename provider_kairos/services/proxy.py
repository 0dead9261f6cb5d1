"""An HTTP proxy on this machine whose requests leave the network at an egress node (spec/edgevpn.md 8.5).

Candidates are the peers in ``egress`` with a fresh heartbeat, in random order; one that cannot be reached costs a try,
not the request. Requests go in origin form over EdgeVPN's protocol, which every egress has; CONNECT (https) only to an
egress of ours, because EdgeVPN's would treat it as an ordinary request whose answer looks like a tunnel to the client.
"""

from __future__ import annotations

import logging
import random
import socket
from collections import Counter

import h11
import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.services import egress
from provider_kairos.services.dialing import Dialer, DialFailedError, NotServedError, Opened
from provider_kairos.services.egress import BLAME, TargetError, authority_of, host_header, target_of
from provider_kairos.services.endpoints import Endpoint, bind
from provider_kairos.services.greeting import GreetingError, RefusedError
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
from provider_kairos.services.reasons import NoEgress
from provider_kairos.services.records import EGRESS_BUCKET
from provider_kairos.services.seams import LedgerAccess, MeshAccess
from provider_kairos.services.tunnel import Tally, abort, splice
from provider_kairos.services.users import Users

__all__ = ["DEAD_INTERVAL", "EgressProxy"]

log = logging.getLogger(__name__)

DEAD_INTERVAL = 600.0
"""Seconds without a heartbeat after which an egress node is not asked (EdgeVPN's default)."""

MAX_CONNECTIONS = 256
MOST_TRIES = 3

NO_EGRESS = "no egress nodes available"
"""EdgeVPN's words; scripts look for them."""

NO_TUNNEL = (
    "no egress node here can tunnel (CONNECT, https): EdgeVPN's egress fetches http only; "
    "it takes a node with kairos-p2p and EGRESS=true"
)

_US = PeerId("")
_REFUSALS = {
    "bad_target": (400, "bad_target"),
    "forbidden": (403, "forbidden"),
    "full": (503, "egress_full"),
    "not_a_user": (503, "not_admitted"),
}
"""What an egress of ours says, in HTTP's words; the word is counted, so it must not be the peer's own."""


class EgressProxy:
    """The proxy. Raises HostError when it cannot listen. ``rng`` chooses among egress nodes."""

    name = "egress-proxy"

    def __init__(
        self,
        ledger: LedgerAccess,
        mesh: MeshAccess,
        clock: Clock,
        rng: random.Random,
        listen: Endpoint,
        *,
        dead_interval: float = DEAD_INTERVAL,
    ) -> None:
        self._ledger = ledger
        self._us = mesh.peer_id
        self._clock = clock
        self._rng = rng
        self._dead_interval = dead_interval
        self._users = Users(ledger, mesh.peer_id, clock)
        self._dialer = Dialer(mesh, egress.PROTOCOL, egress.EDGEVPN_PROTOCOL)
        self._gate = Gate(MAX_CONNECTIONS, MAX_CONNECTIONS)
        self._counts: Counter[str] = Counter()
        self._complaints = Complaints()
        self._listeners = bind(listen)

    @property
    def addresses(self) -> list[Endpoint]:
        """Where it listens, with the port that was chosen."""
        return [Endpoint(*listener.getsockname()[:2]) for listener in self._listeners]

    @property
    def counters(self) -> Counter[str]:
        """Requests and tunnels; what failed, by kind."""
        total = self._counts + Counter({f"egress_proxy_{k}": n for k, n in self._complaints.counters.items()})
        return total + Counter({"egress_proxy_open": self._gate.open})

    def waiting(self) -> list[Waiting]:
        """There is no egress node."""
        return [] if self._candidates() else [NoEgress()]

    async def run(self) -> None:
        """Take connections until cancelled."""
        self._users.announce()
        for endpoint in self.addresses:
            log.info("egress proxy: http://%s", endpoint)
        async with trio.open_nursery() as nursery:
            for listener in self._listeners:
                again = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
                nursery.start_soon(self._accept, again, nursery)

    async def _accept(self, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    local = await listener.accept()
                except OSError as error:
                    # out of files or memory: those that are open will end
                    self._tell("accept_failed", error.strerror or str(error))
                    await trio.sleep(0.2)
                    continue
                nursery.start_soon(self._serve, local)

    async def _serve(self, local: trio.SocketStream) -> None:
        client = HttpSide(h11.SERVER, TcpWire(local))
        try:
            with self._gate.pass_through(_US):
                local.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                while await self._request(client, local):
                    client.http.start_next_cycle()
        except GateFullError as error:
            self._tell("full", error.message)
            await plain(client, 503, error.message)
        except OSError as error:
            self._tell("client_gone", error.strerror or str(error))
        except Exception:  # a bug in one connection must not cost the others
            self._complaints.counters["crashed"] += 1
            log.exception("a connection failed because of an error of ours")
        finally:
            with trio.CancelScope(shield=True):
                await trio.aclose_forcefully(local)

    async def _request(self, client: HttpSide, local: trio.SocketStream) -> bool:
        """Serve one request; whether another may follow on the connection."""
        try:
            request = await client.receive(HEAD_PATIENCE)
            if not isinstance(request, h11.Request):
                return False
            if request.method == b"CONNECT":
                await self._tunnel(client, local, request)
                return False
            await self._pass_on(client, request)
        except TargetError as error:
            self._tell(error.code, error.message)
            await plain(client, error.status, error.message)
        except RelayError as error:
            if client.http.our_state is h11.IDLE and error.side == "time":
                return False  # a connection that was kept open in vain
            self._tell("broken_off", error.message)
            if client.http.our_state not in {h11.IDLE, h11.SEND_RESPONSE}:
                abort(local)  # half an answer must not look like a whole one
                return False
            await plain(client, BLAME[error.side], error.message)
        return client.http.our_state is h11.DONE and client.http.their_state is h11.DONE

    # --- requests ---------------------------------------------------------------------------------------------------

    async def _pass_on(self, client: HttpSide, request: h11.Request) -> None:
        secure, endpoint, path = target_of(request)
        if secure and endpoint.port != 443:
            # EdgeVPN's protocol tells no scheme: its egress takes port 443 for https and all others for http
            raise TargetError(501, "no_scheme", f"https to port {endpoint.port} takes CONNECT")
        peer, opened = await self._open_any()
        server = HttpSide(h11.CLIENT, opened.stream)
        try:
            headers = [(name, value) for name, value in end_to_end(request.headers) if name.lower() != b"host"]
            headers.insert(0, (b"Host", host_header(endpoint, secure=False)))
            self._counts["egress_proxy_requests"] += 1
            await exchange(client, server, h11.Request(method=request.method, target=path, headers=headers))
        except RelayError as error:
            if error.side != "server":
                raise
            self._dialer.forget(peer)
            raise RelayError("server", f"egress node {peer} for {endpoint}: {error.message}") from error
        finally:
            with trio.CancelScope(shield=True):
                if server.http.our_state is h11.DONE and server.http.their_state is h11.DONE:
                    await opened.stream.close()
                else:
                    await opened.stream.reset()

    async def _open_any(self) -> tuple[PeerId, Opened]:
        problem = ""
        for peer in self._candidates()[:MOST_TRIES]:
            try:
                return peer, await self._dialer.open_edgevpns(peer)
            except DialFailedError as error:
                problem = f"egress node {peer}: {error.message}"
                self._tell("unreachable", problem)
        raise TargetError(502 if problem else 503, "no_egress", problem or NO_EGRESS)

    # --- tunnels ----------------------------------------------------------------------------------------------------

    async def _tunnel(self, client: HttpSide, local: trio.SocketStream, request: h11.Request) -> None:
        endpoint = authority_of(request.target.decode("latin-1"), default=None)
        opened = await self._open_tunnel(endpoint)
        try:
            await client.send(h11.Response(status_code=200, reason=b"Connection established", headers=[]))
            early, _ = client.http.trailing_data
            if early:
                await opened.stream.write(early)
        except BaseException:
            with trio.CancelScope(shield=True):
                await opened.stream.reset()
            raise
        self._counts["egress_proxy_tunnels"] += 1
        tally = Tally()
        try:
            await splice(local, opened.stream, tally=tally)
        finally:
            self._counts["egress_proxy_tunnel_bytes_out"] += tally.out
            self._counts["egress_proxy_tunnel_bytes_in"] += tally.into

    async def _open_tunnel(self, endpoint: Endpoint) -> Opened:
        candidates = self._candidates()
        problem, tries = "", 0
        for peer in candidates:
            try:
                return await self._dialer.open_ours(peer, {"connect": str(endpoint)})
            except NotServedError:
                continue
            except RefusedError as error:
                status, code = _REFUSALS.get(error.code, (502, "refused"))
                raise TargetError(status, code, f"egress node {peer}: {error.message}") from error
            except (DialFailedError, GreetingError) as error:
                problem = f"egress node {peer}: {error.message}"
                self._tell("unreachable", problem)
                tries += 1
                if tries == MOST_TRIES:
                    break
        if problem:
            raise TargetError(502, "no_egress", problem)
        raise TargetError(501, "no_tunnel", NO_TUNNEL) if candidates else TargetError(503, "no_egress", NO_EGRESS)

    # --- who --------------------------------------------------------------------------------------------------------

    def _candidates(self) -> list[PeerId]:
        """Live egress nodes in random order, never ourselves."""
        records = self._ledger.ledger.bucket(EGRESS_BUCKET) or {}
        live = self._ledger.ledger.live_peers(self._clock.now(), self._dead_interval)
        found = sorted(PeerId(peer) for peer in records if peer in live and peer != self._us)
        self._rng.shuffle(found)
        return found

    def _tell(self, kind: str, words: str) -> None:
        self._complaints.counters[kind] += 1
        if self._complaints.due(_US, kind):
            log.warning("%s", words)
