"""Local listeners whose connections end at a service of another node: the client side (spec/edgevpn.md 8.3)."""

from __future__ import annotations

import logging
import socket
from collections import Counter
from collections.abc import Mapping

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.services import expose
from provider_kairos.services.dialing import Dialer, DialFailedError, Opened
from provider_kairos.services.endpoints import Endpoint, bind
from provider_kairos.services.greeting import GreetingError, RefusedError
from provider_kairos.services.limits import Gate, GateFullError
from provider_kairos.services.reasons import PeerNotReached, ServiceNotExposed
from provider_kairos.services.records import SERVICES_BUCKET, named_peer
from provider_kairos.services.seams import LedgerAccess, MeshAccess
from provider_kairos.services.tunnel import Ending, Manners, Tally, abort, splice
from provider_kairos.services.users import Users

__all__ = ["ServiceConnector"]

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 512

FIND_PATIENCE = 5.0
"""Seconds that a connection waits for somebody to expose its service: the ledger may be on its way."""

_US = PeerId("")


class ServiceConnector:
    """``bindings`` maps services to the addresses to listen on. Raises HostError when one cannot be had."""

    name = "service-connect"

    def __init__(self, ledger: LedgerAccess, mesh: MeshAccess, clock: Clock, bindings: Mapping[str, Endpoint]) -> None:
        self._ledger = ledger
        self._users = Users(ledger, mesh.peer_id, clock)
        self._dialer = Dialer(mesh, expose.PROTOCOL, expose.EDGEVPN_PROTOCOL)
        self._gate = Gate(MAX_CONNECTIONS, MAX_CONNECTIONS)
        self._counts: Counter[str] = Counter()
        self._complaints = Complaints()
        self._trouble: dict[str, PeerNotReached] = {}
        self._listening: list[tuple[str, socket.socket]] = []
        try:
            for service, endpoint in bindings.items():
                self._listening += [(service, each) for each in bind(endpoint)]
        except BaseException:
            self.close()
            raise

    @property
    def addresses(self) -> list[tuple[str, Endpoint]]:
        """Service and where it can be connected to, with the ports that were chosen."""
        return [(service, Endpoint(*listener.getsockname()[:2])) for service, listener in self._listening]

    @property
    def counters(self) -> Counter[str]:
        """Connections and bytes; what failed, by kind."""
        total = self._counts + Counter({f"service_connect_{k}": n for k, n in self._complaints.counters.items()})
        return total + Counter({"service_connect_open": self._gate.open})

    def waiting(self) -> list[Waiting]:
        """Services that nobody exposes, and the node that did not answer the last time."""
        records = self._ledger.ledger.bucket(SERVICES_BUCKET)
        names = dict.fromkeys(service for service, _ in self._listening)
        missing = [ServiceNotExposed(name) for name in names if named_peer(records, name) is None]
        return [*missing, *self._trouble.values()]

    def close(self) -> None:
        """Listen no longer."""
        for _, listener in self._listening:
            listener.close()
        self._listening.clear()

    async def run(self) -> None:
        """Take connections until cancelled."""
        self._users.announce()
        for service, endpoint in self.addresses:
            log.info("service %r can be reached at %s", service, endpoint)
        async with trio.open_nursery() as nursery:
            for service, listener in self._listening:
                again = trio.SocketListener(trio.socket.from_stdlib_socket(listener.dup()))
                nursery.start_soon(self._accept, service, again, nursery)

    async def _accept(self, service: str, listener: trio.SocketListener, nursery: trio.Nursery) -> None:
        async with listener:
            while True:
                try:
                    local = await listener.accept()
                except OSError as error:
                    # out of files or memory: those that are open will end
                    self._tell(service, "accept_failed", error.strerror or str(error))
                    await trio.sleep(0.2)
                    continue
                nursery.start_soon(self._serve, service, local)

    async def _serve(self, service: str, local: trio.SocketStream) -> None:
        """One connection. Whatever goes wrong, the client reads a reset and not an orderly end."""
        try:
            with self._gate.pass_through(_US):
                local.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                peer = await self._find(service)
                opened = await self._open(service, peer)
                await self._tunnel(service, peer, local, opened)
        except (DialFailedError, GateFullError) as error:
            self._tell(service, "failed", str(error))
        except OSError as error:
            self._tell(service, "client_gone", error.strerror or str(error))
        except Exception:  # a bug in one connection must not cost the others
            self._complaints.counters["crashed"] += 1
            log.exception("a connection to service %r failed because of an error of ours", service)
        finally:
            abort(local)

    def _tell(self, service: str, kind: str, words: str) -> None:
        self._complaints.counters[kind] += 1
        if self._complaints.due(_US, f"{kind} {service}"):
            log.warning("service %r: %s", service, words)

    async def _find(self, service: str) -> PeerId:
        with trio.move_on_after(FIND_PATIENCE):
            seen = self._ledger.revision
            while (peer := named_peer(self._ledger.ledger.bucket(SERVICES_BUCKET), service)) is None:
                seen = await self._ledger.wait_revision(seen, frozenset({SERVICES_BUCKET}))
            return peer
        raise DialFailedError("no node exposes it")

    async def _open(self, service: str, peer: PeerId) -> Opened:
        try:
            opened = await self._dialer.open(peer, {"service": service})
        except (DialFailedError, GreetingError, RefusedError) as error:
            self._trouble[service] = PeerNotReached(f"service {service!r}", peer, error.message)
            raise DialFailedError(f"node {peer}: {error.message}") from error
        self._trouble.pop(service, None)
        return opened

    async def _tunnel(self, service: str, peer: PeerId, local: trio.SocketStream, opened: Opened) -> None:
        log.debug("service %r: connection to %s", service, peer)
        self._counts["service_connect_connections"] += 1
        tally = Tally()
        manners = Manners.OURS if opened.native else Manners.GO_SERVER
        try:
            ending = await splice(local, opened.stream, manners=manners, first=opened.first, tally=tally)
        finally:
            self._counts["service_connect_bytes_out"] += tally.out
            self._counts["service_connect_bytes_in"] += tally.into
        self._counts[f"service_connect_ended_{ending.name.lower()}"] += 1
        if ending is Ending.STREAM_RESET and not tally.into:
            self._dialer.forget(peer)
