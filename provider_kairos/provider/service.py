"""Kubernetes after it was asked to start: whether it is up, and whether its overlay lives (spec/k3s.md 0.4; decision 10).

k3s loses its overlay for good, and stays Ready, when the interface under it is deleted; only a restart mends that. So
the index of the VPN's interface is kept in ``/run`` from the moment at which Kubernetes runs on it; another index is
another interface, also when the provider was not there while it happened.
"""

from __future__ import annotations

import contextlib
import json
import logging

from provider_kairos.errors import HostError, Waiting
from provider_kairos.provider.machine import Machine
from provider_kairos.provider.reasons import OverlayLost, Refused, ServiceDown

__all__ = ["CALM", "OVERLAY_FILE", "READY_POLL", "ServiceWatch"]

log = logging.getLogger(__name__)

OVERLAY_FILE = "/run/kairos-p2p/overlay.json"
READY_POLL = 1.0
CALM = 15.0
"""Seconds between two looks at a service that is up: a child process each."""


class ServiceWatch:
    """Looks after one service. Its methods block; ``interface`` is the VPN's, whose index is passed in."""

    def __init__(self, machine: Machine, interface: str) -> None:
        self.machine = machine
        self.interface = interface
        self.ready = False
        self._service = ""
        self._was_up = False
        self._due = float("-inf")
        self._index: int | None = None
        self._lost = False
        self._refused: Waiting | None = None

    @property
    def pause(self) -> float:
        """Seconds after which to look again."""
        if not self._service:
            return float("inf")
        return CALM if self.ready else READY_POLL

    def look(self, service: str, index: int | None, now: float) -> None:
        """Look at ``service`` (empty: nothing was started yet); ``index`` is None off the VPN or without interface."""
        self._service = service
        if not service:
            return
        self._refused = None
        try:
            if index is not None:
                self._overlay(index, now)
            if now >= self._due:
                self._ask(now)
        except HostError as error:
            self._refused = Refused(f"cannot look after {service}", str(error))

    def waiting(self) -> tuple[Waiting, ...]:
        """Why Kubernetes is not up."""
        if not self._service or self.ready:
            return ()
        state = OverlayLost(self._service, self.interface) if self._lost else ServiceDown(self._service, self._was_up)
        return (self._refused, state) if self._refused is not None else (state,)

    def _ask(self, now: float) -> None:
        up = self.machine.is_active(self._service)
        if self._was_up and up is not self.ready:
            log.warning("%s %s", self._service, "is up again" if up else "has stopped")
        self.ready = up
        if up:
            self._was_up, self._lost = True, False
        self._due = now + self.pause

    def _overlay(self, index: int, now: float) -> None:
        known = self._index if self._index is not None else self._kept()
        if known is not None and known != index:
            if not self._lost:
                log.warning("%s was made anew: restarting %s, whose overlay is gone", self.interface, self._service)
            self._lost, self.ready = True, False
            self.machine.restart(self._service)
            # A unit that was only just asked to restart may still be shown as active.
            self._due = now + READY_POLL
        if known != index:
            self._keep(index)
        self._index = index

    def _kept(self) -> int | None:
        try:
            value = json.loads(self.machine.read(OVERLAY_FILE) or "{}")
        except (ValueError, HostError):
            return None
        if not isinstance(value, dict) or value.get("interface") != self.interface:
            return None
        index = value.get("index")
        return index if isinstance(index, int) else None

    def _keep(self, index: int) -> None:
        document = json.dumps({"schema": 1, "interface": self.interface, "index": index})
        with contextlib.suppress(HostError):  # then it is known in this life alone
            self.machine.write(OVERLAY_FILE, document + "\n", 0o600)
