"""The checklist beside the real EdgeVPN, lines 1 to 9: each version, each ownership mode (spec/edgevpn.md 16).

One network of a Go node and one of ours per version and mode, all with a token that rotates every 30 s, started with
the first test and judged for rotation by the last. v0.30.2 knows no ownership: only where ours is ``off`` do the two
share records; elsewhere the rows say what stands between them, because that is what an operator meets. Line 8 has
networks of its own, line 10 a file of its own.
"""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from tests.interop.cells import CELLS, all_cells, expected_apart
from tests.interop.network import NEW, OLD, PATIENCE, Node, cannot, reasons, refusals, until, whole, write_reaches

pytestmark = pytest.mark.root

ROTATIONS = 6
INTERVAL = 30


SHAPES = {"2 Go, 1 ours": (2, 1), "1 Go, 2 ours": (1, 2)}


class Network:
    """One network, and a thread that looks in every epoch whether every node reaches every other."""

    def __init__(self, site: Any, *, apart: bool = False) -> None:
        self.nodes: list[Node] = site.nodes
        self.go, self.ours = site.go[0], site.ours[0]
        self.failures: list[str] = []
        self.done = 0
        self._apart = apart
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> Network:
        for node in self.nodes:
            node.start()
        self._thread.start()
        return self

    def _watch(self) -> None:
        try:
            for node in self.nodes:
                assert node.peer
            for _ in range(ROTATIONS):
                # three seconds after a boundary everybody has rotated
                time.sleep(INTERVAL - (time.time() - 3) % INTERVAL)
                epoch = int(time.time()) // INTERVAL
                self._one_epoch(epoch, (epoch + 1) * INTERVAL - 2)
        except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
            self.failures.append(repr(error))

    def _one_epoch(self, epoch: int, ends: float) -> None:
        wanted = {f"{epoch}-{node.name}" for node in self.nodes}
        if not self._apart:
            for node in self.nodes:
                node.put("epochs", f"{epoch}-{node.name}", "here")
        while missing := self._missing(wanted):
            if time.time() > ends:
                self.failures.append(f"epoch {epoch}: {missing}")
                return
            time.sleep(0.3)
        self.done += 1

    def _missing(self, wanted: set[str]) -> dict[str, list[str]]:
        if self._apart:
            counts = {node.name: node.get("/api/summary")["OnChainNodes"] for node in self.nodes}
            return {name: ["nobody in its room"] for name, count in counts.items() if count != 1}
        lacks = {node.name: sorted(wanted - node.bucket("epochs").keys()) for node in self.nodes}
        return {name: keys for name, keys in lacks.items() if keys}

    def wait(self) -> None:
        self._thread.join((ROTATIONS + 2) * INTERVAL + PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture(scope="module")
def networks(make_lasting_site):
    """All networks whose program is there, running."""
    can = [cell for cell in CELLS if not cannot(cell.version)]
    made: dict[Any, Network] = {
        cell: Network(
            make_lasting_site(1, 1, interval=INTERVAL, version=cell.version, ownership=cell.mode), apart=cell.apart
        )
        for cell in can
    }
    if not cannot(NEW):
        made |= {name: Network(make_lasting_site(*shape, interval=INTERVAL)) for name, shape in SHAPES.items()}
    for network in made.values():
        network.start()
    return made


@pytest.fixture
def network(networks, cell):
    if reason := cannot(cell.version):
        pytest.skip(reason)
    return networks[cell]


@all_cells
@pytest.mark.row(1, "secured connection, either side knows the other's protocols")
def test_1_streams_and_identify(network, cell, seen):
    go, ours = network.go, network.ours
    (view,) = until(lambda: [each for each in ours.get("/api/v1/status")["peers"] if each["rtt_ms"]], "a peer answers")
    assert view["peer_id"] == go.peer
    assert view["security"] in {"/tls/1.0.0", "/noise"}
    assert not view["native"]
    assert {go.peer, ours.peer} <= {each["ID"] for each in go.get("/api/peerstore")}
    assert {"ID": go.peer, "Online": True} in ours.get("/api/nodes")
    if not cell.apart:
        until(lambda: {"ID": ours.peer, "Online": True} in go.get("/api/nodes"), "EdgeVPN finds us online")
    seen(f"{view['security']}, dialled by {'us' if view['direction'] == 'outbound' else 'it'}")


@all_cells
@pytest.mark.row(2, "by mDNS, knowing nothing but the token")
def test_2_finding_each_other(network, cell):
    def each_lists_the_other():
        return all(
            {one.peer, other.peer} <= {each["ID"] for each in one.get("/api/peerstore")}
            for one, other in ((network.go, network.ours), (network.ours, network.go))
        )

    until(each_lists_the_other, "both know both")


@all_cells
@pytest.mark.row(3, "each lists the other in its room, no signature is refused")
def test_3_gossip_streams(network, cell):
    until(lambda: network.go.get("/api/summary")["OnChainNodes"] == 1, "EdgeVPN counts us in its room")
    until(lambda: network.ours.get("/api/summary")["OnChainNodes"] == 1, "we count EdgeVPN in our room")
    counters = network.ours.get("/api/v1/status")["counters"]
    assert counters.get("bad_signature", 0) == 0


@all_cells
@pytest.mark.row(
    4,
    "records of every kind are read here",
    expected_by={
        (OLD, "enforce"): "opened; new keys of open buckets are taken, unsigned owned records are refused and said",
        (OLD, "observe"): "opened and taken, every unsigned owned record is said",
    },
)
def test_4_their_message_is_opened(network, cell, seen):
    go, ours = network.go, network.ours
    taken = write_reaches(go, ours, "kairos", f"from-go-{cell.mode}")
    go.call("PUT", "/api/ledger/odd/go/%3Cx%3E%26%20%C3%A4")
    until(lambda: ours.bucket("odd").get("go") == go.bucket("odd")["go"], "odd but legal text passes unchanged")
    if (cell.version, cell.mode) == (OLD, "enforce"):
        until(lambda: go.peer in " ".join(refusals(ours)), "the refusal is said")
        assert go.peer not in ours.heartbeats()
        assert go.address not in ours.machines()
    else:
        until(lambda: go.peer in ours.heartbeats() and ours.machines().get(go.address) == go.peer, "owned records")
    if cell.apart:
        assert refusals(ours)
    counters = ours.get("/api/v1/status")["counters"]
    assert counters.get("unopened_message", 0) == 0
    seen(f"a write after {taken:.2f} s")


@all_cells
@pytest.mark.row(
    5,
    "heartbeat, machine record and writes are on its side",
    expected_by=expected_apart("it cannot decode signed blocks; `mixed-ledger-formats` says so here, and who"),
)
def test_5_our_block_is_accepted(network, cell, seen):
    go, ours = network.go, network.ours
    if cell.apart:
        ours.put("kairos", "unreadable", "said")
        until(lambda: "mixed-ledger-formats" in reasons(ours), "the reason is named")
        until(lambda: "cannot unmarshal object" in go.log, "EdgeVPN says that it cannot decode our block")
        assert ours.peer not in go.heartbeats()
        assert "unreadable" not in go.bucket("kairos")
        return
    whole(go, ours)
    taken = write_reaches(ours, go, "kairos", f"from-ours-{cell.mode}")
    ours.call("PUT", "/api/ledger/odd/ours/%3Cx%3E%26%20%C3%A4")
    until(lambda: go.bucket("odd").get("ours") == ours.bucket("odd")["ours"], "odd but legal text passes unchanged")
    signed = [entry for bucket in go.entries().values() for entry in bucket.values() if not isinstance(entry, str)]
    assert bool(signed) is (cell.mode != "off")
    for node in (go, ours):
        assert refusals(node) == []
    assert "mixed-ledger-formats" not in reasons(ours)
    seen(f"a write after {taken:.2f} s")


@all_cells
@pytest.mark.row(
    7,
    "each has both machine records; pings in both directions",
    expected_by=expected_apart("no packets: it does not know our address; with `off` here it does"),
)
def test_7_packets_both_ways(network, cell, seen):
    go, ours = network.go, network.ours
    if cell.apart:
        until(lambda: go.address in go.machines(), "EdgeVPN has announced itself")
        assert ours.address not in go.machines()
        return
    whole(go, ours)
    for node in (go, ours):
        assert node.machines() == {go.address: go.peer, ours.address: ours.peer}
    for one, other in ((go, ours), (ours, go)):
        until(lambda one=one, other=other: one.ping(other.address, 1), f"ping {one.name} -> {other.name}")
        said = until(lambda one=one, other=other: one.ping(other.address, 20, gap=0.05), "20 echoes")
        seen(f"{one.kind} → {other.kind} {said.split(' = ')[-1].split('/')[1]} ms")


def skeleton(value: Any) -> Any:
    """The shape of a document: names in order, types; of a list the shapes of its members, each once."""
    if isinstance(value, dict):
        return {key: skeleton(each) for key, each in value.items()}
    if isinstance(value, list):
        return sorted({json.dumps(skeleton(each)) for each in value})
    return type(value).__name__


ROUTES = ("/api/summary", "/api/machines", "/api/nodes", "/api/peerstore", "/api/users", "/api/services", "/api/files")
DEEP = ("/api/ledger/kairos", "/api/ledger/nobody", "/api/ledger/kairos/nothing")


@all_cells
@pytest.mark.row(9, "documents of the same shape: names, order, types, nulls")
def test_9_the_same_api(network, cell, seen):
    go, ours = network.go, network.ours
    for node in (go, ours):
        node.put("kairos", f"api-{node.name}", "said")

    def same(route):
        return lambda: skeleton(go.get(route)) == skeleton(ours.get(route))

    # a bucket's keys differ where the two do not read each other
    for route in (*ROUTES, *(DEEP if not cell.apart else DEEP[1:])):
        until(same(route), f"{route}: {skeleton(go.get(route))} there, {skeleton(ours.get(route))} here")
    assert go.get("/api/blockchain").keys() == ours.get("/api/blockchain").keys()
    for node in (go, ours):  # in ``off`` a block of the other's may take it away for a moment
        key = f"api-{node.name}"
        until(lambda node=node, key=key: node.bucket("kairos").get(key) == '"said"', f"{key} as JSON text")
    seen(f"{len(ROUTES) + len(DEEP) + 1} routes")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.row(
    6, "through six rotations every write reaches every node, networks of three too", version=NEW, mode="enforce"
)
def test_6_everybody_hears_everybody_in_networks_of_three(networks, shape, edgevpn_bin):
    judged(networks[shape])


@all_cells
@pytest.mark.row(
    6,
    "through six rotations every write reaches every node",
    expected_by=expected_apart("through six rotations each finds the other in its room"),
)
def test_6_rotation(network, cell, seen):
    judged(network)
    for node in (network.go, network.ours):
        assert cell.apart or refusals(node) == []
    seen(f"{network.done} of {ROTATIONS}")


def judged(network: Network) -> None:
    network.wait()
    assert network.failures == []
    assert network.done == ROTATIONS
    for node in network.nodes:
        if node.kind == "ours":
            counters = node.get("/api/v1/status")["counters"]
            assert counters.get("unopened_message", 0) == 0, json.dumps(counters)
