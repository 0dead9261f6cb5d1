"""Nothing that comes from the link ends mDNS: random bytes and mutated recordings of real nodes."""

from __future__ import annotations

import json
import os
from ipaddress import IPv4Address
from pathlib import Path
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from provider_kairos.clock import ManualClock
from provider_kairos.mesh.mdns_engine import Arrival, Engine
from provider_kairos.mesh.mdns_wire import MalformedPacketError, announceable, build_announcement, parse, service_name
from provider_kairos.system.links import MulticastInterface

RECORDINGS = Path(__file__).parents[1] / "interop" / "recordings" / "mdns.jsonl"
RECORDS = [json.loads(line) for line in RECORDINGS.read_text(encoding="utf-8").splitlines()]
TAG = next(r["tag"] for r in RECORDS if r["record"] == "header")
SERVICE = service_name(TAG)
PACKETS = [bytes.fromhex(r["dns"]) for r in RECORDS if "dns" in r]
ETH0 = MulticastInterface(2, "eth0", (IPv4Address("192.168.1.5"),), ())
PEER = "12D3KooWRN4ZwYT8hnRMpZT365EpDF6SyvuUkjqKnBksHnKAZ6Bb"


def feed(data: bytes) -> None:
    clock = ManualClock()
    engine = Engine(TAG, PEER, Random(1))
    engine.set_addresses(["/ip4/192.168.1.5/tcp/1"], clock.now())
    engine.set_interfaces([ETH0], clock.now())
    for find in engine.receive(Arrival(data, 2, "192.168.1.6", 5353), clock.now()):
        assert find.peer_id != PEER
        assert all(address.startswith("/") and address.isprintable() for address in find.addresses)
        assert len(find.addresses) <= 64
    clock.advance(1)
    engine.poll(clock.now())


@given(st.binary(max_size=300))
def test_random_bytes(data):
    feed(data)


@given(
    st.binary(max_size=100),
    st.sampled_from([b"\0\0\0\0", b"\0\0\x84\0", b"\0\0\x18\0", b"\0\0\x28\0"]),
    st.binary(min_size=8, max_size=8),
)
def test_random_bytes_behind_a_header(data, start, counts):
    feed(start + bytes(byte & 3 if i % 2 else 0 for i, byte in enumerate(counts)) + data)


@given(
    st.sampled_from(PACKETS),
    st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=6),
    st.integers(0, 2000),
)
def test_mutated_recordings(packet, changes, cut):
    data = bytearray(packet)
    for place, value in changes:
        data[place % len(data)] = value
    feed(bytes(data))
    feed(bytes(data[: cut % len(data)]))
    feed(bytes(data) + bytes(data))


def test_many_mutated_recordings():
    """The same without hypothesis' bookkeeping, so that it can be run long (KAIROS_P2P_FUZZ=10000)."""
    rng = Random(5353)
    for _ in range(int(os.environ.get("KAIROS_P2P_FUZZ", "1000"))):
        data = bytearray(rng.choice(PACKETS))
        for _ in range(rng.randrange(1, 9)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            parse(bytes(data), SERVICE)
        except MalformedPacketError:
            continue


ADDRESSES = st.lists(
    st.tuples(st.ip_addresses(), st.integers(1, 65535)).map(
        lambda pair: f"/ip{pair[0].version}/{pair[0]}/tcp/{pair[1]}"
    ),
    max_size=8,
)


@settings(max_examples=50)
@given(ADDRESSES, st.lists(st.ip_addresses(), max_size=3))
def test_announcements_read_back(addresses, hosts):
    usable = announceable(addresses)
    message = parse(build_announcement(SERVICE, b"me", PEER, usable, hosts), SERVICE)
    found = [address for find in message.finds for address in find.addresses]  # type: ignore[union-attr]
    assert found == usable
