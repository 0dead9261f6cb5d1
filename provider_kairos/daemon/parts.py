"""What stands beside ledger, lease and VPN: the services of a node, each behind one small contract.

A service (name server, TCP tunnel, file, egress, trust zone) is made from :class:`Parts`, kept running by the daemon's
supervisor, and asked for its reasons and counters by ``status``. :func:`configured` makes those that the settings ask
for; a command of the command line that is a node of its own gives its own list instead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol, runtime_checkable

from provider_kairos.api.backend import PeerGate
from provider_kairos.clock import Clock
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.errors import Waiting
from provider_kairos.mesh.node import Mesh

__all__ = ["HasGate", "MakeServices", "NodeService", "Parts", "configured", "guarded"]


@dataclass(frozen=True, slots=True)
class Parts:
    """What a service may use. ``rng`` is for jitter only."""

    settings: DaemonSettings
    ledger: LedgerService
    mesh: Mesh
    clock: Clock
    rng: Random


class NodeService(Protocol):
    """One service. ``name`` stands in the log, in ``status`` and before its counters."""

    name: str

    async def run(self) -> None:
        """Serve until cancelled; what it raises is logged and it is started again."""
        ...

    def waiting(self) -> Sequence[Waiting]:
        """Why it does not do its work yet."""
        ...

    @property
    def counters(self) -> Counter[str]:
        """What happened, by kind; grows only. Names are unique over the daemon: ``<service>_<what>``."""
        ...


@runtime_checkable
class HasGate(Protocol):
    """A service with a peer gate: it is what ``/api/peergate`` shows and switches."""

    @property
    def gate(self) -> PeerGate:
        """The gate."""
        ...


MakeServices = Callable[[Parts], Sequence[NodeService]]


def configured(parts: Parts) -> list[NodeService]:
    """The services that the settings ask for."""
    from provider_kairos.daemon.dns_service import DnsService  # noqa: PLC0415 - services are made from Parts
    from provider_kairos.daemon.egress_service import egress_server  # noqa: PLC0415 - likewise

    return [
        *([DnsService.of(parts)] if parts.settings.dns.listen else []),
        *([egress_server(parts)] if parts.settings.egress.serve else []),
    ]


def guarded(parts: Parts, make: MakeServices) -> list[NodeService]:
    """What ``make`` gives, and before it the guard where the settings ask for one: it is for every kind of node."""
    if not parts.settings.trust.guard:
        return list(make(parts))
    from provider_kairos.daemon.trust_service import TrustService  # noqa: PLC0415 - where there is a trust zone only

    made = make(parts)
    own = [] if any(isinstance(service, TrustService) for service in made) else [TrustService(parts)]
    return [*own, *made]
