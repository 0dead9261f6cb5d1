"""peers: what this node knows of the others.

Three facts stand apart, because users lose hours when they are mixed: a peer is in the ledger (it has a heartbeat), it is
on our topic, it is connected.

An EdgeVPN daemon tells less: who is connected cannot be asked there (its ``Connected`` is always false).
"""

from __future__ import annotations

from typing import Any

import trio

from provider_kairos.api.client import DaemonClient
from provider_kairos.cli.cluster import client
from provider_kairos.cli.output import print_json, print_table

__all__ = ["show"]

HEAD = ("Peer", "Hostname", "Address", "Ledger", "Topic", "Connected", "Direction", "RTT", "Agent", "Last error")


def show(api: str | None, *, as_json: bool) -> None:
    """Print the peers."""

    async def read() -> tuple[str, list[dict[str, Any]]]:
        async with client(api) as daemon:
            status = await daemon.status()
            if status is not None:
                return "kairos-p2p", [{**peer, "in_ledger": _in_ledger(peer)} for peer in status.get("peers", ())]
            return "edgevpn", await _of_edgevpn(daemon)

    program, peers = trio.run(read)
    if as_json:
        print_json({"schema": 1, "daemon": program, "peers": peers})
    else:
        print_table(HEAD, [_row(peer) for peer in peers])


def _in_ledger(peer: Any) -> bool:
    return peer.get("heartbeat_age") is not None


async def _of_edgevpn(daemon: DaemonClient) -> list[dict[str, Any]]:
    """The same shape of what EdgeVPN's routes tell; null is what they do not."""
    own = (await daemon.summary()).get("NodeID")
    machines = {each.get("PeerID"): each for each in await daemon.machines()}
    alive = {each.get("ID") for each in await daemon.nodes()}
    known = {each.get("ID") for each in await daemon.peerstore()}
    found: list[dict[str, Any]] = []
    for peer in sorted(str(each) for each in {*machines, *alive, *known} - {own, None, ""}):
        machine: Any = machines.get(peer, {})
        found.append(
            {
                "peer_id": peer,
                "hostname": machine.get("Hostname") or None,
                "address": machine.get("Address") or None,
                "heartbeat_age": None,
                # whoever is on the topic without a heartbeat is in this list too: only a machine tells which it is
                "in_ledger": bool(machine.get("Online")) if machine else None if peer in alive else False,
                "on_topic": bool(machine.get("OnChain")) if machine else None if peer in alive else False,
                "connected": None,
                "direction": None,
                "rtt_ms": None,
                "agent": None,
                "last_error": None,
            }
        )
    return found


def _row(peer: dict[str, Any]) -> tuple[str, ...]:
    age, rtt = peer.get("heartbeat_age"), peer.get("rtt_ms")
    return (
        str(peer.get("peer_id")),
        _text(peer.get("hostname")),
        _text(peer.get("address")),
        f"{age:.0f} s" if isinstance(age, int | float) else _flag(peer.get("in_ledger")),
        _flag(peer.get("on_topic")),
        _flag(peer.get("connected")),
        _text(peer.get("direction")),
        f"{rtt:.1f} ms" if isinstance(rtt, int | float) else "-",
        _text(peer.get("agent")),
        _text(peer.get("last_error")),
    )


def _flag(value: object) -> str:
    return {True: "yes", False: "no"}.get(value, "?") if isinstance(value, bool) else "?"


def _text(value: object) -> str:
    """A text that another node chose, safe for a terminal."""
    if not isinstance(value, str) or not value:
        return "-"
    return "".join(c if c.isprintable() else "?" for c in value)[:80]
