"""What the provider says about itself: ``/run/kairos-p2p/provider.json`` (schema 1), for ``status`` and the lab.

::

    {"schema": 1, "pid": 1, "updated": "<RFC 3339>", "uptime": 12.3, "uuid": "...", "network_id": "kairos",
     "role": "master" | null, "leader": "<uuid>" | null, "first_master": "<uuid>" | null,
     "address": "10.1.0.1" | null, "api": "unix:///run/...", "distribution": "k3s" | null, "service": "k3s" | null,
     "minimum_nodes": 2, "configured": false, "ready": false, "error": null,
     "phases": [{"name": "daemon", "state": "done", "seconds": 1.2}, ...],
     "waiting": [{"code": "more-nodes", "text": "...", ...}]}

``seconds`` of a phase is the time from the start of this process until the phase was done, null before. Phases, in
order: ``daemon`` (its API answers), ``address``, ``role``, ``service`` (asked to start), ``joined`` (configured; for a
first master: join token published), ``ready`` (the service says that it is up); a one-time bootstrap has ``service``
alone. ``error`` is a configuration that
cannot work. No secret is in it; the file is for root all the same.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from provider_kairos.clock import Now
from provider_kairos.errors import HostError, Waiting
from provider_kairos.provider.machine import Machine
from provider_kairos.roles.model import format_time

__all__ = ["PHASES", "STATUS_FILE", "Status", "process_age"]

STATUS_FILE = "/run/kairos-p2p/provider.json"
SCHEMA = 1
PHASES = ("daemon", "address", "role", "service", "joined", "ready")


def process_age() -> float:
    """Seconds since this process was started, interpreter included; 0 where the kernel does not say."""
    try:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123  # one small read
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return 0.0
    # A time namespace may shift one of the two clocks.
    return age if 0 <= age < 86400 else 0.0


@dataclass(slots=True)
class Status:
    """Collects facts and writes the file when something other than the time changed."""

    uuid: str = ""
    network_id: str = ""
    api: str = ""
    distribution: str = ""
    service: str = ""
    role: str = ""
    leader: str = ""
    first_master: str = ""
    address: str = ""
    configured: bool = False
    ready: bool = False
    error: str = ""
    waiting: tuple[Waiting, ...] = ()
    reached: dict[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = PHASES
    minimum_nodes: int = 0
    _written: str = ""

    def reach(self, phase: str, seconds: float) -> bool:
        """A phase is done; True the first time."""
        if phase in self.reached:
            return False
        self.reached[phase] = seconds
        return True

    def phases(self) -> list[dict[str, object]]:
        """All phases in order; the first that is not done is the active one."""
        found: list[dict[str, object]] = []
        active = "active"
        for name in self.names:
            if name in self.reached:
                found.append({"name": name, "state": "done", "seconds": round(self.reached[name], 3)})
                continue
            state = "failed" if self.error and active == "active" else active
            found.append({"name": name, "state": state, "seconds": None})
            active = "pending"
        return found

    def document(self) -> dict[str, object]:
        """Everything but the times of the writing."""
        return {
            "schema": SCHEMA,
            "uuid": self.uuid,
            "network_id": self.network_id,
            "role": self.role or None,
            "leader": self.leader or None,
            "first_master": self.first_master or None,
            "address": self.address or None,
            "api": self.api,
            "distribution": self.distribution or None,
            "service": self.service or None,
            "minimum_nodes": self.minimum_nodes or None,
            "configured": self.configured,
            "ready": self.ready,
            "error": self.error or None,
            "phases": self.phases(),
            "waiting": waiting_records(self.waiting),
        }

    def write(self, machine: Machine, now: Now, uptime: float) -> None:
        """Write the file if anything changed. Raises HostError."""
        document = self.document()
        text = json.dumps(document, sort_keys=True)
        if text == self._written:
            return
        document |= {"pid": os.getpid(), "updated": format_time(now.unix_ns), "uptime": round(uptime, 3)}
        try:
            machine.write(STATUS_FILE, json.dumps(document) + "\n", 0o600)
        except HostError:
            self._written = ""
            raise
        self._written = text


def waiting_records(waiting: Sequence[Waiting]) -> list[dict[str, object]]:
    """Typed reasons as the API prints them."""
    return [reason.as_dict() for reason in waiting]
