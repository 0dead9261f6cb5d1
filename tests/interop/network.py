"""Networks of real EdgeVPN nodes and ours, in namespaces: one bridge per network, one namespace per node.

The programs are named by the environment variables EDGEVPN_BIN (v0.35.4) and EDGEVPN_OLD_BIN (v0.30.2). Nodes of all
kinds are started with the same few words and asked through the same HTTP API, so that a test reads the same in both
directions. Used by the tests beside this file and by ``bench``; knows nothing of pytest.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import Any

from provider_kairos.token.codec import encode, generate
from tests.net.conftest import _cannot as cannot_make_namespaces

PATIENCE = 90.0
"""Seconds after which a wait gives up; nothing is measured by it."""

NEW, OLD = "v0.35.4", "v0.30.2"
PROGRAMS = {NEW: "EDGEVPN_BIN", OLD: "EDGEVPN_OLD_BIN"}
GO_FLAGS = ("--dht=false", "--autorelay=false", "--natmap=false", "--holepunch=false", "--natservice=false")
MAX_INT64 = 2**63 - 1
_PATCHED = """
import functools, os, sys
from provider_kairos.daemon.main import main
exec(sys.argv[1])
sys.exit(main(os.environ))
"""
"""Our daemon after some lines of Python: see :attr:`Node.patch`."""

ONE_SECURITY = """
from provider_kairos.mesh import host, swarm
host.Swarm = functools.partial(swarm.Swarm, security=({!r},))
"""
"""A patch: one way of securing connections only, to see each of them at work."""

_PING = "import sys; from provider_kairos.lab.ping import main; sys.exit(main())"


def cannot(version: str) -> str:
    """Why nodes of this version cannot run here; empty when they can."""
    variable = PROGRAMS[version]
    program = os.environ.get(variable, "")
    if not program:
        return f"{variable} is not set: nothing ran beside EdgeVPN {version}"
    assert os.access(program, os.X_OK), f"{variable}={program} cannot be run"
    return cannot_make_namespaces()


def until(true: Callable[..., Any], what: str, patience: float = PATIENCE) -> Any:
    """The first true value of ``true()``; AssertionError with ``what`` when patience ends."""
    deadline = time.monotonic() + patience
    while True:
        with suppress(OSError, http.client.HTTPException, ValueError):
            if value := true():
                return value
        assert time.monotonic() < deadline, f"not within {patience:g} s: {what}"
        time.sleep(0.1)


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("unix", timeout=10)
        self._path = str(path)

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(10)
        self.sock.connect(self._path)


@dataclass
class Node:
    """One node of either kind. ``kind`` is ``go`` or ``ours``; ``address`` is empty with DHCP.

    ``version`` chooses EdgeVPN's program, ``flags`` are further words for it, ``environment`` is for both kinds,
    ``heartbeat`` 0 is the program's own default, ``port`` the only one to listen on (TCP), ``patch`` lines of Python
    that our daemon runs first.
    """

    kind: str
    name: str
    space: Any
    home: Path
    token: str
    address: str = ""
    ownership: str = "enforce"
    vpn: bool = True
    heartbeat: int = 10
    cached_key: bool = False
    patch: str = ""
    version: str = NEW
    flags: tuple[str, ...] = ()
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[Any] | None = None
    lives: int = 0

    # -- life

    def start(self) -> Node:
        """Start the program. Its log of all lives is in one file."""
        self.home.mkdir(parents=True, exist_ok=True)
        self.lives += 1
        self.socket.unlink(missing_ok=True)  # v0.30.2 never starts where an older life left its own
        with self.log_path.open("ab") as out:
            self.process = self.space.popen(
                *(self._go() if self.kind == "go" else self._ours()),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={"PATH": os.environ["PATH"], "HOME": str(self.home), **self._environment(), **self.environment},
            )
        return self

    def _environment(self) -> dict[str, str]:
        common = {
            "EDGEVPNTOKEN": self.token,
            "EDGEVPNOWNERSHIP": self.ownership,
            "APILISTEN": f"unix://{self.socket}",
            "API": "true",
        }
        if self.heartbeat:
            common["HEALTHCHECKINTERVAL"] = str(self.heartbeat)
        if self.address:
            common["ADDRESS"] = f"{self.address}/24"
        else:
            common |= {"DHCP": "true", "DHCPLEASEDIR": str(self.home / "lease")}
        if self.kind == "ours":
            common |= {
                "KAIROS_P2P_STATE_DIR": str(self.home),
                "KAIROS_P2P_VPN": str(self.vpn).lower(),
                "EDGEVPNDHT": "false",
            }
            if self.port:
                common["EDGEVPNLISTENMADDRS"] = self._listen
        return common

    def _go(self) -> list[str]:
        key = ["--privkey-cache", "--privkey-cache-dir", str(self.home / "key")] if self.cached_key else []
        # v0.30.2 ends at once with its own default addresses: its QUIC does not run on today's Go
        tcp = ("--listen-maddrs", self._listen) if self.port or self.version == OLD else ()
        return [os.environ[PROGRAMS[self.version]], *GO_FLAGS, *tcp, *key, *self.flags]

    @property
    def _listen(self) -> str:
        return f"/ip4/0.0.0.0/tcp/{self.port}"

    @property
    def dial(self) -> str:
        """The multiaddress of a node with a ``port``; it must be up."""
        return f"/ip4/{self.space.address}/tcp/{self.port}/p2p/{self.peer}"

    def _ours(self) -> list[str]:
        if self.patch:
            return [sys.executable, "-c", _PATCHED, self.patch]
        return [str(Path(sys.executable).parent / "kairos-p2p"), "daemon"]

    def end(self, number: int = signal.SIGTERM) -> None:
        """Send a signal and wait for the end."""
        assert self.process is not None
        self.process.send_signal(number)
        self.process.wait(30)

    def forget_identity(self) -> None:
        """The next life is another peer."""
        for path in (*self.home.glob("mesh.db*"), *self.home.glob("key/*")):
            path.unlink()

    # -- what it says

    @property
    def socket(self) -> Path:
        return self.home / "api.sock"

    @property
    def log_path(self) -> Path:
        return self.home / "log"

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def call(self, method: str, path: str) -> Any:
        """One request to its API, decoded."""
        connection = _UnixConnection(self.socket)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                raise ValueError(f"{self.name}: {method} {path}: {answer.status} {body!r}")
            return json.loads(body)
        finally:
            connection.close()

    def get(self, path: str) -> Any:
        return self.call("GET", path)

    @property
    def peer(self) -> str:
        return str(until(lambda: self.get("/api/summary")["NodeID"], f"{self.name} answers"))

    def ledger(self) -> dict[str, dict[str, str]]:
        return dict(self.get("/api/ledger"))

    def bucket(self, name: str) -> dict[str, str]:
        return self.get(f"/api/ledger/{name}") or {}

    def value(self, bucket: str, key: str) -> str:
        """Ledger text, decoded once; empty when absent."""
        text = self.get(f"/api/ledger/{bucket}/{key}")
        return str(json.loads(text)) if text else ""

    def put(self, bucket: str, key: str, value: str) -> None:
        self.call("PUT", f"/api/ledger/{bucket}/{key}/{value}")

    def delete(self, bucket: str, key: str = "") -> None:
        self.call("DELETE", f"/api/ledger/{bucket}" + (f"/{key}" if key else ""))

    def entries(self) -> dict[str, dict[str, Any]]:
        """The block's storage: envelopes, tombstones included."""
        return dict(self.get("/api/blockchain")["Storage"] or {})

    def room(self) -> set[str]:
        """Peers in the current ledger room, as its machines list has it."""
        return {each["PeerID"] for each in self.get("/api/machines") if each["OnChain"]}

    def machines(self) -> dict[str, str]:
        """Address to peer, of its machine records."""
        return {each["Address"]: each["PeerID"] for each in self.get("/api/machines")}

    def heartbeats(self) -> set[str]:
        """Peers whose heartbeat it has."""
        return set(self.bucket("healthcheck"))

    @property
    def lease(self) -> str:
        """The IPv4 address of its VPN interface; empty when there is none."""
        for link in json.loads(self.space.run("ip", "-j", "-4", "addr", "show", check=False) or "[]"):
            if link.get("ifname") == "edgevpn0":
                return next((str(each["local"]) for each in link["addr_info"]), "")
        return ""

    def ping(self, address: str, count: int = 3, *, wait: int = 2, gap: float = 0.2) -> str:
        """What ping says at its end when all echoes came back; else empty."""
        options = ("-n", "-q", "-i", str(gap), "-c", str(count), "-W", str(wait))
        done: str = self.space.run(sys.executable, "-c", _PING, *options, address, check=False)
        return done if f" {count} received" in done else ""


class Site:
    """One network: a bridge, namespaces on it, nodes with one token."""

    def __init__(self, make: Any, home: Path, go: int, ours: int, interval: int = MAX_INT64, **options: Any) -> None:
        self.token = encode(generate(interval=interval))
        self.interval = interval
        self.spaces = make(go + ours)
        kinds = ["go"] * go + ["ours"] * ours
        self.nodes = [
            Node(
                kind,
                f"{kind}{number}",
                space,
                home / f"{kind}{number}",
                self.token,
                **{"address": f"10.1.0.{number}", **options},
            )
            for number, (kind, space) in enumerate(zip(kinds, self.spaces, strict=True), start=1)
        ]
        self.go = self.nodes[:go]
        self.ours = self.nodes[go:]

    def start(self, patches: Mapping[str, str] | None = None) -> Site:
        """Start all nodes; ``patches`` by node name, see :attr:`Node.patch`."""
        for node in self.nodes:
            node.patch = (patches or {}).get(node.name, node.patch)
            node.start()
        return self


# --- what tests ask of networks -------------------------------------------------------------------------------------

REFUSED = "ownership violation"
HARMLESS = "rollback to an older version"
"""Said when blocks overtake each other: EdgeVPN nodes say it of each other too."""


def whole(*nodes: Node) -> None:
    """Wait until every node knows every other's heartbeat and machine record."""
    for one, other in permutations(nodes, 2):
        until(partial(_knows, one, other, other.peer), f"{one.name} has heartbeat and machine record of {other.name}")


def _knows(one: Node, other: Node, peer: str) -> bool:
    return peer in one.heartbeats() and (not other.address or one.machines().get(other.address) == peer)


def refusals(node: Node) -> list[str]:
    """Lines of the log that say that a record was refused by the ownership rules."""
    return [line for line in node.log.splitlines() if REFUSED in line and HARMLESS not in line]


def write_reaches(writer: Node, reader: Node, bucket: str, key: str) -> float:
    """A write through the API of one is seen through the API of the other; returns after how many seconds."""
    began = time.monotonic()
    writer.put(bucket, key, "said")
    until(lambda: reader.value(bucket, key) == "said", f"{writer.name}'s {bucket}/{key} at {reader.name}")
    return time.monotonic() - began


def reasons(node: Node) -> set[str]:
    """What one of our nodes says that it waits for: codes."""
    return {each["code"] for each in node.get("/api/v1/status")["waiting"]}
