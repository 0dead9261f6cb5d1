"""The routing table: near nodes are kept, dead ones give way, one machine cannot fill it."""

from __future__ import annotations

import random

from provider_kairos.clock import ManualClock
from provider_kairos.ids import PeerId
from provider_kairos.mesh import kad_table, multiaddr
from provider_kairos.mesh.addresses import Endpoint
from provider_kairos.mesh.kad_table import MAX_CONTACTS, STALE, Table, block_of
from provider_kairos.mesh.kad_wire import distance_key, peer_key

RNG = random.Random(1)


def new_peer():
    return multiaddr.peer_id(b"\x12\x20" + RNG.randbytes(32))


ME = new_peer()


def at(host, port=4001):
    return Endpoint("ip6" if ":" in host else "ip4", host, port)


def peers_in(table, bucket, count):
    found: list[PeerId] = []
    while len(found) < count:
        peer = new_peer()
        if table.bucket_of(peer_key(peer)) == bucket:
            found.append(peer)
    return found


def test_the_nearest_are_found():
    table, now = Table(ME), ManualClock().now()
    peers = [new_peer() for _ in range(100)]
    kept = [peer for peer in peers if table.answered(peer, [at("10.0.0.1")], now)]
    key = distance_key(b"somewhere")
    expected = sorted(kept, key=lambda peer: peer_key(peer) ^ key)
    assert [each.peer for each in table.nearest(key, 20)] == expected[:20]
    assert [each.peer for each in table.nearest(key, 5, without=expected[:2])] == expected[2:7]


def test_a_bucket_holds_k_and_prefers_those_that_live():
    table, clock = Table(ME), ManualClock()
    peers = peers_in(table, 0, 23)
    for peer in peers[:20]:
        assert table.wants(peer, clock.now())
        assert table.answered(peer, [], clock.now())
    assert not table.wants(peers[20], clock.now())
    assert not table.answered(peers[20], [], clock.now())
    clock.advance(STALE - 1)
    table.answered(peers[0], [], clock.now())
    clock.advance(1)
    assert table.wants(peers[20], clock.now())
    assert table.answered(peers[20], [], clock.now())
    assert peers[0] in table
    assert peers[1] not in table
    assert len(table) == 20
    assert {each.peer for each in table.silent(clock.now(), STALE)} == set(peers[2:20])
    table.remove(peers[2])
    assert table.answered(peers[21], [], clock.now())


def test_we_are_no_contact_of_ours():
    table, now = Table(ME), ManualClock().now()
    assert not table.wants(ME, now)
    assert not table.answered(ME, [at("192.0.2.1")], now)
    assert table.bucket_of(peer_key(ME)) == 256


def test_one_block_of_public_addresses_gets_three_places():
    table, now = Table(ME), ManualClock().now()
    taken = [table.answered(new_peer(), [at(f"8.8.{number}.1")], now) for number in range(40)]
    assert sum(taken) == kad_table.MAX_PER_BLOCK
    assert table.answered(new_peer(), [at("9.9.9.9")], now)
    # a node that the user named does not count, and removing one makes room
    assert table.answered(new_peer(), [at("8.8.1.1")], now, trusted=True)
    gone = next(each.peer for each in table.nearest(0, 99) if each.block == "8.8.0.0/16")
    table.remove(gone)
    assert any(table.answered(new_peer(), [at("8.8.9.1")], now) for _ in range(20))


def test_a_private_internet_behind_one_block_is_not_limited():
    table, now = Table(ME), ManualClock().now()
    for bucket in (0, 1):
        for number, peer in enumerate(peers_in(table, bucket, 20)):
            assert table.answered(peer, [at(f"10.0.0.{number}"), at("fd00::1")], now)


def test_blocks():
    assert block_of([]) == ""
    assert block_of([at("10.1.2.3"), at("8.8.4.4")]) == "8.8.0.0/16"
    assert block_of([at("2606:4700:10::1")]) == "2606:4700::/32"
    assert block_of([Endpoint("dns", "example.org", 1)]) == ""


def test_the_table_is_bounded():
    table, now = Table(ME, k=200), ManualClock().now()
    for _ in range(MAX_CONTACTS + 300):
        table.answered(new_peer(), [], now)
    assert len(table) <= MAX_CONTACTS
    assert table.depth > 0


def test_addresses_of_a_contact_are_renewed_and_bounded():
    table, now = Table(ME), ManualClock().now()
    peer = new_peer()
    table.answered(peer, [at("192.0.2.1")], now)
    for number in range(50):
        table.answered(peer, [at("192.0.2.9", 1 + number)], now)
    contact = table.get(peer)
    assert contact is not None
    assert contact.endpoints[0] == at("192.0.2.9", 50)
    assert len(contact.endpoints) == kad_table.MAX_ENDPOINTS
