"""Ledger records of the VPN: ``machines`` as EdgeVPN writes it, and our own note of who leases what.

``machines`` (spec/edgevpn.md 8.2) has one record per address, so that two nodes with one address hide each other in
it; and with ownership enforced each of them keeps its own copy. Our own bucket therefore has one record per *peer*:
it says that the peer speaks our lease rules, what it claims or holds, since when, and whether it can never move. It
is an open bucket of signed records, which Go nodes carry and ignore.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from ipaddress import IPv4Address, ip_address
from typing import Any

from provider_kairos.ids import PeerId
from provider_kairos.ledger import gojson

__all__ = [
    "LEASE_BUCKET",
    "MACHINES_BUCKET",
    "LeaseNote",
    "LeaseState",
    "machine_hostname",
    "machine_record",
    "parse_machines",
    "parse_notes",
]

MACHINES_BUCKET = "machines"
DHCP_BUCKET = "dhcp"
LEASE_BUCKET = "kairos-p2p.lease"
"""Not ``kairos-p2p``: network ids are buckets too, and somebody may call a network that."""

_MOST_TEXT = 16 * 1024
"""Longer records are nonsense, and would be remembered."""

_MOST_PLAIN = 32
_MOST_LEFT = 8


class LeaseState(Enum):
    """How far a peer has come."""

    NONE = "none"
    """it wants no address (no VPN)"""
    SEEKING = "seeking"
    CLAIMED = "claimed"
    HELD = "held"


@dataclass(frozen=True, slots=True)
class LeaseNote:
    """What a peer says about its lease.

    ``since_ms`` (Unix milliseconds) is when it first held or claimed the address; ``plain`` names peers with a heartbeat
    that it found to want no address. ``left`` is from which addresses it stepped aside, and when by its
    clock (Unix milliseconds): whoever keeps such an address has to outdo the tombstone that was left in ``machines``.
    """

    state: LeaseState
    address: str = ""
    since_ms: int = 0
    pinned: bool = False
    plain: tuple[str, ...] = ()
    left: tuple[tuple[str, int], ...] = ()

    def rank(self, peer_id: str) -> tuple[bool, bool, int, str]:
        """Of two that want one address the smaller keeps it: pinned, held, older, then by peer ID."""
        held = self.state is LeaseState.HELD
        return (not (held and self.pinned), not held, self.since_ms, peer_id)

    def text(self) -> str:
        """The record's JSON text."""
        fields: dict[str, Any] = {"lease": 1, "state": self.state.value}
        if self.address:
            fields |= {"address": self.address, "since": self.since_ms}
        if self.pinned:
            fields["pinned"] = True
        if self.left:
            fields["left"] = dict(self.left[-_MOST_LEFT:])
        if self.plain:
            fields["plain"] = list(self.plain[:_MOST_PLAIN])
        return gojson.dumps(fields)


@lru_cache(maxsize=4096)
def _note(text: str) -> LeaseNote | None:
    try:
        fields = json.loads(text)
        if not isinstance(fields, dict) or fields.get("lease") != 1:
            return None
        state = LeaseState(fields["state"])
        address = fields.get("address", "")
        since = fields.get("since", 0)
        left = fields.get("left", {})
        plain = fields.get("plain", [])
        if (
            not isinstance(address, str)
            or type(since) is not int
            or not isinstance(left, dict)
            or not isinstance(plain, list)
        ):
            return None
        if address:
            address = str(ip_address(address))
        gone = tuple((text, at) for text, at in list(left.items())[:_MOST_LEFT] if type(at) is int)
        named = tuple(peer for peer in plain[:_MOST_PLAIN] if isinstance(peer, str))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    if not address and state in {LeaseState.CLAIMED, LeaseState.HELD}:
        return None
    return LeaseNote(state, address, since, fields.get("pinned") is True, named, gone)


def parse_notes(bucket: Mapping[str, str]) -> dict[PeerId, LeaseNote]:
    """The readable notes of a :data:`LEASE_BUCKET`; others are passed over (a later version's, or nonsense)."""
    return {
        PeerId(peer): note
        for peer, text in bucket.items()
        if len(text) <= _MOST_TEXT and (note := _note(text)) is not None
    }


@lru_cache(maxsize=4096)
def _machine(text: str) -> tuple[str, str] | None:
    """``(peer ID, host name)`` of a machine record; the host name may be empty."""
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    peer, hostname = fields.get("PeerID"), fields.get("Hostname", "")
    if not isinstance(peer, str) or not peer or not isinstance(fields.get("Address", ""), str):
        return None
    return peer, hostname if isinstance(hostname, str) else ""


def parse_machines(bucket: Mapping[str, str]) -> dict[str, PeerId]:
    """Address → peer of a ``machines`` bucket. The key is what counts; unreadable records are passed over."""
    found: dict[str, PeerId] = {}
    for key, text in bucket.items():
        machine = _machine(text) if len(text) <= _MOST_TEXT else None
        if machine is not None:
            found[key] = PeerId(machine[0])
    return found


def machine_hostname(bucket: Mapping[str, str], address: str) -> str:
    """The host name in the record of an address; empty when it has none."""
    text = bucket.get(address, "")
    machine = _machine(text) if len(text) <= _MOST_TEXT else None
    return machine[1] if machine is not None else ""


def machine_record(peer_id: str, hostname: str, architecture: str, address: str, version: str) -> str:
    """The text of our own ``machines`` record, exactly as Go would print it (field order, no spaces)."""
    fields = {
        "PeerID": peer_id,
        "Hostname": hostname,
        "OS": "linux",
        "Arch": architecture,
        "Address": address,
        "Version": version,
    }
    return gojson.dumps(fields)


def peers_with_address(machines: Mapping[str, PeerId]) -> frozenset[PeerId]:
    """Who has an address."""
    return frozenset(machines.values())


def dhcp_leader(bucket: Mapping[str, str]) -> PeerId | None:
    """The peer in ``dhcp/leader``, or None."""
    try:
        peer = json.loads(bucket.get("leader", "null"))
    except (ValueError, RecursionError):
        return None
    return PeerId(peer) if isinstance(peer, str) and peer else None


def highest_host(addresses: Iterable[str]) -> int:
    """The highest IPv4 address as a number, 0 when there is none."""
    best = 0
    for address in addresses:
        try:
            best = max(best, int(IPv4Address(address)))
        except ValueError:
            continue
    return best
