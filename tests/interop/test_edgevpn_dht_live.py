"""The real EdgeVPN and ours meet through a DHT (spec/edgevpn.md 6.2, 15.2-36): no common link, three routers between them.

The way in is a node of ours in server mode that is in another network: an EdgeVPN node stays a client of the DHT while
nobody tells it that it can be reached. Runs when EDGEVPN_BIN and EDGEVPN_OLD_BIN name the programs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.token.codec import encode, generate
from tests.interop.network import NEW, OLD, Node, cannot, until, whole, write_reaches
from tests.net.conftest import internet

pytestmark = pytest.mark.root

CELLS = ((NEW, "enforce"), (OLD, "off"))
"""Versions of EdgeVPN, and an ownership mode in which they and ours share a ledger."""

EPOCH = 30
FIND_ONLY = """
from provider_kairos.mesh import dialer
dialer.Dialer.lead = lambda *_: None
"""
"""A patch: what we find is not dialled, so that only the other side can make the connection."""


@dataclass
class Internet:
    """A DHT server of ours in the first box; the other boxes hold one node each, all of one network."""

    boxes: list[Any]
    home: Path
    server: Node
    token: str
    version: str
    ownership: str

    def node(self, kind: str, number: int, **environment: str) -> Node:
        """A node that is not started yet. It knows nothing but the server's address."""
        return Node(
            kind,
            f"{kind}{number}",
            self.boxes[number],
            self.home / f"{kind}{number}",
            self.token,
            address=f"10.1.0.{number}",
            version=self.version,
            ownership=self.ownership,
            flags=("--dht=true", "--mdns=false"),
            environment={
                "EDGEVPNDHT": "true",
                "EDGEVPNMDNS": "false",
                "EDGEVPNBOOTSTRAPPEERS": self.server.dial,
                **environment,
            },
        )


@pytest.fixture
def make(request, tmp_path: Path) -> Iterator[Any]:
    """``make(version, mode, boxes)`` → an :class:`Internet` whose server runs."""
    with internet() as build:

        def made(version: str, mode: str, count: int = 3) -> Internet:
            if reason := cannot(version):
                pytest.skip(reason)
            boxes = build(count)
            server = Node(
                "ours",
                "server",
                boxes[0],
                tmp_path / "server",
                encode(generate()),
                vpn=False,
                port=4001,
                environment={"EDGEVPNDHT": "true", "KAIROS_P2P_DHT_MODE": "server", "EDGEVPNMDNS": "false"},
            )
            server.start()
            assert server.peer
            return Internet(boxes, tmp_path, server, encode(generate(interval=EPOCH)), version, mode)

        yield made


def next_epoch() -> None:
    """Sleep over the next boundary: what was announced before it is the previous epoch's."""
    time.sleep(EPOCH - time.time() % EPOCH + 1)


def found(node: Node, other: Node) -> dict[str, Any]:
    """What our node says of the other, once it is in its room."""

    def look() -> dict[str, Any]:
        peers = node.get("/api/v1/status")["peers"]
        return next((each for each in peers if each["peer_id"] == other.peer and each["on_topic"]), {})

    seen: dict[str, Any] = until(look, f"{other.name} is in {node.name}'s room", 120)
    return seen


@pytest.mark.row(2, "through a DHT: ours finds EdgeVPN by what it announced an epoch ago")
@pytest.mark.parametrize(("version", "mode"), CELLS)
def test_we_find_an_edgevpn_node(make, version, mode, seen):
    """Nobody could dial us: we listen on loopback."""
    net = make(version, mode)
    go = net.node("go", 1).start()
    assert go.peer
    until(lambda: "dht_requests" in net.server.get("/api/v1/status")["counters"], "EdgeVPN asks the server")
    next_epoch()
    began = time.monotonic()
    ours = net.node("ours", 2, EDGEVPNLISTENMADDRS="/ip4/127.0.0.1/tcp/0").start()
    view = found(ours, go)
    assert (view["found_by"], view["direction"]) == ("dht", "outbound")
    seen(f"after {time.monotonic() - began:.1f} s")
    whole(go, ours)


@pytest.mark.row(2, "through a DHT: EdgeVPN finds ours, whenever it looks")
@pytest.mark.parametrize(("version", "mode"), CELLS)
def test_an_edgevpn_node_finds_us(make, version, mode, seen):
    """We announced ourselves an epoch ago, and again since: it looks under the epoch of its own start."""
    net = make(version, mode)
    ours = net.node("ours", 1)
    ours.patch = FIND_ONLY
    ours.start()
    assert ours.peer
    until(lambda: ours.get("/api/v1/status")["counters"].get("dht_rounds"), "we are announced")
    next_epoch()
    began = time.monotonic()
    go = net.node("go", 2).start()
    view = found(ours, go)
    assert view["direction"] == "inbound"
    seen(f"after {time.monotonic() - began:.1f} s")
    whole(go, ours)


@pytest.mark.row(2, "through a DHT: two of each, whole, through boundaries")
@pytest.mark.parametrize(("version", "mode"), CELLS)
def test_two_of_each_become_one_network(make, version, mode, seen):
    net = make(version, mode, 5)
    began = time.monotonic()
    nodes = [
        net.node("go", 1).start(),
        net.node("ours", 2).start(),
    ]
    next_epoch()
    nodes += [net.node("go", 3).start(), net.node("ours", 4).start()]
    whole(*nodes)
    seen(f"whole {time.monotonic() - began:.0f} s after the first start")
    next_epoch()
    for one, other in ((nodes[0], nodes[3]), (nodes[3], nodes[2])):
        write_reaches(one, other, "kairos", f"from-{one.name}")
        until(lambda one=one, other=other: one.ping(other.address, 1), f"ping {one.name} -> {other.name}")
    for node in (nodes[1], nodes[3]):
        assert node.get("/api/v1/status")["waiting"] == []
