"""Several servers: membership, joining and replication in place of embedded etcd (k3s notes, sections 6 and 8).

Members are rows under ``members/``. Every server pushes its changes to every other member and fetches the whole
state every few seconds, over HTTPS with the server token. A joiner is a learner first, one at a time, then a voter;
without a majority of voters in reach a server does not serve its API, and a running one ends with status 1.
"""

from __future__ import annotations

import base64
import ipaddress
import json
import logging
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

from provider_kairos.errors import ProviderError
from provider_kairos.lab.k3s.client import Client, HttpError, RequestError, basic_header, context_for
from provider_kairos.lab.k3s.life import Fatal, Life
from provider_kairos.lab.k3s.nodeapi import NodeApi
from provider_kairos.lab.k3s.store import Row, Store

__all__ = ["Membership", "mismatches", "new_member_name"]

log = logging.getLogger(__name__)

SYNC_EVERY = 5.0
QUORUM_PATIENCE = 12.0
FORGET_AFTER = 60.0
# What joining servers compare: name in the warning, key in ``/v1-k3s/config``.
CRITICAL = (
    ("cluster-domain", "ClusterDomain"),
    ("flannel-backend", "FlannelBackend"),
    ("secrets-encryption", "EncryptSecrets"),
    ("disable-network-policy", "DisableNPC"),
    ("egress-selector-mode", "EgressSelectorMode"),
    ("embedded-registry", "EmbeddedRegistry"),
    ("ClusterDNS", "ClusterDNS"),
)
RANGES = ("ClusterIPRange", "ServiceIPRange")


def new_member_name(node: str) -> str:
    """``<node>-<8 hex>``, as etcd members are called."""
    return f"{node}-{secrets.token_hex(4)}"


def _difference(name: str, ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Where two networks differ, said as k3s does: the first differing byte of the 16-byte form."""

    def packed(text: str) -> bytes:
        address = ipaddress.ip_address(text)
        return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed

    if ours["IP"] != theirs["IP"]:
        pairs = zip(packed(ours["IP"]), packed(theirs["IP"]), strict=True)
        return f"{name}.IP.slice[{next((i for i, (a, b) in enumerate(pairs) if a != b), 0)}]"
    masks = zip(base64.b64decode(ours["Mask"]), base64.b64decode(theirs["Mask"]), strict=False)
    return f"{name}.Mask.slice[{next((i for i, (a, b) in enumerate(masks) if a != b), 0)}]"


def mismatches(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """The critical settings in which two servers differ, by the names of section 6."""
    found = [label for label, key in CRITICAL if ours.get(key) != theirs.get(key)]
    for name in RANGES:
        if ours[name] != theirs.get(name):
            text = _difference(name, ours[name], theirs[name])
            found += [text, text.replace(name, f"{name}s.slice[0]", 1)]
    return found


class _Peer(threading.Thread):
    """Keeps one other member up to date, and fetches from it."""

    def __init__(self, membership: Membership, name: str, address: str) -> None:
        super().__init__(daemon=True, name=f"peer-{name}")
        self.address = address
        self.member = name
        self.last_contact = 0.0
        self.removed = False
        self._membership = membership
        self._wake = threading.Event()
        self._lock = threading.Lock()
        self._dirty: dict[str, Row] = {}
        self._behind = True

    def push(self, rows: list[Row]) -> None:
        """Send these soon."""
        with self._lock:
            self._dirty.update({row.key: row for row in rows})
        self._wake.set()

    def run(self) -> None:
        try:
            self._follow()
        except ProviderError as error:  # the disk: the whole server cannot go on
            self._membership.life.end(error)

    def _follow(self) -> None:
        life = self._membership.life
        next_pull = 0.0
        while not life.ended and not self.removed:
            pull = time.monotonic() >= next_pull
            with self._lock:
                dirty, self._dirty = self._dirty, {}
            rows = self._membership.store.rows() if self._behind else list(dirty.values())
            self._wake.clear()
            try:
                self._exchange(rows, pull=pull)
            except (RequestError, HttpError, ValueError, KeyError, TypeError) as error:
                if not self._behind:
                    log.warning("Lost contact with member %s: %s", self.member, error)
                self._behind = True
                life.pause(1.0)
                continue
            self._behind = False
            self.last_contact = time.monotonic()
            if pull:
                next_pull = time.monotonic() + SYNC_EVERY / life.speed
            self._wake.wait(max(0.01, next_pull - time.monotonic()))

    def _exchange(self, rows: list[Row], *, pull: bool) -> None:
        body = json.dumps({"full": pull, "rows": [row.as_json() for row in rows]}).encode()
        reply = self._membership.client(self.address).expect("POST", "/standin/sync", body)
        answer = reply.json()
        if pull:
            self._membership.store.merge(Row.from_json(row) for row in answer["rows"])


class Membership:
    """This server as a member of a cluster of servers."""

    def __init__(self, name: str, store: Store, nodes: NodeApi, life: Life, *, password: str, ca: bytes) -> None:
        self.name = name
        self.store = store
        self.life = life
        self._nodes = nodes
        self._headers = basic_header("server", password)
        self._context = context_for(ca)
        self._peers: dict[str, _Peer] = {}
        self._lock = threading.Lock()
        self._had_quorum = False

    def client(self, address: str) -> Client:
        """Requests to another member."""
        return Client(address, self._context, self._headers, timeout=5.0)

    def members(self) -> dict[str, dict[str, Any]]:
        """All members by name."""
        return self.store.items("members/")

    def me(self) -> dict[str, Any] | None:
        """This server's own record; None before it joined, or after it was removed."""
        record: dict[str, Any] | None = self.store.get(f"members/{self.name}")
        return record

    def found(self, node: str, address: str, node_ip: str) -> None:
        """Become the first member."""
        record = {"node": node, "address": address, "ip": node_ip, "learner": False}
        self.store.put(f"members/{self.name}", record)

    def addresses(self) -> list[str]:
        """Where the members' APIs are, those left out whose node was silent for a minute."""
        now = time.monotonic()
        limit = max(FORGET_AFTER / self.life.speed, 5.0)
        alive = [
            record["address"]
            for name, record in self.members().items()
            if name == self.name or self._nodes.silent_for(record["node"], now) < limit
        ]
        return sorted(alive)

    def add(self, name: str, node: str, address: str, node_ip: str) -> str:
        """Take in a learner; empty when done, else etcd's reason for refusing."""
        with self._lock:
            for known, record in self.members().items():
                if known == name:
                    return ""
                if record["node"] == node:
                    return "duplicate"
            if any(record["learner"] for record in self.members().values()):
                return "etcdserver: too many learner members in cluster"
            record = {"node": node, "address": address, "ip": node_ip, "learner": True}
            self.store.put(f"members/{name}", record)
            log.info("Added learner %s", name)
            return ""

    def promote(self) -> None:
        """Become a voter."""
        record = self.me()
        if record and record["learner"]:
            self.store.put(f"members/{self.name}", {**record, "learner": False})
            log.info("Promoted learner %s", self.name)

    def remove_node(self, node: str) -> None:
        """The members on a deleted node go with it."""
        for name, record in self.members().items():
            if record["node"] == node:
                self.store.delete(f"members/{name}")
                log.info("Removed member %s", name)

    def start(self) -> None:
        """Begin to replicate."""
        self.store.on_change = self._changed
        self.refresh()

    def refresh(self) -> None:
        """Have one thread for each other member."""
        others = {name: record for name, record in self.members().items() if name != self.name}
        with self._lock:
            for name in list(self._peers):
                if name not in others:
                    self._peers.pop(name).removed = True
            for name, record in others.items():
                if name in self._peers:
                    self._peers[name].address = record["address"]
                else:
                    peer = _Peer(self, name, record["address"])
                    self._peers[name] = peer
                    peer.start()

    def _changed(self, rows: list[Row]) -> None:
        for peer in list(self._peers.values()):
            peer.push(rows)

    def quorum(self) -> bool:
        """Whether a majority of the voters was in contact lately."""
        voters = {name for name, record in self.members().items() if not record["learner"]}
        if not voters:
            return False
        limit = max(QUORUM_PATIENCE / self.life.speed, 5.0)
        now = time.monotonic()
        peers = dict(self._peers)
        reached = sum(
            1
            for name in voters
            if name == self.name
            or (name in peers and peers[name].last_contact and now - peers[name].last_contact < limit)
        )
        return reached * 2 > len(voters)

    def watch(self) -> None:
        """One round of the member's housekeeping; a lost quorum ends the program with status 1."""
        self.refresh()
        if self.quorum():
            self._had_quorum = True
        elif self._had_quorum:
            self.life.end(Fatal("leaderelection lost"))
