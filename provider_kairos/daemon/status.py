"""What the daemon says about itself: the document of ``GET /v1/status`` (schema 1).

Three facts about a peer stand apart, because users lose hours when they are mixed: it is in the ledger (heartbeat),
it is in our topic, it is connected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from provider_kairos import __version__
from provider_kairos.api.model import SCHEMA, ConnectionsStatus, PeerStatus, PhaseStatus, StatusDocument, VpnStatus
from provider_kairos.clock import Clock
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.parts import NodeService
from provider_kairos.daemon.reasons import NotConfigured, StateNotSaved
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.errors import Waiting
from provider_kairos.ledger.model import ClockSkew as LedgerClockSkew
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.views import ClockSkew as MeshClockSkew
from provider_kairos.system.machine import hostname
from provider_kairos.vpn.records import LEASE_BUCKET, MACHINES_BUCKET, parse_machines, parse_notes

__all__ = ["Phases", "StatusReporter"]

PHASES = ("mesh", "peers", "ledger", "address", "interface")


class Phases:
    """When each phase was first reached, in seconds since the daemon started. A phase that is over stays over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._start = clock.now().mono
        self._reached: dict[str, float] = {}

    @property
    def uptime(self) -> float:
        """Seconds since start."""
        return self._clock.now().mono - self._start

    def reach(self, name: str) -> None:
        """Note that a phase is done; only the first time counts."""
        self._reached.setdefault(name, round(self.uptime, 3))

    def document(self, names: Sequence[str]) -> list[PhaseStatus]:
        """All phases in order; the first that is not done is the active one."""
        found: list[PhaseStatus] = []
        active = False
        for name in names:
            if name in self._reached:
                found.append({"name": name, "state": "done", "seconds": self._reached[name]})
            else:
                found.append(
                    {"name": name, "state": "pending" if active else "active", "seconds": round(self.uptime, 3)}
                )
                active = True
        return found


class VpnFacts(Protocol):
    """What the status needs to know of the VPN."""

    def status(self) -> VpnStatus:
        """Interface and address."""
        ...

    def waiting(self) -> Sequence[Waiting]:
        """Why it does not run."""
        ...

    @property
    def counters(self) -> Counter[str]:
        """Packets dropped, by kind."""
        ...


@dataclass(slots=True)
class StatusReporter:
    """Collects the document from the daemon's parts."""

    settings: DaemonSettings
    clock: Clock
    phases: Phases
    ledger: LedgerService
    mesh: Mesh
    vpn: VpnFacts | None
    services: Sequence[NodeService] = ()

    def waiting(self) -> list[Waiting]:
        """Every reason, most fundamental first, each once."""
        now = self.clock.now()
        ledger = self.ledger.ledger.explain(now)
        reasons: list[Waiting] = [*self.mesh.waiting(), *ledger]
        if any(isinstance(reason, LedgerClockSkew) for reason in ledger):
            # the ledger measures by heartbeats, which is finer than the mesh's guess by topics
            reasons = [reason for reason in reasons if not isinstance(reason, MeshClockSkew)]
        if self.vpn is not None:
            reasons += self.vpn.waiting()
        for service in self.services:
            reasons += service.waiting()
        if self.ledger.trouble is not None:
            reasons.append(StateNotSaved(str(self.ledger.trouble)))
        reasons += [NotConfigured(name, why) for name, why in self.settings.not_acted_on]
        return list(dict.fromkeys(reasons))

    def vpn_status(self) -> VpnStatus:
        """Interface and address."""
        if self.vpn is None:
            return {"enabled": False, "interface": None, "address": None, "mtu": None}
        return self.vpn.status()

    def progress(self) -> tuple[bool, list[PhaseStatus]]:
        """Whether the node is ready, and its phases."""
        alone = not any(peer.on_topic for peer in self.mesh.peers())
        if not alone:
            self.phases.reach("peers")
        # a lone node is ready too: it has everything that it can have, and nobody to hear a ledger of
        needless = {"peers", "ledger"} if alone else {"peers"}
        names = PHASES if self.settings.vpn else PHASES[:3]
        phases = self.phases.document(names)
        return all(phase["state"] == "done" for phase in phases if phase["name"] not in needless), phases

    def document(self, instance: str) -> StatusDocument:
        """The whole document."""
        ledger = self.ledger.ledger
        current = ledger.current()
        counters = Counter(ledger.counters) + Counter(self.ledger.counters) + Counter(self.mesh.counters)
        if self.vpn is not None:
            counters += self.vpn.counters
        for service in self.services:
            counters += service.counters
        ready, phases = self.progress()
        return {
            "schema": SCHEMA,
            "instance": instance,
            "version": __version__,
            "peer_id": self.mesh.peer_id,
            "hostname": hostname(),
            "ready": ready,
            "uptime_seconds": round(self.phases.uptime, 3),
            "phases": phases,
            "waiting": [reason.as_dict() for reason in self.waiting()],
            "vpn": self.vpn_status(),
            "ledger": {
                "index": ledger.block.index,
                "revision": self.ledger.revision,
                "ownership": self.settings.ownership.value,
                "buckets": len(current),
                "records": sum(len(records) for records in current.values()),
            },
            "peers": self._peers(),
            "connections": self._connections(),
            "counters": dict(counters),
        }

    def _connections(self) -> ConnectionsStatus:
        stats = self.mesh.connections()
        return {
            "open": stats.open,
            "inbound": stats.inbound,
            "members": stats.members,
            "known": stats.known,
            "low": stats.limits.low,
            "high": stats.limits.high,
            "most": stats.limits.most,
        }

    def _peers(self) -> list[PeerStatus]:
        now = self.clock.now()
        ledger = self.ledger.ledger
        ages = ledger.live_peers(now, self.settings.offline_after)
        addresses = {peer: address for address, peer in parse_machines(ledger.bucket(MACHINES_BUCKET) or {}).items()}
        notes = parse_notes(ledger.bucket(LEASE_BUCKET) or {})
        # nodes of the DHT are connected by the dozen for a moment, and are none of ours
        views = {view.peer_id: view for view in self.mesh.peers() if view.found_by != "dht-node"}
        found: list[PeerStatus] = []
        for peer in sorted((views.keys() | ages.keys()) - {self.mesh.peer_id}):
            view = views.get(peer)
            age = ages.get(peer)
            found.append(
                {
                    "peer_id": peer,
                    "hostname": self._hostname(addresses.get(peer)),
                    "address": addresses.get(peer),
                    "heartbeat_age": None if age is None else round(age, 1),
                    "on_topic": bool(view and view.on_topic),
                    "connected": bool(view and view.connected),
                    # whoever writes a lease note speaks our protocols
                    "native": True if peer in notes else (False if age is not None else None),
                    "direction": (view.direction or None) if view else None,
                    "security": (view.security or None) if view else None,
                    "rtt_ms": (view.rtt_ms or None) if view else None,
                    "agent": (view.agent or None) if view else None,
                    "addresses": list(view.addresses) if view else [],
                    "last_error": (view.last_error or None) if view else None,
                    "found_by": (view.found_by or None) if view else None,
                }
            )
        return found

    def _hostname(self, address: str | None) -> str | None:
        if address is None:
            return None
        text = self.ledger.ledger.get(MACHINES_BUCKET, address)
        if text is None:
            return None
        try:
            record = json.loads(text)
        except ValueError:
            return None
        name = record.get("Hostname") if isinstance(record, dict) else None
        return name if isinstance(name, str) and name else None
