"""The trust zone beside the real EdgeVPN: they let us in, we let them in, strangers stay out (spec/edgevpn.md 13, 17).

Tokens never rotate here: a Go node that goes deaf at a rotation does not hear challenges either, and two of them alone
then let in one only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from provider_kairos.trustzone import keys
from tests.interop.network import NEW, OLD, Node, until, write_reaches

pytestmark = pytest.mark.root

PAIR, OTHER = keys.generate(), keys.generate()
PROGRAM = str(Path(sys.executable).parent / "kairos-p2p")


def guard(pair: keys.KeyPair = PAIR, **more: str) -> dict[str, str]:
    return {
        "PEERGUARD": "true",
        "PEERGATE": "true",
        "PEERGATE_RELAXED": "true",
        "EDGEVPNPEERGATEINTERVAL": "5",
        "PEERGATE_AUTH": json.dumps({"ecdsa": {"private_key": pair.private}}),
        **more,
    }


def zone(node: Node) -> set[str]:
    return set(node.bucket("trustzone"))


def all_in_zone(*nodes: Node) -> None:
    peers = {node.peer for node in nodes}
    for node in nodes:
        until(lambda node=node: zone(node) == peers, f"{node.name} has all of them in its zone", 120)


def add_key(node: Node, pair: keys.KeyPair = PAIR) -> None:
    done = subprocess.run(
        [PROGRAM, "trust", "add-key", "--name", "ecdsa_1", "--api", f"unix://{node.socket}"],
        input=pair.public,
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def counters(node: Node) -> dict[str, int]:
    return dict(node.get("/api/v1/status")["counters"])


@pytest.mark.row("trust zone", "each lets in the other", mode="enforce", version=NEW)
def test_they_let_us_in_and_we_let_them_in(make_site, seen):
    site = make_site(1, 1, environment=guard()).start()
    go, ours = site.nodes
    until(lambda: ours.peer in go.heartbeats() and go.peer in ours.heartbeats(), "they know each other")
    add_key(go)
    all_in_zone(go, ours)
    for node in (go, ours):
        owners = {peer: entry["Owner"] for peer, entry in node.entries()["trustzone"].items()}
        assert owners == {ours.peer: go.peer, go.peer: ours.peer}, node.name
    write_reaches(ours, go, "mine", "by-us")
    write_reaches(go, ours, "mine", "by-them")
    assert go.ping(ours.address)
    seen("each record of the zone was written by the other node")


@pytest.mark.row("trust zone", "each lets in the other", mode="off", version=OLD)
def test_the_old_version_lets_us_in_and_we_let_it_in(make_site, seen):
    site = make_site(1, 1, version=OLD, ownership="off", environment=guard()).start()
    go, ours = site.nodes
    until(lambda: ours.peer in go.heartbeats() and go.peer in ours.heartbeats(), "they know each other")
    add_key(ours)
    all_in_zone(go, ours)  # nobody can let in himself
    write_reaches(ours, go, "mine", "by-us")
    write_reaches(go, ours, "mine", "by-them")
    seen("both are in the zone of both")


@pytest.mark.row("trust zone", "strangers of either kind are not heard", mode="enforce", version=NEW)
def test_strangers_write_into_their_own_ledger_only(make_site, seen):
    # One Go node among the trusted: two of them pass strangers' messages to each other and take them as each other's.
    site = make_site(2, 3, environment=guard())
    go, go_stranger, ours, ours2, stranger = site.nodes
    go_stranger.environment = {}
    stranger.environment = guard(OTHER, PEERGATE="false")
    trusted = (go, ours, ours2)
    for node in trusted:
        node.start()
    peers = {node.peer for node in trusted}
    until(lambda: all(node.heartbeats() >= peers for node in trusted), "the three know each other")
    add_key(ours)
    all_in_zone(*trusted)
    stranger.start()
    # Theirs looks at its zone every few seconds only and is open to all until then: what comes later counts.
    until(lambda: "gated message from" in go.log, "theirs turns somebody away")
    go_stranger.start()
    assert stranger.peer
    go_stranger.put("trustzone", go_stranger.peer, "me")  # as if it were so easy
    for node in (go_stranger, stranger):
        node.put("mine", node.name, "stranger")
    before = {node.name: counters(node).get("gated", 0) for node in (ours, ours2)}
    turned_away = go.log.count("gated message from")
    for node in (ours, ours2):
        until(lambda node=node: counters(node)["gated"] >= before[node.name] + 4, "ours turns them away")
        until(lambda node=node: counters(node).get("trust_heard_refused", 0) >= 1, "and does not take the other key")
    until(lambda: go.log.count("gated message from") >= turned_away + 2, "so does theirs")
    write_reaches(go, ours, "mine", "by-them")
    write_reaches(ours2, go, "mine", "by-us")
    for node in trusted:
        assert {"by-them", "by-us"} <= set(node.bucket("mine")), node.name
        assert not {go_stranger.name, stranger.name} & set(node.bucket("mine")), node.name
        assert zone(node) == peers, node.name
    assert ours.ping(go.address)
    assert not ours.ping(go_stranger.address, 1)
    seen(f"{counters(ours)['gated']} messages turned away")


@pytest.mark.row("trust zone", "a gate that is open hears everybody, one that is closed again does not", version=NEW)
def test_the_gates_are_switched_by_the_same_route(make_site):
    site = make_site(
        1, 1, vpn=False, environment={**guard(), "PEERGATE_RELAXED": "false", "PEERGATE_AUTH": "{}"}
    ).start()
    go, ours = site.nodes
    for node in (go, ours):
        assert until(lambda node=node: node.get("/api/peergate") is True, f"{node.name}'s gate is closed")
    go.put("mine", "secret", "x")
    until(lambda: counters(ours).get("gated", 0) >= 2, "ours does not hear")
    assert ours.bucket("mine") == {}
    for node in (go, ours):
        assert node.call("PUT", "/api/peergate/disable") is False
        assert node.call("PUT", "/api/peergate/nonsense") is False
    until(lambda: ours.value("mine", "secret") == "x", "ours hears")
    write_reaches(ours, go, "mine", "by-us")
    assert all(node.call("PUT", "/api/peergate/enable") is True for node in (go, ours))


@pytest.mark.row("static peer table", "packets and gossip of its peers alone", mode="enforce", version=NEW)
def test_ours_keeps_to_its_static_peer_table(make_site, seen):
    site = make_site(2, 1)
    go, other, ours = site.nodes
    go.start()
    ours.environment = {"EDGEVPNSTATICPEERTABLE": f"{go.address}:{go.peer}"}
    ours.start()
    until(lambda: go.ping(ours.address) and ours.ping(go.address), "packets both ways")
    other.start()
    until(
        lambda: other.peer in {each["peer_id"] for each in peers(ours) if each["on_topic"]}, "the other is in the room"
    )
    until(lambda: other.address in go.machines(), "theirs has its record")
    gated = counters(ours).get("gated", 0)
    until(lambda: counters(ours).get("gated", 0) > gated, "what it says is not heard")
    write_reaches(go, ours, "mine", "by-them")
    assert not ours.ping(other.address, 1)
    assert not other.ping(ours.address, 1)
    seen("the third node is neither heard nor reached")


def peers(node: Node) -> list[dict[str, Any]]:
    return list(node.get("/api/v1/status")["peers"])
