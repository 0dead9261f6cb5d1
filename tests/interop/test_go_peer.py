"""Our daemon beside the Go peer, in namespaces: the checklist of spec/edgevpn.md 16 without EdgeVPN's own program.

The Go peer follows the rules of the specification on the Go stack, so it judges our records as EdgeVPN does: by
signature and ownership with ``enforce``, and as v0.30 (``legacy``: no signed entry can be read) with ``off``.
"""

from __future__ import annotations

import json
import struct
import time
from ipaddress import IPv4Address

import pytest

from tests.interop.network import HARMLESS, reasons, until

pytestmark = pytest.mark.root

PEER_ADDRESS = "10.1.0.9"
LEDGER = {"sync": 1, "heartbeat": 1, "address": PEER_ADDRESS, "hostname": "gopher", "version": "v0.35.4"}
ENFORCE = LEDGER | {"ownership": "enforce"}


@pytest.fixture
def beside(make_site, go_peer):
    """``beside(**options)`` → one daemon of ours, not started, and how to start a Go peer on the same link."""

    def make(ours=1, **options):
        site = make_site(0, ours + 1, **{"heartbeat": 5, **options})
        space = site.nodes[-1].space

        def start_peer(**peer):
            return go_peer(
                space, token=site.token, **{"mdns": True, "ledger": ENFORCE, "block_subnet": "10.1.0.0/24", **peer}
            )

        return (*site.ours[:-1], start_peer)

    return make


def whole(go, *nodes):
    """Everybody has heartbeat and machine record of everybody."""
    for node in nodes:
        until(lambda node=node: go.id in node.heartbeats(), f"{node.name} has the Go peer's heartbeat")
        until(lambda node=node: node.machines().get(PEER_ADDRESS) == go.id, f"{node.name} has its machine record")
        go.until(lambda node=node: go.value("healthcheck", node.peer), f"the Go peer has {node.name}'s heartbeat")
        record = go.until(lambda node=node: go.value("machines", node.address), f"it has {node.name}'s machine record")
        assert record["PeerID"] == node.peer


def nothing_refused(go):
    """The Go peer took every block and every record that it heard, but for blocks that came too late."""
    assert go.do("ledger")["dropped"] == 0
    rejected = [each for each in go.events if each["event"] == "rejected"]
    assert [each for each in rejected if each["reason"] != HARMLESS] == []


# --- finding each other ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", ["go", "ours"])
def test_go_peer_and_daemon_find_each_other_by_mdns(beside, first):
    ours, start_peer = beside()
    if first == "go":
        go = start_peer()
        ours.start()
    else:
        ours.start()
        assert ours.peer
        go = start_peer()
    whole(go, ours)
    assert ours.peer in go.room()
    assert go.id in ours.room()
    said = go.peers()[ours.peer]
    assert said["agent"] == "edgevpn"
    assert "/edgevpn/0.1" in said["protocols"]
    nothing_refused(go)


# --- the ledger -----------------------------------------------------------------------------------------------------

MODES = [("enforce", "enforce"), ("observe", "enforce"), ("enforce", "observe"), ("off", "off"), ("off", "legacy")]


@pytest.mark.parametrize(("mode", "theirs"), MODES)
def test_go_peer_ledger_both_ways(beside, mode, theirs):
    """Writes, changes and deletions on either side are the other's too; heartbeats and machine records as well."""
    ours, start_peer = beside(ownership=mode)
    ours.start()
    go = start_peer(ledger=LEDGER | {"ownership": theirs})
    whole(go, ours)

    go.do("put", bucket="kairos", key="theirs", value="<one> & \u2028")
    until(lambda: ours.value("kairos", "theirs") == "<one> & \u2028", "the Go peer's value, byte for byte")
    go.do("put", bucket="kairos", key="theirs", value="two")
    until(lambda: ours.value("kairos", "theirs") == "two", "its change")
    go.do("delete", bucket="kairos", key="theirs")
    until(lambda: "theirs" not in ours.bucket("kairos"), "its deletion")

    ours.put("kairos", "mine", "one")
    go.until(lambda: go.value("kairos", "mine") == "one", "our value")
    ours.put("kairos", "mine", "two")
    go.until(lambda: go.value("kairos", "mine") == "two", "our change")
    ours.delete("kairos", "mine")
    go.until(lambda: go.value("kairos", "mine") is None, "our deletion")

    entry = go.ledger()["healthcheck"][ours.peer]
    assert entry["signed"] == (mode != "off")
    if entry["signed"]:
        assert entry["owner"] == ours.peer
        assert int(entry["version"]) > 2**53
    nothing_refused(go)


def test_go_peer_v030_cannot_read_signed_blocks_and_we_say_so(beside):
    """Two ledger formats in one network: named by status, as nobody else would (spec 5.9)."""
    ours, start_peer = beside(ownership="enforce")
    ours.start()
    go = start_peer(ledger=LEDGER | {"ownership": "legacy", "version": "v0.30.2"})
    go.event("block_dropped")
    until(lambda: "mixed-ledger-formats" in reasons(ours), "the reason in its status")


def test_go_peer_restarts_with_a_new_and_an_old_identity(beside):
    ours, start_peer = beside()
    ours.start()
    seed = "07" * 32
    go = start_peer(seed=seed)
    whole(go, ours)
    go.kill()
    again = start_peer(seed=seed)
    assert again.id == go.id
    whole(again, ours)
    again.do("put", bucket="kairos", key="after", value="restart")
    until(lambda: ours.value("kairos", "after") == "restart", "a write after its restart")
    again.kill()
    other = start_peer(ledger=ENFORCE | {"address": "10.1.0.10"})
    until(lambda: ours.machines().get("10.1.0.10") == other.id, "the new identity's machine record")
    other.do("put", bucket="kairos", key="after", value="new identity")
    until(lambda: ours.value("kairos", "after") == "new identity", "a write under the new identity")
    nothing_refused(other)


def test_go_peer_hears_us_through_rotations(beside):
    """Topic and key change every 6 s; a write of each side passes in each of three epochs (spec 4.6, 17)."""
    interval, rotations = 6, 2
    ours, start_peer = beside(interval=interval)
    ours.start()
    go = start_peer()
    whole(go, ours)
    seen = set()
    for number in range(1000):
        epoch = int(time.time()) // interval
        key = f"{epoch}-{number}"
        go.do("put", bucket="theirs", key=key, value=key)
        ours.put("ours", key, key)
        until(lambda key=key: ours.value("theirs", key) == key, f"the Go peer's write in epoch {epoch}")
        go.until(lambda key=key: go.value("ours", key) == key, f"our write in epoch {epoch}")
        if int(time.time()) // interval == epoch:
            seen.add(epoch)
        if len(seen) > rotations:
            break
        time.sleep(interval / 4)
    assert len({each["topic"] for each in go.events if each["event"] == "topic"}) > rotations
    assert len(seen) > rotations
    nothing_refused(go)


def test_go_peers_hear_each_other_through_us(beside, go_peer):
    """Two Go peers that are not connected with each other: what one writes reaches the other by our forwarding."""
    ours, start_peer = beside()
    ours.start()
    one = start_peer(mdns=False)
    two = start_peer(mdns=False, ledger=ENFORCE | {"address": "10.1.0.10"}, listen=["/ip4/0.0.0.0/tcp/0"])
    address = until(lambda: listen_address(ours), "where we listen")
    for peer in (one, two):
        peer.connect(address)
    whole(one, ours)
    for number in range(3):
        one.do("put", bucket="kairos", key=f"from-one-{number}", value="heard")
        two.until(lambda number=number: two.value("kairos", f"from-one-{number}"), "the write of the other")
    assert two.id not in one.peers()


def listen_address(node):
    """A multiaddr of one of our nodes, for a peer that has no mDNS."""
    (line,) = [each for each in node.log.splitlines() if "listens on" in each][:1]
    words = json.loads(line)["message"].split(" listens on ")[1].split(", ")
    (address,) = [each for each in words if node.space.address in each]
    return f"{address}/p2p/{node.peer}"


# --- packets --------------------------------------------------------------------------------------------------------


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def echo_request(source, target, number, payload=b"abcdefgh" * 4):
    """An IPv4 packet that the target's kernel answers by itself."""
    icmp = struct.pack("!BBHHH", 8, 0, 0, 77, number) + payload
    icmp = icmp[:2] + struct.pack("!H", checksum(icmp)) + icmp[4:]
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        20 + len(icmp),
        number,
        0,
        64,
        1,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + icmp


def replies(go, peer):
    """Numbers of the echo replies that came from a peer; every packet is whole."""
    numbers = []
    for packet in go.packets(peer):
        assert len(packet) == struct.unpack("!H", packet[2:4])[0], "a packet was cut or glued"
        if packet[9] == 1 and packet[20] == 0:
            numbers.append(struct.unpack("!H", packet[26:28])[0])
    return numbers


@pytest.mark.parametrize("long", [False, True], ids=["one stream a packet", "one long stream"])
def test_go_peer_packets_both_ways(beside, long):
    """What the Go peer sends comes out of our TUN, and the kernel's replies go back, whole, on a stream of ours."""
    ours, start_peer = beside()
    ours.start()
    go = start_peer()
    whole(go, ours)
    assert until(lambda: ours.lease, "the VPN interface") == ours.address
    for batch in range(5):
        numbers = range(batch * 10, batch * 10 + 10)
        packets = [echo_request(PEER_ADDRESS, ours.address, number, bytes(number * 22)) for number in numbers]
        go.do("send_packet", peer=ours.peer, packets=packets, long=long)
        go.until(lambda numbers=numbers: set(numbers) <= set(replies(go, ours.peer)), f"all replies of batch {batch}")
    counts = go.do("packet_counts")["peers"][ours.peer]
    assert counts["streams"] < counts["packets"] / 10, "we keep one stream for many packets"


def test_go_peer_that_is_no_machine_sends_no_packets(beside):
    """Admission (spec 8.1): who has no machine record is reset before anything is read."""
    ours, start_peer = beside()
    ours.start()
    go = start_peer(ledger={"ownership": "enforce", "sync": 1, "heartbeat": 1})
    until(lambda: go.id in ours.heartbeats(), "its heartbeat")
    go.do("serve", protocol="/edgevpn/0.1", mode="packets")
    for number in range(3):
        go.do("send_packet", peer=ours.peer, packets=[echo_request(PEER_ADDRESS, ours.address, number)])
    until(lambda: ours.get("/api/v1/status")["counters"].get("packets_in_unknown") == 3, "the counter")
    assert replies(go, ours.peer) == []
