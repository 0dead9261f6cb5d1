"""Packets and frames: whatever comes, either whole packets or a typed error."""

from __future__ import annotations

import ipaddress
import struct
from contextlib import suppress
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.clock import ManualClock
from provider_kairos.ids import PeerId
from provider_kairos.vpn.guard import Guard
from provider_kairos.vpn.lease import LeaseEngine, LeaseSettings, LeaseView
from provider_kairos.vpn.packets import PacketError, checksum, parse, split, unreachable
from provider_kairos.vpn.pool import Pool
from provider_kairos.vpn.records import LeaseNote, LeaseState, parse_notes
from provider_kairos.vpn.routes import RouteTable
from provider_kairos.vpn.streams import FrameDecoder, FrameError, encode


@st.composite
def packets(draw):
    payload = draw(st.binary(max_size=200))
    if draw(st.booleans()):
        addresses = draw(st.binary(min_size=8, max_size=8))
        return (
            struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, draw(st.integers(0, 255)), 0)
            + addresses
            + payload
        )
    addresses = draw(st.binary(min_size=32, max_size=32))
    return struct.pack("!IHBB", 0x60000000, len(payload), draw(st.integers(0, 255)), 64) + addresses + payload


@given(st.lists(packets(), max_size=20), st.lists(st.integers(0, 5000), max_size=10))
def test_streams_of_packets_survive_any_cutting(sent, cuts):
    stream, framed = b"".join(sent), encode(sent)
    places = sorted({0, len(framed), *(cut % (len(framed) + 1) for cut in cuts)})
    decoder = FrameDecoder()
    found = []
    for start, end in pairwise(places):
        found += decoder.feed(framed[start:end])
    assert found == sent
    assert split(stream) == (sent, b"")


@given(st.binary(max_size=300))
def test_random_bytes_as_packets(data):
    header = parse(data)
    assert header is None or header.length == len(data)
    try:
        found, rest = split(data)
    except PacketError:
        pass
    else:
        assert b"".join(found) + rest == data
        assert all(parse(packet) or packet[0] >> 4 == 4 for packet in found)
    with suppress(FrameError):
        FrameDecoder().feed(data)


@given(packets(), st.binary(min_size=4, max_size=4), st.binary(min_size=16, max_size=16))
def test_answers_are_well_formed(packet, four, six):
    for source in (four, six):
        answer = unreachable(packet, source)
        if answer is not None:
            header = parse(answer)
            assert header is not None
            assert header.source == source
            assert header.destination == parse(packet).source  # type: ignore[union-attr]
            if header.version == 4:
                assert checksum(answer[:20]) == checksum(answer[20:]) == 0


@given(packets(), st.sampled_from(["10.1.0.0/24", "fd00::/64"]))
def test_the_guard_judges_everything(packet, network):
    guard = Guard(RouteTable(PeerId("me")), ipaddress.ip_network(network))
    assert not guard.inbound(PeerId("stranger"), packet).passes
    guard.outbound(packet)


TEXT = st.text(max_size=30)
JUNK = st.dictionaries(
    TEXT,
    st.one_of(
        TEXT, st.just("null"), st.just('{"PeerID":"x"}'), st.just('{"lease":1,"state":"held","address":"10.1.0.1"}')
    ),
    max_size=5,
)


@given(JUNK, JUNK, JUNK, st.frozensets(TEXT, max_size=3), st.one_of(st.none(), TEXT))
def test_the_lease_engine_takes_any_ledger(machines, notes, dhcp, live, saved):
    clock = ManualClock()
    engine = LeaseEngine(LeaseSettings(), PeerId("me"), saved)
    for _ in range(12):
        engine.step(LeaseView(machines, notes, dhcp, frozenset(map(PeerId, live))), clock.now())
        clock.advance(0.5)
        assert engine.address is None or engine.address in Pool.parse("10.1.0.1/24")
    table = RouteTable(PeerId("me"))
    table.update(machines, frozenset(map(PeerId, live)), notes)


NOTES = st.builds(
    LeaseNote,
    state=st.sampled_from(LeaseState),
    address=st.ip_addresses(v=4).map(str),
    since_ms=st.integers(0, 2**62),
    pinned=st.booleans(),
    plain=st.lists(TEXT, max_size=5).map(tuple),
    left=st.dictionaries(TEXT, st.integers(0, 2**62), max_size=5).map(lambda left: tuple(left.items())),
)


@given(NOTES)
def test_notes_read_back(note):
    assert parse_notes({"peer": note.text()}) == {PeerId("peer"): note}
