"""Our daemon beside the real EdgeVPN v0.35: ways of finding and securing, bulk data, our client on its API.

What is the same in every version and mode is in ``test_edgevpn_checklist_live.py``.
"""

from __future__ import annotations

import subprocess
import sys
from itertools import permutations

import pytest
import trio

from provider_kairos.api.client import DaemonClient
from tests.interop.network import NEW, OLD, ONE_SECURITY, PATIENCE, until, whole, write_reaches

pytestmark = pytest.mark.root


# --- finding each other -------------------------------------------------------------------------------------------


@pytest.mark.row(1, "over TLS and over Noise, whoever is there first", version=NEW, mode="enforce")
@pytest.mark.parametrize("security", ["/tls/1.0.0", "/noise"])
@pytest.mark.parametrize("first", ["go", "ours"])
def test_they_find_each_other_by_mdns(make_site, first, security):
    site = make_site(1, 1)
    (go,), (ours,) = site.go, site.ours
    ours.patch = ONE_SECURITY.format(security)
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


@pytest.mark.parametrize("version", [NEW, OLD])
@pytest.mark.row(2, "by our node's EDGEVPNBOOTSTRAPPEERS, without mDNS", mode="off")
def test_we_find_it_by_an_explicit_address(make_site, version):
    site = make_site(1, 1, version=version, ownership="off", environment={"EDGEVPNMDNS": "false"})
    (go,), (ours,) = site.go, site.ours
    go.port = 4001
    go.start()
    ours.environment = {**ours.environment, "EDGEVPNBOOTSTRAPPEERS": go.dial}
    ours.start()
    whole(go, ours)
    write_reaches(ours, go, "kairos", "found")


@pytest.mark.row(
    2, "by its --discovery-bootstrap-peers, without mDNS: gossip dials them itself", version=NEW, mode="enforce"
)
def test_it_finds_us_by_an_explicit_address(make_site):
    site = make_site(1, 1, environment={"EDGEVPNMDNS": "false"})
    (go,), (ours,) = site.go, site.ours
    ours.port = 4001
    ours.start()
    go.environment = {**go.environment, "EDGEVPNBOOTSTRAPPEERS": ours.dial}
    go.start()
    whole(go, ours)
    write_reaches(go, ours, "kairos", "found")


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


@pytest.mark.row(7, "megabytes over TCP in every direction, unchanged", version=NEW, mode="enforce")
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


# --- our client against EdgeVPN's API -----------------------------------------------------------------------------


@pytest.mark.row(9, "our client reads, writes and watches on its API over TCP", version=NEW, mode="enforce")
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
