"""Our daemon beside the real EdgeVPN v0.35, in network namespaces: the live matrix (spec/edgevpn.md 16, 17).

Runs when EDGEVPN_BIN names the program. Both kinds of node know nothing but the token and find each other by mDNS. The
networks whose token rotates every 30 s live beside all other tests and are judged at the end.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from itertools import permutations

import pytest
import trio

from provider_kairos.api.client import DaemonClient
from tests.interop.network import PATIENCE, refusals, until, whole, write_reaches

pytestmark = pytest.mark.root

ROTATIONS = 6
INTERVAL = 30
# --- through rotations: started first, judged last ----------------------------------------------------------------


class Rotating:
    """A network whose token rotates every 30 s; in each of six epochs every node must reach every other."""

    def __init__(self, site):
        self.site = site
        self.failures = []
        self.done = 0
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def start(self):
        self.site.start()
        self._thread.start()
        return self

    def _watch(self):
        try:
            for node in self.site.nodes:
                assert node.peer
            for _ in range(ROTATIONS):
                # three seconds after a boundary everybody has rotated
                time.sleep(INTERVAL - (time.time() - 3) % INTERVAL)
                self._one_epoch(int(time.time()) // INTERVAL)
        except Exception as error:  # noqa: BLE001 - a thread's failure is the test's
            self.failures.append(repr(error))

    def _one_epoch(self, epoch):
        for node in self.site.nodes:
            node.put("epochs", f"{epoch}-{node.name}", "here")
        wanted = {f"{epoch}-{node.name}" for node in self.site.nodes}
        ends = (epoch + 1) * INTERVAL
        while missing := {
            node.name: sorted(lacks) for node in self.site.nodes if (lacks := wanted - node.bucket("epochs").keys())
        }:
            if time.time() > ends - 2:
                self.failures.append(f"epoch {epoch}: {missing}")
                return
            time.sleep(0.3)
        self.done += 1

    def wait(self):
        self._thread.join((ROTATIONS + 2) * INTERVAL + PATIENCE)
        assert not self._thread.is_alive()


SHAPES = {"1 Go, 1 ours": (1, 1), "2 Go, 1 ours": (2, 1), "1 Go, 2 ours": (1, 2)}


@pytest.fixture(scope="module", autouse=True)
def rotating(make_lasting_site):
    return {name: Rotating(make_lasting_site(*shape, interval=INTERVAL)).start() for name, shape in SHAPES.items()}


# --- finding each other -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("security", ["/tls/1.0.0", "/noise"])
@pytest.mark.parametrize("first", ["go", "ours"])
def test_they_find_each_other_by_mdns(make_site, first, security):
    site = make_site(1, 1)
    (go,), (ours,) = site.go, site.ours
    ours.security = security
    one, two = (go, ours) if first == "go" else (ours, go)
    one.start()
    assert one.peer
    two.start()
    whole(go, ours)
    until(lambda: ours.peer in go.room(), "EdgeVPN lists us in its room")
    (view,) = until(lambda: ours.get("/api/v1/status")["peers"], "status shows the peer")
    assert view["peer_id"] == go.peer
    assert view["security"] == security
    assert view["on_topic"]
    assert not view["native"]
    for one, other in ((go, ours), (ours, go)):
        assert other.peer in {each["ID"] for each in one.get("/api/peerstore")}
        assert {"ID": other.peer, "Online": True} in one.get("/api/nodes")
        write_reaches(one, other, "kairos", f"from-{one.name}")


# --- the ledger ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["enforce", "observe", "off"])
def test_ledgers_agree(make_site, figure, mode):
    site = make_site(1, 1, ownership=mode).start()
    (go,), (ours,) = site.go, site.ours
    whole(go, ours)
    for one, other in ((go, ours), (ours, go)):
        began = time.monotonic()
        for number in range(5):
            write_reaches(one, other, "kairos", f"{one.name}-{number}")
        figure(f"{mode:8} a write at {one.name} is at {other.name}: {(time.monotonic() - began) / 5:.2f} s each")
        # odd but legal text passes unchanged
        one.call("PUT", f"/api/ledger/odd/{one.name}/%3Cx%3E%26%20%C3%A4")
        until(lambda one=one, other=other: other.bucket("odd").get(one.name) == one.bucket("odd")[one.name], "odd text")

    # EdgeVPN defends a write until it looked again, up to 8 s later: deletions before that would be undone by it
    time.sleep(8)
    for one, other in ((go, ours), (ours, go)):
        one.delete("kairos", f"{one.name}-0")  # its own
        one.delete("kairos", f"{other.name}-1")  # the other's
    gone = {f"{node.name}-{number}" for node in site.nodes for number in (0, 1)}
    for node in site.nodes:
        until(lambda node=node: not gone & node.bucket("kairos").keys(), f"{node.name} has deleted")
    go.delete("odd")
    until(lambda: not ours.bucket("odd"), "a deleted bucket is gone here too")

    def same():
        theirs, mine = go.entries(), ours.entries()
        # heartbeats move on while we look
        return all(theirs.get(each) == mine.get(each) for each in {*theirs, *mine} - {"healthcheck"})

    until(same, "the same records, tombstones included")
    entries = go.entries()["kairos"]
    if mode == "off":
        assert gone.isdisjoint(entries)
        assert all(isinstance(entry, str) for entry in entries.values())
    else:
        assert all(entries[key]["Deleted"] for key in gone)
        assert all(entry["Sig"] for entry in entries.values())
    for node in site.nodes:
        assert node.machines() == {go.address: go.peer, ours.address: ours.peer}
        assert node.heartbeats() >= {go.peer, ours.peer}
        assert refusals(node) == []
        assert "failed" not in node.log


# --- addresses ----------------------------------------------------------------------------------------------------


def test_every_node_leases_an_address_of_its_own(make_site, figure):
    """All networks at once: EdgeVPN needs about ten seconds for each address."""
    sites = {
        "1 Go, 1 ours": make_site(1, 1, address=""),
        "2 Go, 1 ours": make_site(2, 1, address=""),
        "1 Go, 2 ours": make_site(1, 2, address=""),
        "1 Go static, 1 Go, 1 ours": make_site(2, 1, address=""),
        "1 Go, 1 ours static, 1 ours": make_site(1, 2, address=""),
    }
    sites["1 Go static, 1 Go, 1 ours"].go[0].address = "10.1.0.7"
    sites["1 Go, 1 ours static, 1 ours"].ours[0].address = "10.1.0.9"
    began = time.monotonic()
    for site in sites.values():
        site.start()
    for name, site in sites.items():
        for node in site.nodes:
            until(lambda node=node: node.lease, f"{name}: {node.name} has an address", 2 * PATIENCE)
        figure(f"leases of {name}: within {time.monotonic() - began:.0f} s")
    for name, site in sites.items():
        until(lambda site=site: all(len(node.machines()) == len(site.nodes) for node in site.nodes), f"{name}: records")
        leases = [node.lease for node in site.nodes]
        assert len(set(leases)) == len(leases), f"{name}: {leases}"
        assert all(node.lease == node.address for node in site.nodes if node.address)
        for node in site.nodes:
            assert node.machines() == {each.lease: each.peer for each in site.nodes}, name
            assert refusals(node) == []


# --- packets ------------------------------------------------------------------------------------------------------

_RECEIVE = """
import hashlib, socket, sys
server = socket.create_server((sys.argv[1], 5001))
print("ready", flush=True)
connection, _ = server.accept()
digest = hashlib.sha256()
while data := connection.recv(1 << 20):
    digest.update(data)
connection.sendall(digest.hexdigest().encode())
connection.close()
"""
_SEND = """
import hashlib, os, socket, sys, time
connection = socket.create_connection((sys.argv[1], 5001), 60)
digest, piece = hashlib.sha256(), os.urandom(1 << 16)
began = time.monotonic()
for _ in range(int(sys.argv[2]) >> 16):
    connection.sendall(piece)
    digest.update(piece)
connection.shutdown(socket.SHUT_WR)
assert connection.recv(1000).decode() == digest.hexdigest()
print(time.monotonic() - began)
"""
BULK = 8 << 20


def transfer(sender, receiver):
    """Seconds that :data:`BULK` bytes over TCP took; AssertionError when they are not the same at the end."""
    server = receiver.space.popen(sys.executable, "-c", _RECEIVE, receiver.address, stdout=subprocess.PIPE, text=True)
    assert server.stdout.readline() == "ready\n"
    return float(sender.space.run(sys.executable, "-c", _SEND, receiver.address, str(BULK)))


def test_packets_pass_both_ways(make_site, figure):
    site = make_site(2, 2).start()
    whole(*site.nodes)
    for one, other in permutations(site.nodes, 2):
        until(lambda one=one, other=other: one.ping(other.address, 1), f"ping {one.name} -> {other.name}")
    (go, go2), (ours, ours2) = site.go, site.ours
    for one, other in ((go, ours), (ours, go), (ours, ours2), (go, go2)):
        said = until(lambda one=one, other=other: one.ping(other.address, 100, gap=0.01), "100 echoes")
        taken = transfer(one, other)
        figure(f"{one.name} -> {other.name}: TCP {BULK / taken / 1e6:.1f} MB/s; {said.splitlines()[-1]}")
    counters = ours.get("/api/v1/status")["counters"]
    assert counters.get("packets_in_malformed", 0) == 0


# --- restarts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ours", "go"])
@pytest.mark.parametrize(
    ("number", "identity"), [(signal.SIGTERM, "same"), (signal.SIGKILL, "same"), (signal.SIGKILL, "new")]
)
def test_a_node_that_restarts_is_back(make_site, figure, kind, number, identity):
    """Writes and deletions of meanwhile reach it, and packets pass both ways again.

    With a new identity and the old address the other side holds the address for the dead peer until its heartbeat is
    older than the ownership window, as EdgeVPN does: shortened here.
    """
    site = make_site(1, 1, cached_key=True, environment={"EDGEVPNOWNERSHIPTTL": "25"}).start()
    (go,), (ours,) = site.go, site.ours
    whole(go, ours)
    node, other = (go, ours) if kind == "go" else (ours, go)
    peer = node.peer
    for key in ("stays", "goes"):
        write_reaches(other, node, "kairos", key)
    write_reaches(node, other, "kairos", "its-own")

    node.end(number)
    if identity == "new":
        node.forget_identity()
    other.delete("kairos", "goes")
    other.put("kairos", "meanwhile", "said")
    began = time.monotonic()
    node.start()
    assert (node.peer == peer) is (identity == "same")
    whole(go, ours)
    for one, two in ((go, ours), (ours, go)):
        until(lambda one=one, two=two: one.ping(two.address, 1), f"ping {one.name} -> {two.name}", 2 * PATIENCE)
    figure(f"{kind} back after {number.name}, {identity} identity: {time.monotonic() - began:.1f} s")
    for key in ("stays", "meanwhile", "its-own"):
        until(lambda key=key: node.value("kairos", key) == "said", f"{node.name} has {key}")
    if kind == "ours":  # what EdgeVPN deletes within seconds of its own write it puts back itself
        until(lambda: go.bucket("kairos") == ours.bucket("kairos"), "the same bucket")
    else:
        until(lambda: not node.value("kairos", "goes"), "the deletion is seen")
    write_reaches(go, ours, "kairos", "after-go")
    write_reaches(ours, go, "kairos", "after-ours")


# --- our client against EdgeVPN's API -----------------------------------------------------------------------------


def test_our_client_speaks_with_edgevpn_over_tcp(make_site):
    site = make_site(1, 1)
    (go,), (ours,) = site.go, site.ours
    go.environment = {"APILISTEN": "127.0.0.1:8080"}
    for node in site.nodes:
        node.start()

    async def main():
        async with DaemonClient("http://127.0.0.1:8080", poll_interval=0.2) as client:
            with trio.fail_after(2 * PATIENCE):
                await client.wait_until_reachable()
                assert await client.status() is None
                peer = (await client.summary())["NodeID"]
                while ours.peer not in await client.plain_bucket("healthcheck"):  # noqa: ASYNC110 - it tells nobody
                    await trio.sleep(0.2)
                assert await client.get("kairos", "absent") is None
                value = {"Time": "2026-01-01T00:00:00Z", "text": "<ä>&\n" * 100}
                first = await client.watch(["kairos"])
                assert not first.native
                assert first.texts == {"kairos": None}
                await client.put("kairos", "some-uuid", value)
                second = await client.watch(["kairos"], first.cursor, timeout=PATIENCE)
                assert second.texts["kairos"] is not None
                assert await client.get("kairos", "some-uuid") == value
                assert await client.bucket("kairos") == {"some-uuid": value}
                assert peer in {each["PeerID"] for each in await client.machines()}
                assert ours.peer in {each["ID"] for each in await client.nodes()}
                await through_ours(client, value)
                unchanged = await client.watch(["nothing"], (await client.watch(["nothing"])).cursor, timeout=0.5)
                assert unchanged.texts == {"nothing": None}
                assert client.garbage == 0

    async def through_ours(client, value):
        """What one daemon's client writes, the other's reads; a change made over there ends the watch here."""
        async with DaemonClient(f"unix://{ours.socket}") as native:
            cursor = None
            while "some-uuid" not in await native.bucket("kairos"):
                cursor = (await native.watch(["kairos"], cursor, timeout=PATIENCE)).cursor
            assert await native.get("kairos", "some-uuid") == value
            seen = await client.watch(["kairos"])
            await native.put("kairos", "other-uuid", [1, 2])
            changed = await client.watch(["kairos"], seen.cursor, timeout=PATIENCE)
            assert "other-uuid" in (changed.texts["kairos"] or {})
            assert await client.get("kairos", "other-uuid") == [1, 2]
            await native.delete("kairos", "other-uuid")
            while await client.get("kairos", "other-uuid") is not None:  # noqa: ASYNC110 - as above
                await trio.sleep(0.2)

    with go.space.entered():
        trio.run(main)


# --- the end ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_everybody_hears_everybody_through_six_rotations(rotating, shape):
    network = rotating[shape]
    network.wait()
    assert network.failures == []
    assert network.done == ROTATIONS
    for node in network.site.nodes:
        assert refusals(node) == []
    for node in network.site.ours:
        counters = node.get("/api/v1/status")["counters"]
        assert counters.get("unopened_message", 0) == 0, json.dumps(counters)
