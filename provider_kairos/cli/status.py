"""status: one picture of this node out of the daemon's API, the provider's file and the cluster's bucket.

The daemon knows mesh, ledger and address; the provider writes ``/run/kairos-p2p/provider.json`` with its phases, role
and reasons; leader and roles of others come from the ledger. Each source may be absent: the picture then says so
instead of failing. The exit code tells the health: 0 ready, 9 waiting, 7 the daemon does not answer.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import trio

from provider_kairos.api.client import DaemonClient
from provider_kairos.api.model import ProviderDocument, StatusDocument
from provider_kairos.cli.cluster import client
from provider_kairos.cli.output import print_json
from provider_kairos.clock import SystemClock
from provider_kairos.errors import ExitCode, HostError, PeerError, ProviderError, UnreachableError
from provider_kairos.provider.last_words import LAST_WORDS, parse
from provider_kairos.roles import model

__all__ = ["PROVIDER_FILE", "Picture", "run"]

PROVIDER_FILE = Path("/run/kairos-p2p/provider.json")
LAST_WORDS_FILE = Path(LAST_WORDS)
NO_PEERS = "mesh-no-peers"


@dataclass(slots=True)
class Picture:
    """Everything that was found out."""

    daemon: StatusDocument | None = None
    go_daemon: bool = False
    error: ProviderError | None = None
    refused: str = ""
    no_daemon: bool = False
    alone: bool = False
    provider: ProviderDocument | None = None
    network_id: str = ""
    leader: str | None = None
    role: str | None = None
    address: str | None = None
    peers: list[dict[str, Any]] = field(default_factory=list)
    waiting: list[dict[str, Any]] = field(default_factory=list)
    phases: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ready(self) -> bool:
        """Nothing is missing as far as anybody knows."""
        if self.error is not None or self.refused or self.waiting:
            return False
        if self.provider is not None and not self.provider.get("configured"):
            return False
        return (
            self.go_daemon
            or self.no_daemon
            or self.alone
            or (self.daemon is not None and self.daemon.get("ready") is True)
        )

    @property
    def exit_code(self) -> int:
        """Health as a number; a configuration that cannot work comes before what follows from it."""
        if self.refused:
            return ExitCode.CONFIG
        if self.error is not None:
            return self.error.exit_code
        return ExitCode.OK if self.ready else ExitCode.WAITING

    def document(self) -> dict[str, Any]:
        """What ``--json`` prints."""
        return {
            "schema": 1,
            "ready": self.ready,
            "network_id": self.network_id,
            "uuid": (self.provider or {}).get("uuid"),
            "role": self.role,
            "leader": self.leader,
            "address": self.address,
            "phases": self.phases,
            "waiting": self.waiting,
            "peers": self.peers,
            "error": self._error(),
            "daemon": self.daemon,
            "provider": self.provider,
        }

    def _error(self) -> dict[str, str] | None:
        if self.refused:
            return {"message": self.refused, "hint": ""}
        return None if self.error is None else {"message": self.error.message, "hint": self.error.hint}


def run(api: str | None, network_id: str, *, as_json: bool) -> int:
    """Print the picture; the exit code tells the health."""
    picture = trio.run(_look, api, network_id, PROVIDER_FILE)
    if as_json:
        print_json(picture.document())
    else:
        _print(picture)
    return picture.exit_code


async def _look(api: str | None, network_id: str, provider_file: Path) -> Picture:
    picture = Picture(provider=_provider_document(provider_file))
    said: dict[str, Any] = dict(picture.provider or {})
    picture.network_id = network_id or str(said.get("network_id") or "kairos")
    picture.role = _text(said.get("role"))
    picture.leader = _text(said.get("leader"))
    picture.address = _text(said.get("address"))
    picture.phases = _objects(said.get("phases"))
    picture.waiting = _objects(said.get("waiting"))
    picture.refused = _text(said.get("error")) or ""
    # A one-time bootstrap ends when it is done; a coordinated node's provider stays.
    done = said.get("configured") and not picture.role
    if said and not picture.refused and not done and not _alive(said.get("pid")):
        when = "" if said.get("configured") else " before its work was done"
        gone = f"the provider has ended{when}; the agent starts it again, or: systemctl restart kairos-agent"
        picture.waiting.append({"code": "provider-ended", "text": gone})
    try:
        async with client(api) as daemon:
            await _ask(daemon, picture)
    except (HostError, PeerError) as error:
        # A one-time bootstrap without VPN has no daemon to ask.
        picture.no_daemon = bool(done) and said.get("api") == "" and not api
        picture.error = None if picture.no_daemon else _with_last_words(error)
    return picture


def _with_last_words(error: ProviderError) -> ProviderError:
    """The daemon's own reason in the place of "does not answer", where it left one."""
    try:
        ended = parse(LAST_WORDS_FILE.read_text("utf-8"), SystemClock().now())
    except (OSError, UnicodeDecodeError):
        return error
    if not ended or not isinstance(error, UnreachableError):
        return error
    return UnreachableError(f"the mesh daemon has ended: {ended}", hint="it is started again every few seconds")


async def _ask(daemon: DaemonClient, picture: Picture) -> None:
    document = await daemon.status()
    if document is not None:
        picture.daemon = document
        picture.address = _text(_vpn(picture).get("address")) or picture.address
        picture.peers = _objects(document.get("peers"))
        picture.phases = [*_objects(document.get("phases")), *picture.phases]
        known = {(item.get("code"), item.get("text")) for item in picture.waiting}
        first = _objects(document.get("waiting"))
        picture.waiting = [
            *(item for item in first if (item.get("code"), item.get("text")) not in known),
            *picture.waiting,
        ]
    else:
        await _ask_go(daemon, picture)
    values = await daemon.bucket(picture.network_id)
    view = model.view_of(values)
    if (picture.provider or {}).get("minimum_nodes") == 1 and len(view.nodes) == 1:
        # Alone by configuration: nobody else is missing, and the daemon's phases of meeting others never end.
        picture.alone = True
        picture.waiting = [item for item in picture.waiting if item.get("code") != NO_PEERS]
    picture.leader = picture.leader or view.leader or None
    uuid = (picture.provider or {}).get("uuid")
    if uuid and not picture.role:
        found = values.get(model.role_key(uuid))
        picture.role = found if isinstance(found, str) else None


async def _ask_go(daemon: DaemonClient, picture: Picture) -> None:
    """EdgeVPN's own daemon: what its routes tell."""
    picture.go_daemon = True
    own = (await daemon.summary()).get("NodeID")
    for machine in await daemon.machines():
        if machine.get("PeerID") == own:
            picture.address = _text(machine.get("Address")) or picture.address
    picture.peers = [
        {"peer_id": node.get("ID"), "on_topic": None, "connected": None}
        for node in await daemon.nodes()
        if node.get("ID") != own
    ]


def _text(value: object) -> str | None:
    """A text that another program wrote; None when there is none."""
    return value if isinstance(value, str) and value else None


def _alive(pid: object) -> bool:
    """Whether the process that wrote the file still runs; yes where that cannot be told."""
    return not isinstance(pid, int) or Path(f"/proc/{pid}").exists()


def _objects(value: object) -> list[dict[str, Any]]:
    """The objects of a list that another program wrote; anything else counts as absent."""
    return [dict(item) for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _vpn(picture: Picture) -> dict[str, Any]:
    vpn: Any = picture.daemon.get("vpn") if picture.daemon else None
    return vpn if isinstance(vpn, dict) else {}


def _provider_document(path: Path) -> ProviderDocument | None:
    """What the provider wrote; None when there is none or it cannot be read (then it counts as absent)."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return cast("ProviderDocument", value) if isinstance(value, dict) else None


# -- for people


def _print(picture: Picture) -> None:
    state = "ready" if picture.ready else "waiting"
    if picture.refused or picture.error:
        state = "failed" if picture.refused else "unreachable"
    rows = [
        ("state", state),
        ("role", picture.role or "none yet"),
        ("leader", picture.leader or "none yet"),
        ("address", _address(picture)),
        ("peers", _peer_count(picture)),
        ("network", picture.network_id),
    ]
    if uuid := (picture.provider or {}).get("uuid"):
        rows.append(("node", uuid))
    if picture.daemon is not None:
        rows.append(("peer id", str(picture.daemon.get("peer_id"))))
    for name, value in rows:
        print(f"{name:9}{value}")
    if picture.phases:
        print("\nphases")
        for phase in picture.phases:
            seconds = phase.get("seconds")
            taken = f"  {seconds:.1f} s" if isinstance(seconds, int | float) else ""
            print(f"  {phase.get('state', '?')!s:8} {phase.get('name', '?')}{taken}")
    if picture.waiting:
        print("\nwaiting for")
        for item in picture.waiting:
            print(f"  {item.get('text') or item.get('code')}")
    if picture.peers:
        print("\npeers")
        for peer in picture.peers:
            print(f"  {_peer(peer)}")
    if picture.refused:
        print(f"\nerror: {picture.refused}")
    if picture.error is not None:
        print(f"\nerror: {picture.error.message}")
        if picture.error.hint:
            print(f"hint: {picture.error.hint}")


def _address(picture: Picture) -> str:
    vpn = _vpn(picture)
    if picture.address:
        interface = vpn.get("interface")
        return f"{picture.address} on {interface}" if interface else picture.address
    return "no VPN" if vpn and not vpn.get("enabled") else "none yet"


def _peer_count(picture: Picture) -> str:
    connected = sum(1 for peer in picture.peers if peer.get("connected"))
    topic = sum(1 for peer in picture.peers if peer.get("on_topic"))
    if picture.go_daemon:
        return f"{len(picture.peers)} (EdgeVPN's daemon tells no more)"
    return f"{len(picture.peers)} known, {connected} connected, {topic} in the topic"


def _peer(peer: dict[str, Any]) -> str:
    words = [str(peer.get("hostname") or peer.get("peer_id"))]
    if peer.get("address"):
        words.append(str(peer["address"]))
    if peer.get("connected") is not None:
        words.append("connected" if peer["connected"] else "not connected")
        words.append("in the topic" if peer.get("on_topic") else "not in the topic")
    if isinstance(peer.get("rtt_ms"), int | float):
        words.append(f"{peer['rtt_ms']:.1f} ms")
    age = peer.get("heartbeat_age")
    words.append(f"heartbeat {age:.0f} s ago" if isinstance(age, int | float) else "no heartbeat")
    if peer.get("last_error") and not peer.get("connected"):
        words.append(str(peer["last_error"]))
    return ", ".join(words)
