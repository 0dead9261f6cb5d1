"""Tells the streams of ``GET /v1/events`` what happens in the daemon (``api.events``).

Records and peers tell themselves: the ledger and the mesh call :meth:`EventFeed.records_changed` and
:meth:`EventFeed.mesh_event`. Phases, reasons, the address and the provider's file have nobody who would say that they
changed; they are looked at once a second, and only while somebody wants to know.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, cast

import trio

from provider_kairos.api.events import EventLog
from provider_kairos.api.model import PhaseStatus, ProviderDocument, VpnStatus
from provider_kairos.api.native_model import AddressEvent, PeerEvent, PhaseEvent, RoleEvent, WaitingEvent
from provider_kairos.errors import Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.views import (
    MeshEvent,
    PeerConnected,
    PeerDisconnected,
    PeerSubscribed,
    PeerUnsubscribed,
    PeerView,
)
from provider_kairos.token import gojson

__all__ = ["PROVIDER_FILE", "EventFeed", "StateFacts"]

PROVIDER_FILE = Path("/run/kairos-p2p/provider.json")
LOOK_SECONDS = 1.0
LOOKED_AT = ("address", "phase", "waiting", "role")
MAX_PROVIDER_FILE = 1 << 20

_CHANGES = {
    PeerSubscribed: "joined",
    PeerUnsubscribed: "left",
    PeerConnected: "connected",
    PeerDisconnected: "disconnected",
}


class StateFacts(Protocol):
    """What the feed looks at (``status.StatusReporter``)."""

    def progress(self) -> tuple[bool, list[PhaseStatus]]:
        """Whether the node is ready, and its phases."""
        ...

    def waiting(self) -> list[Waiting]:
        """Every reason."""
        ...

    def vpn_status(self) -> VpnStatus:
        """Interface and address."""
        ...


class EventFeed:
    """Implements :class:`provider_kairos.api.backend.EventSource` over the daemon's parts."""

    def __init__(
        self,
        facts: StateFacts,
        peers: Callable[[], Iterable[PeerView]],
        *,
        provider_file: Path = PROVIDER_FILE,
        log: EventLog | None = None,
    ) -> None:
        self.log = log or EventLog()
        self._facts = facts
        self._peers = peers
        self._provider_file = provider_file
        self._provider_stamp: tuple[int, ...] = ()
        self._provider: ProviderDocument | None = None
        self._told: dict[str, str] = {}

    # -- what tells itself

    def records_changed(self, places: Collection[tuple[str, str]]) -> None:
        """Records (bucket, key) look different now."""
        self.log.records(places)

    def mesh_event(self, event: MeshEvent) -> None:
        """Something happened in the mesh."""
        change = _CHANGES.get(type(event))
        if change is not None:
            peer = cast("PeerConnected", event).peer
            view = next((each for each in self._peers() if each.peer_id == peer), None)
            self.log.add("peer", gojson.dumps(_peer_event(peer, change, view, snapshot=False)))

    # -- what is looked at

    async def run(self) -> None:
        """Look at what says nothing by itself, while somebody wants to know."""
        while True:
            await self.log.wait_wanted(LOOKED_AT)
            # what a new stream has been told is not told once more
            self._told = self._told or self._texts()
            while self.log.wanted(LOOKED_AT):
                await trio.sleep(LOOK_SECONDS)
                self.look()

    def look(self) -> None:
        """Tell what differs from the last look."""
        for kind, text in self._texts().items():
            if self._told.get(kind) != text:
                self._told[kind] = text
                self.log.add(kind, text)

    def _texts(self) -> dict[str, str]:
        return {kind: gojson.dumps(data) for kind, data in self._state(LOOKED_AT)}

    def present(self, kinds: Collection[str]) -> Iterable[tuple[str, Mapping[str, Any]]]:
        """The present state, records apart."""
        found: list[tuple[str, Mapping[str, Any]]] = []
        if "peer" in kinds:
            views = sorted(self._peers(), key=lambda view: view.peer_id)
            for view in views:
                if view.connected or view.on_topic:
                    change = "joined" if view.on_topic else "connected"
                    found.append(("peer", _peer_event(view.peer_id, change, view, snapshot=True)))
        return [*found, *self._state(kinds)]

    def _state(self, kinds: Collection[str]) -> Iterator[tuple[str, Mapping[str, Any]]]:
        if "address" in kinds:
            vpn = self._facts.vpn_status()
            yield "address", AddressEvent(address=vpn["address"], interface=vpn["interface"])
        if "phase" in kinds:
            ready, phases = self._facts.progress()
            # how long an unfinished phase takes so far changes all the time and is no event
            steady = [{**each, "seconds": each["seconds"] if each["state"] == "done" else None} for each in phases]
            yield "phase", PhaseEvent(ready=ready, phases=cast("list[PhaseStatus]", steady))
        if "waiting" in kinds:
            yield "waiting", WaitingEvent(waiting=[reason.as_dict() for reason in self._facts.waiting()])
        if "role" in kinds:
            yield "role", _role_event(self.provider())

    # -- the provider's file

    def provider(self) -> ProviderDocument | None:
        """What the provider of this machine wrote; read again when the file is another one."""
        try:
            info = self._provider_file.stat()
            stamp = (info.st_ino, info.st_mtime_ns, info.st_size)
            if stamp != self._provider_stamp:
                self._provider_stamp = stamp
                self._provider = self._read() if info.st_size <= MAX_PROVIDER_FILE else None
        except OSError:
            self._provider_stamp, self._provider = (), None
        return self._provider

    def _read(self) -> ProviderDocument | None:
        try:
            value = json.loads(self._provider_file.read_bytes())
        except (ValueError, RecursionError):
            return None
        return cast("ProviderDocument", value) if isinstance(value, dict) else None


def _peer_event(peer: PeerId, change: Any, view: PeerView | None, *, snapshot: bool) -> PeerEvent:
    return {
        "peer_id": peer,
        "change": change,
        "connected": bool(view and view.connected),
        "on_topic": bool(view and view.on_topic),
        "snapshot": snapshot,
    }


def _role_event(document: ProviderDocument | None) -> RoleEvent:
    said: Mapping[str, Any] = document or {}

    def text(name: str) -> str | None:
        value = said.get(name)
        return value if isinstance(value, str) and value else None

    return {
        "role": text("role"),
        "leader": text("leader"),
        "first_master": text("first_master"),
        "address": text("address"),
        "configured": said.get("configured") is True,
        "ready": said.get("ready") is True,
    }
