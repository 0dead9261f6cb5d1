"""Routes of a static peer table: packets go by it alone, and from its peers alone they are taken."""

from __future__ import annotations

import ipaddress
import json
import struct

from provider_kairos.ids import PeerId
from provider_kairos.vpn.guard import Guard, Verdict
from provider_kairos.vpn.routes import RouteTable

US, A, B, X = (PeerId(name) for name in ("us", "a", "b", "x"))
NETWORK = ipaddress.ip_network("10.1.0.0/24")


def record(peer, address):
    return json.dumps({"PeerID": peer, "Address": address})


def table(**static):
    routes = RouteTable(US, static={name.replace("_", "."): peer for name, peer in static.items()})
    machines = {
        "10.1.0.9": record(US, "10.1.0.9"),
        "10.1.0.2": record(X, "10.1.0.2"),
        "10.1.0.3": record(X, "10.1.0.3"),
    }
    routes.update(machines, {X})
    return routes


def packet(source, destination):
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20, 0, 0, 64, 17, 0)
    return head + ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed


STATIC = {"10_1_0_1": A, "10_1_0_2": B}


def test_the_table_alone_counts_whatever_the_ledger_says_and_whoever_is_alive():
    routes = table(**STATIC)
    assert routes.lookup("10.1.0.1") == A
    assert routes.lookup("10.1.0.2") == B, "the ledger says x"
    assert routes.lookup("10.1.0.3") is None, "only the ledger knows it"
    assert {peer for peer in (A, B, X, US) if routes.is_member(peer)} == {A, B}


def test_our_own_address_need_not_be_in_it():
    routes = table(**STATIC)
    assert routes.own == {ipaddress.ip_address("10.1.0.9").packed}
    guard = Guard(routes, NETWORK)
    assert guard.outbound(packet("10.1.0.9", "10.1.0.1"))[0] is Verdict.PASS


def test_packets_are_taken_from_its_peers_under_their_own_address_only():
    guard = Guard(table(**STATIC), NETWORK)
    assert guard.inbound(A, packet("10.1.0.1", "10.1.0.9")) is Verdict.PASS
    assert guard.inbound(A, packet("192.0.2.1", "10.1.0.9")) is Verdict.FORWARDED
    assert guard.inbound(B, packet("10.1.0.1", "10.1.0.9")) is Verdict.SPOOFED
    assert not guard.inbound(X, packet("10.1.0.2", "10.1.0.9")).passes
    assert guard.inbound(X, packet("192.0.2.1", "10.1.0.9")) is Verdict.STRANGER


def test_without_a_table_the_ledger_counts():
    routes = table()
    assert routes.lookup("10.1.0.2") == X
    assert routes.lookup("10.1.0.1") is None


def test_it_counts_before_the_ledger_is_known():
    routes = RouteTable(US, static={"10.1.0.1": A, "fd00::1": B, "10.1.0.9": US})
    routes.update({}, set())
    assert (routes.lookup("10.1.0.1"), routes.lookup("fd00::1")) == (A, B)
    assert routes.own == {ipaddress.ip_address("10.1.0.9").packed}
