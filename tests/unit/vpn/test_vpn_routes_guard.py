from __future__ import annotations

import ipaddress
import json
import socket
import struct

import pytest

from provider_kairos.ids import PeerId
from provider_kairos.vpn.guard import Guard, Verdict
from provider_kairos.vpn.records import LeaseNote, LeaseState, machine_record
from provider_kairos.vpn.routes import RouteTable

ME, A, B, GO = PeerId("me"), PeerId("a"), PeerId("b"), PeerId("go")
EVERYBODY = frozenset({ME, A, B, GO})


def machines(**entries):
    return {
        address.replace("_", ".")[1:]: machine_record(peer, "h", "amd64", "", "") for address, peer in entries.items()
    }


MACHINES = machines(_10_1_0_1=ME, _10_1_0_2=A, _10_1_0_3=B, _10_1_0_4=GO) | {
    "fd00::2": machine_record(A, "h", "amd64", "fd00::2", "")
}


def packet(source, destination):
    if ":" in source:
        head = struct.pack("!IHBB", 0x60000000, 0, 59, 64)
        return head + socket.inet_pton(socket.AF_INET6, source) + socket.inet_pton(socket.AF_INET6, destination)
    return (
        struct.pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 17, 0)
        + socket.inet_aton(source)
        + socket.inet_aton(destination)
    )


@pytest.fixture
def routes():
    table = RouteTable(ME)
    table.update(MACHINES, EVERYBODY)
    return table


def test_lookup(routes):
    assert routes.lookup("10.1.0.2") == A
    assert routes.lookup(bytes([10, 1, 0, 3])) == B
    assert routes.lookup("fd00:0::2") == A, "by value, not by spelling"
    assert routes.lookup("10.1.0.9") is None
    assert routes.lookup("nonsense") is None
    assert routes.own == {bytes([10, 1, 0, 1])}
    assert routes.addresses()["10.1.0.3"] == B
    assert len(routes) == 5


def test_who_is_not_live_gets_nothing_but_we_always_count():
    table = RouteTable(ME)
    table.update(MACHINES, frozenset({A}))
    assert (table.lookup("10.1.0.2"), table.lookup("10.1.0.3"), table.lookup("10.1.0.1")) == (A, None, ME)
    loose = RouteTable(ME, require_live=False)
    loose.update(MACHINES, frozenset())
    assert loose.lookup("10.1.0.3") == B


def test_revision_tells_of_changes(routes):
    before = routes.revision
    assert routes.update(MACHINES, EVERYBODY) is False
    assert routes.update(MACHINES, EVERYBODY - {B}) is True
    assert routes.revision == before + 1
    assert routes.lookup("10.1.0.3") is None


def test_unreadable_records_are_passed_over():
    table = RouteTable(ME)
    table.update(
        {"10.1.0.2": "null", "x": MACHINES["10.1.0.2"], "10.1.0.3": "{", "10.1.0.4": json.dumps({"PeerID": 5})},
        EVERYBODY,
    )
    assert len(table) == 0


def test_a_peers_own_word_about_its_address_wins():
    held = LeaseNote(LeaseState.HELD, "10.1.0.2", 5)
    moved = LeaseNote(LeaseState.HELD, "10.1.0.7", 9)
    table = RouteTable(ME)
    # the record still names a, which moved away; b holds the address
    table.update(MACHINES, EVERYBODY, {A: moved.text(), B: held.text()})
    assert (table.lookup("10.1.0.2"), table.lookup("10.1.0.7")) == (B, A)
    # a Go node has no note and keeps what it has
    table.update(MACHINES, EVERYBODY, {B: LeaseNote(LeaseState.HELD, "10.1.0.4", 5).text()})
    assert table.lookup("10.1.0.4") == GO
    # two claim it: everybody finds the same one
    table.update({}, EVERYBODY, {A: held.text(), B: LeaseNote(LeaseState.HELD, "10.1.0.2", 4).text()})
    assert table.lookup("10.1.0.2") == B
    table.update({}, EVERYBODY, {A: LeaseNote(LeaseState.CLAIMED, "10.1.0.2", 4).text()})
    assert table.lookup("10.1.0.2") is None, "a claim is no address yet"


def test_router_takes_what_nobody_has_but_only_from_us():
    table = RouteTable(ME, router="10.1.0.4")
    table.update(MACHINES, EVERYBODY)
    assert table.lookup("8.8.8.8", from_us=True) == GO
    assert table.lookup("8.8.8.8") is None
    assert table.lookup("10.1.0.2", from_us=True) == A
    # what belongs to a node that is gone does not go to the router, as with EdgeVPN
    table.update(MACHINES, EVERYBODY - {A})
    assert table.lookup("10.1.0.2", from_us=True) is None
    assert table.lookup("10.1.0.99", from_us=True) == GO


@pytest.fixture
def guard(routes):
    return Guard(routes, ipaddress.ip_network("10.1.0.0/24"))


@pytest.mark.parametrize(
    ("peer", "source", "destination", "verdict"),
    [
        (A, "10.1.0.2", "10.1.0.1", Verdict.PASS),
        (A, "fd00::2", "fd00::1", Verdict.PASS),
        (A, "10.1.0.3", "10.1.0.1", Verdict.SPOOFED),
        (A, "10.1.0.1", "10.1.0.1", Verdict.SPOOFED),
        (ME, "10.1.0.1", "10.1.0.1", Verdict.SPOOFED),
        (A, "127.0.0.1", "10.1.0.1", Verdict.SPOOFED),
        (A, "169.254.1.1", "10.1.0.1", Verdict.SPOOFED),
        (A, "fe80::1", "fd00::1", Verdict.SPOOFED),
        (A, "::1", "fd00::1", Verdict.SPOOFED),
        (A, "10.1.0.77", "10.1.0.1", Verdict.UNKNOWN),
        (A, "10.42.0.7", "10.42.1.7", Verdict.FORWARDED),
        (PeerId("stranger"), "10.42.0.7", "10.42.1.7", Verdict.STRANGER),
        (PeerId("stranger"), "10.1.0.2", "10.1.0.1", Verdict.SPOOFED),
        (A, "10.1.0.2", "224.0.0.251", Verdict.GROUP),
        (A, "10.1.0.2", "10.1.0.255", Verdict.GROUP),
        (A, "10.1.0.2", "255.255.255.255", Verdict.GROUP),
        (A, "10.1.0.2", "0.0.0.0", Verdict.GROUP),
        (A, "fd00::2", "ff02::fb", Verdict.GROUP),
    ],
)
def test_inbound(guard, peer, source, destination, verdict):
    assert guard.inbound(peer, packet(source, destination)) is verdict
    assert guard.counters == {f"in-{verdict.value}": 1}
    assert verdict.passes == (verdict in {Verdict.PASS, Verdict.FORWARDED})


@pytest.mark.parametrize(
    ("source", "destination", "verdict"),
    [
        ("10.1.0.1", "10.1.0.2", Verdict.PASS),
        ("10.1.0.1", "8.8.8.8", Verdict.PASS),
        ("10.42.0.7", "10.1.0.2", Verdict.FORWARDED),
        ("10.1.0.2", "10.1.0.3", Verdict.SPOOFED),
        ("fe80::1", "fd00::2", Verdict.SPOOFED),
        ("10.1.0.1", "224.0.0.251", Verdict.GROUP),
        ("10.1.0.1", "10.1.0.255", Verdict.GROUP),
        ("fe80::1", "ff02::2", Verdict.GROUP),
    ],
)
def test_outbound(guard, source, destination, verdict):
    got, header = guard.outbound(packet(source, destination))
    assert got is verdict
    assert header is not None
    assert guard.counters == {f"out-{verdict.value}": 1}


def test_malformed_both_ways(guard):
    assert guard.inbound(A, b"garbage") is Verdict.MALFORMED
    assert guard.outbound(packet("10.1.0.1", "10.1.0.2") + b"x") == (Verdict.MALFORMED, None)


def test_forwarding_can_be_forbidden(routes):
    guard = Guard(routes, ipaddress.ip_network("10.1.0.0/24"), forward=False)
    assert guard.inbound(A, packet("10.42.0.7", "10.1.0.1")) is Verdict.NOT_FORWARDING
    assert guard.outbound(packet("10.42.0.7", "10.1.0.2"))[0] is Verdict.NOT_FORWARDING
