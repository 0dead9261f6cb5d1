"""Packets beside the real EdgeVPN: floods, IPv6, a router, a bridge, and a node of ours in the place of one of theirs.

Line 7 of the checklist and what spec/edgevpn.md 8.1, 9, 12 and 17 say around it; leases in mixed groups are in
``test_edgevpn_lease_live``.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.interop.network import NEW, OLD, PATIENCE, Node, until

pytestmark = pytest.mark.root

PING = "import sys; from provider_kairos.lab.ping import main; sys.exit(main())"
PROGRAM = str(Path(sys.executable).parent / "kairos-p2p")
CELLS = [pytest.param(NEW, "enforce", id=NEW), pytest.param(OLD, "off", id=OLD)]
both_versions = pytest.mark.parametrize(("version", "mode"), CELLS)


def flood(node: Node, address: str, *, count: int = 500, size: int = 56, window: int = 4) -> str:
    """Echoes as fast as they come back; empty unless all came. What a box drops under load it drops once: a second try."""
    options = ("-n", "-q", "-f", "-l", str(window), "-c", str(count), "-s", str(size), "-W", "10", address)
    for _ in range(2):
        said: str = node.space.run(sys.executable, "-c", PING, *options, check=False)
        if f" {count} received" in said:
            return said
    return ""


def reach(*nodes: Node) -> None:
    """Wait until every node gets an echo of every other's address."""
    for one in nodes:
        for other in nodes:
            if one is not other:
                until(
                    lambda one=one, other=other: one.ping(other.address, 1),
                    f"{one.name} reaches {other.name}",
                    2 * PATIENCE,
                )


@both_versions
@pytest.mark.row(7, "floods of small and of whole packets both ways, none lost; ours started by EdgeVPN's flags")
def test_floods_both_ways(make_site, version, mode, seen):
    site = make_site(1, 1, version=version, ownership=mode)
    go, ours = site.nodes
    # the same words that a script has for EdgeVPN, and nothing of it in the environment
    flags = f"--address {ours.address}/24 --api --api-listen unix://{ours.socket} --ownership={mode} --dht=false"
    flags += " --autorelay=false -natmap=false --aliveness-healthcheck-interval 10 --mtu 1200 --concurrency 2"
    ours.environment = dict.fromkeys(("ADDRESS", "API", "APILISTEN", "EDGEVPNOWNERSHIP", "HEALTHCHECKINTERVAL"), "")
    ours._ours = lambda: [PROGRAM, "daemon", *flags.split()]
    site.start()
    reach(go, ours)
    for one, other in ((go, ours), (ours, go)):
        assert flood(one, other.address), f"{one.name} floods {other.name}"
        assert flood(one, other.address, size=1200 - 28), f"{one.name} floods {other.name} with whole packets"
    counters = ours.get("/api/v1/status")["counters"]
    assert counters.get("packets_in_malformed", 0) == 0
    assert [each["text"] for each in ours.get("/api/v1/status")["waiting"]] == [
        "--concurrency has no effect: one task per peer sends, and none waits for another"
    ]
    seen(f"{counters['packets_in_pass']} in, {counters['packets_out_sent']} out")


@both_versions
@pytest.mark.row(7, "IPv6 with MTU 1280: small and whole packets both ways")
def test_ipv6_both_ways(make_site, version, mode):
    site = make_site(1, 1, version=version, ownership=mode)
    for number, node in enumerate(site.nodes, start=1):
        node.address = f"fd00:7::{number}"
        node.environment = {"ADDRESS": f"{node.address}/64", "EDGEVPNMTU": "1280"}
    go, ours = site.start().nodes
    reach(go, ours)
    for one, other in ((go, ours), (ours, go)):
        assert flood(one, other.address, count=200)
        assert flood(one, other.address, count=200, size=1280 - 48)
    assert ours.machines() == {go.address: go.peer, ours.address: ours.peer} == go.machines()


@both_versions
@pytest.mark.row(7, "a router: what no node has goes to it and comes back, either kind being the router")
def test_what_no_node_has_goes_by_the_router(make_site, version, mode):
    site = make_site(1, 1, version=version, ownership=mode)
    go, ours = site.nodes
    go.environment = {"ROUTER": ours.address}
    ours.environment = {"ROUTER": go.address}
    site.start()
    reach(go, ours)
    behind = {"go1": "192.0.2.1", "ours2": "198.51.100.1"}
    for node in site.nodes:
        node.space.run("ip", "addr", "add", f"{behind[node.name]}/32", "dev", "lo")
    for node, other in ((go, ours), (ours, go)):
        node.space.run("ip", "route", "add", behind[other.name], "dev", "edgevpn0")
    for node, other in ((go, ours), (ours, go)):
        until(lambda node=node, other=other: node.ping(behind[other.name], 2), f"{node.name} goes by {other.name}")


@pytest.mark.row(
    "take-over", "a node of ours in the place of an EdgeVPN: same address, with a kept key same identity", version=NEW
)
@pytest.mark.parametrize("kept", [True, False], ids=["kept key", "ephemeral"])
def test_a_node_of_ours_takes_the_place_of_an_edgevpn(make_site, edgevpn_bin, kept, seen):
    site = make_site(2, 0, address="", cached_key=kept)
    stays, moves = site.start().nodes
    for node in site.nodes:
        until(lambda node=node: node.lease, f"{node.name} has an address", 3 * PATIENCE)
    address, peer = moves.lease, moves.peer
    until(lambda: stays.ping(address, 1), "they reach each other")
    moves.end(signal.SIGKILL)
    ours = Node("ours", "moved", moves.space, moves.home, site.token)
    if kept:
        ours.environment = {"EDGEVPNPRIVKEYCACHE": "true", "EDGEVPNPRIVKEYCACHEDIR": str(moves.home / "key")}
    ours.start()
    until(lambda: ours.lease == address, "the address is the same")
    assert (ours.peer == peer) == kept
    # EdgeVPN holds on to the old node's connection for half a minute, and without the key to its record for four heartbeats
    until(lambda: stays.ping(address, 1) and ours.ping(stays.lease, 1), "they reach each other again", 3 * PATIENCE)
    assert ours.lease == address
    until(lambda: stays.machines().get(address) == ours.peer, "the record names ours", 3 * PATIENCE)
    seen("kept key: the same peer" if kept else "ephemeral: another peer, the same address")


@both_versions
@pytest.mark.row("bridge", "packets both ways from a machine that is no node; nothing of it stays")
def test_a_bridge_among_edgevpn_nodes(make_site, version, mode, tmp_path):
    site = make_site(1, 1, version=version, ownership=mode)
    go = site.go[0].start()
    laptop = site.ours[0]
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "EDGEVPNTOKEN": site.token}
    command = (PROGRAM, "bridge", f"--ownership={mode}", "--dht=false", "--api", f"unix://{laptop.socket}")
    laptop.home.mkdir(parents=True)
    bridge = laptop.space.popen(*command, env=environment, stderr=subprocess.PIPE, text=True)
    laptop.address = "10.1.0.254"
    reach(go, laptop)
    peer = laptop.peer
    assert go.machines() == {go.address: go.peer, laptop.address: peer}
    assert set(go.ledger()) <= {"machines", "healthcheck", "kairos-p2p.lease"}, "it advertises itself nowhere"
    bridge.send_signal(signal.SIGINT)
    assert bridge.wait(30) == 0
    assert "leaving the network" in bridge.stderr.read()
    assert "kairos0" not in laptop.space.run("ip", "link", "show")
    until(lambda: go.machines() == {go.address: go.peer}, "its address is withdrawn")
    until(lambda: peer not in go.heartbeats(), "its heartbeat is withdrawn")

    killed = laptop.space.popen(*command, env=environment, stderr=subprocess.DEVNULL)
    until(lambda: "kairos0" in laptop.space.run("ip", "link", "show"), "it is back")
    killed.kill()
    killed.wait(30)
    until(lambda: "kairos0" not in laptop.space.run("ip", "link", "show"), "the interface goes with the process")


@pytest.mark.row("bridge", "leases beside EdgeVPN nodes, and gives the address back", version=NEW, mode="enforce")
def test_a_bridge_that_leases(make_site, edgevpn_bin, tmp_path):
    site = make_site(2, 1)
    laptop = site.ours[0]
    for node in site.go:
        node.start()
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "EDGEVPNTOKEN": site.token}
    laptop.home.mkdir(parents=True)
    command = (PROGRAM, "bridge", "--dhcp", "--interface", "edgevpn0", "--dht=false", f"--api=unix://{laptop.socket}")
    bridge = laptop.space.popen(*command, env=environment, stderr=subprocess.DEVNULL)
    until(lambda: laptop.lease, "it has an address")
    laptop.address = laptop.lease
    assert laptop.address not in {each.address for each in site.go}
    reach(*site.go, laptop)
    bridge.send_signal(signal.SIGTERM)
    assert bridge.wait(30) == 0
    for node in site.go:
        until(lambda node=node: laptop.address not in node.machines(), f"{node.name} forgets the address")
