"""Exposes local TCP addresses to the network under names: the server side of services (spec/edgevpn.md 8.3).

Our own nodes say in a greeting which service they want, so one process exposes many. EdgeVPN's protocol carries no
name: through it one service of this process can be reached, the only one or the one that is chosen; with several and
no choice it is not served, because a Go node that asks for one of them would reach another.
"""

from __future__ import annotations

import logging
import os
import socket
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import LocalError, PeerError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.streams import MeshStream, StreamEndedError
from provider_kairos.services import greeting
from provider_kairos.services.endpoints import Endpoint
from provider_kairos.services.limits import Gate, GateFullError
from provider_kairos.services.reasons import NameTaken
from provider_kairos.services.records import SERVICES_BUCKET, named_peer, named_value
from provider_kairos.services.seams import LedgerAccess, MeshAccess
from provider_kairos.services.tunnel import Manners, Tally, splice
from provider_kairos.services.users import NotAUserError, Users

__all__ = ["EDGEVPN_PROTOCOL", "PROTOCOL", "ServiceExposer", "connect_tcp"]

log = logging.getLogger(__name__)

PROTOCOL = "/kairos-p2p/service/1"
EDGEVPN_PROTOCOL = "/edgevpn/service/0.1"

MAX_STREAMS = 512
MAX_STREAMS_PER_PEER = 128

HEADER_PATIENCE = 10.0
"""Seconds for a peer's greeting."""

DIAL_PATIENCE = 10.0
"""Seconds for the TCP address behind a service."""


class ServiceExposer:
    """One process' services. ``services`` maps names to addresses, ``for_edgevpn`` names the one that Go nodes reach."""

    name = "services"

    def __init__(
        self,
        ledger: LedgerAccess,
        mesh: MeshAccess,
        clock: Clock,
        services: Mapping[str, Endpoint],
        *,
        for_edgevpn: str | None = None,
    ) -> None:
        if for_edgevpn is not None and for_edgevpn not in services:
            raise LocalError(f"{for_edgevpn!r} is none of the services")
        self._ledger = ledger
        self._mesh = mesh
        self._services = dict(services)
        self._for_edgevpn = for_edgevpn or (next(iter(services)) if len(services) == 1 else None)
        self._users = Users(ledger, mesh.peer_id, clock)
        self._gate = Gate(MAX_STREAMS, MAX_STREAMS_PER_PEER)
        self._counts: Counter[str] = Counter()
        self._complaints = Complaints()

    @property
    def counters(self) -> Counter[str]:
        """Connections and bytes; what was refused, by kind."""
        total = self._counts + Counter({f"services_{kind}": n for kind, n in self._complaints.counters.items()})
        return total + Counter({"services_open": self._gate.open})

    def waiting(self) -> list[Waiting]:
        """Names that others have."""
        records = self._ledger.ledger.bucket(SERVICES_BUCKET)
        owners = {name: named_peer(records, name) for name in self._services}
        return [
            NameTaken("service", name, owner)
            for name, owner in owners.items()
            if owner is not None and owner != self._mesh.peer_id
        ]

    async def run(self) -> None:
        """Announce and serve until cancelled."""
        for name, target in self._services.items():
            log.info("exposing service %r: %s", name, target)
            self._ledger.announce(SERVICES_BUCKET, name, named_value(self._mesh.peer_id, name))
        if self._for_edgevpn is None:
            log.info("EdgeVPN nodes reach none of them: their protocol tells no name. --edgevpn NAME chooses one")
        self._mesh.set_stream_handler(PROTOCOL, self._serve_ours)
        if self._for_edgevpn is not None:
            self._mesh.set_stream_handler(EDGEVPN_PROTOCOL, self._serve_edgevpns)
        try:
            await trio.sleep_forever()
        finally:
            self._mesh.remove_handler(PROTOCOL)
            self._mesh.remove_handler(EDGEVPN_PROTOCOL)

    async def _serve_ours(self, peer: PeerId, stream: MeshStream) -> None:
        try:
            with self._gate.pass_through(peer):
                with trio.fail_after(HEADER_PATIENCE):
                    name = greeting.text_of(await greeting.read(stream), "service")
                await self._users.admit(peer)
                target = self._services.get(name)
                if target is None:
                    await self._refuse(peer, stream, "unknown", f"this node exposes no service {name[:80]!r}")
                    return
                try:
                    local = await connect_tcp(target)
                except OSError as error:
                    await self._refuse(peer, stream, "backend", f"{target}: {error.strerror or error}")
                    return
                try:
                    await stream.write(greeting.encode({"ok": True}))
                except BaseException:
                    local.socket.close()
                    raise
                await self._tunnel(peer, name, local, stream, Manners.OURS)
        except (GateFullError, NotAUserError) as error:
            await self._refuse(peer, stream, "full" if isinstance(error, GateFullError) else "not_a_user", str(error))
        except trio.TooSlowError:
            await self._refuse(peer, stream, "no_greeting", f"no greeting within {HEADER_PATIENCE:.0f} s")

    async def _serve_edgevpns(self, peer: PeerId, stream: MeshStream) -> None:
        """No greeting and no words: a refusal is a reset."""
        assert self._for_edgevpn is not None
        target = self._services[self._for_edgevpn]
        try:
            with self._gate.pass_through(peer):
                await self._users.admit(peer)
                local = await connect_tcp(target)
                await self._tunnel(peer, self._for_edgevpn, local, stream, Manners.GO_CLIENT)
        except GateFullError as error:
            self._complaints.complain(peer, "full", str(error))
            await stream.reset()
        except NotAUserError as error:
            self._complaints.complain(peer, "not_a_user", str(error))
            await stream.reset()
        except OSError as error:
            self._complaints.complain(peer, "backend", f"{target}: {error.strerror or error}")
            await stream.reset()

    async def _tunnel(
        self, peer: PeerId, name: str, local: trio.SocketStream, stream: MeshStream, manners: Manners
    ) -> None:
        log.debug("service %r: connection of %s", name, peer)
        self._counts["services_connections"] += 1
        tally = Tally()
        try:
            ending = await splice(local, stream, manners=manners, tally=tally)
        finally:
            self._counts["services_bytes_in"] += tally.into
            self._counts["services_bytes_out"] += tally.out
        self._counts[f"services_ended_{ending.name.lower()}"] += 1

    async def _refuse(self, peer: PeerId, stream: MeshStream, kind: str, text: str) -> None:
        self._complaints.complain(peer, kind, text)
        with suppress(StreamEndedError, PeerError):
            await stream.write(greeting.refusal(kind, text))
        await stream.close()


async def connect_tcp(target: Endpoint, patience: float = DIAL_PATIENCE) -> trio.SocketStream:
    """A TCP connection with keep-alive. Raises OSError with words, also when there is no answer in time."""
    try:
        with trio.fail_after(patience):
            stream = await trio.open_tcp_stream(target.host or "localhost", target.port)
    except trio.TooSlowError:
        raise TimeoutError(None, f"no answer within {patience:.0f} s") from None
    except OSError as error:
        raise OSError(error.errno, _words(error)) from error
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return stream


def _words(error: OSError) -> str:
    """What the first address said; trio's own message names all of them, in a group."""
    inside = error.__cause__ or error
    while isinstance(inside, BaseExceptionGroup):
        inside = inside.exceptions[0]
    number = getattr(inside, "errno", None)
    return os.strerror(number) if number and number > 0 else getattr(inside, "strerror", None) or str(inside)
