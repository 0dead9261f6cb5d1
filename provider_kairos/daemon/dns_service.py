"""The name server as a part of the daemon: follows the ledger's ``dns`` bucket and answers from it.

Specification: spec/edgevpn.md 10. The server itself, and with it the DNS library (2 MB), is loaded only when a node
has one.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import trio

from provider_kairos.clock import Clock
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.logs import OncePer
from provider_kairos.daemon.parts import Parts
from provider_kairos.daemon.settings_dns import DnsSettings
from provider_kairos.errors import Waiting

if TYPE_CHECKING:
    from provider_kairos.dns.records import Complaint, Row, Zone
    from provider_kairos.dns.server import NameServer

__all__ = ["BUCKET", "DnsService"]

log = logging.getLogger(__name__)

BUCKET = "dns"
_BUCKETS = frozenset({BUCKET})

PAUSE = 0.05
"""Seconds between two readings of the bucket, however often peers change it."""


class DnsService:
    """Answers names from the ledger; see :class:`~provider_kairos.daemon.parts.NodeService`."""

    name = "dns"

    def __init__(self, settings: DnsSettings, ledger: LedgerService, clock: Clock) -> None:
        self._settings = settings
        self._ledger = ledger
        self._clock = clock
        self._counters: Counter[str] = Counter()
        self._once_per = OncePer()
        self.server: NameServer | None = None
        """None until it runs."""

    @classmethod
    def of(cls, parts: Parts) -> DnsService:
        """The service that the settings ask for."""
        return cls(parts.settings.dns, parts.ledger, parts.clock)

    def waiting(self) -> Sequence[Waiting]:
        """Why names are not answered."""
        return self.server.waiting() if self.server is not None else ()

    @property
    def counters(self) -> Counter[str]:
        """Questions, and what became of them."""
        return self._counters

    async def run(self) -> None:
        """Serve until cancelled."""
        from provider_kairos.dns.cache import Cache  # noqa: PLC0415 - only a node with a name server pays for it
        from provider_kairos.dns.forward import Forwarder  # noqa: PLC0415 - likewise
        from provider_kairos.dns.records import Zone  # noqa: PLC0415 - likewise
        from provider_kairos.dns.server import NameServer  # noqa: PLC0415 - likewise

        settings = self._settings
        forwarder = None
        if settings.forward:
            forwarder = Forwarder(settings.servers(), Cache(settings.cache_size), self._counters)
        zone = Zone(counters=self._counters, say=self._complain)
        self.server = server = NameServer(settings.endpoint(), forwarder, zone)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, server)
            nursery.start_soon(server.run)

    async def _follow(self, server: NameServer) -> None:
        """Keep the server's zone as the ledger has it."""
        while True:
            revision = self._ledger.revision
            server.zone = await self._zone(server.zone)
            await self._ledger.wait_revision(revision, _BUCKETS)
            await trio.sleep(PAUSE)

    async def _zone(self, before: Zone) -> Zone:
        from provider_kairos.dns.records import build  # noqa: PLC0415 - as above

        for zone in build(self._rows(), before):
            if zone is not None:
                return zone
            await trio.lowlevel.checkpoint()
        return before

    def _rows(self) -> Iterator[Row]:
        from provider_kairos.dns.records import Row  # noqa: PLC0415 - as above

        ledger = self._ledger.ledger
        for key, text in (ledger.bucket(BUCKET) or {}).items():
            entry = ledger.entry(BUCKET, key)
            yield Row(key, text, entry.owner if entry is not None else "")

    def _complain(self, complaint: Complaint) -> None:
        """Say an author's faults, each kind once a minute."""
        held_back = self._once_per.allow((complaint.kind, complaint.owner), self._clock.now())
        if held_back is not None:
            log.warning("dns: %s (written by %s)", complaint.detail, complaint.owner or "an unknown node")
