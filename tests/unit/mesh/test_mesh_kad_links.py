"""Connections of the DHT in virtual time: made once, closed when idle, never to where they must not go."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from provider_kairos.ids import PeerId
from provider_kairos.mesh import kad_links
from provider_kairos.mesh.addresses import Endpoint, Networks
from provider_kairos.mesh.kad_links import DEAD_FOR, DIAL_TIMEOUT, IDLE, LOOK, Links
from provider_kairos.mesh.swarm import DialError

PEER, OTHER = PeerId("P"), PeerId("Q")


def at(host, port=4001):
    return Endpoint("ip6" if ":" in host else "ip4", host, port)


class FakeNetwork:
    """Hosts that answer after so many seconds; all others stay silent."""

    def __init__(self, answers):
        self.answers = answers
        self.dials: list[str] = []
        self.live: dict[PeerId, list[Any]] = {}

    def preferred(self, peer):
        return next(iter(self.live.get(peer, ())), None)

    def connections(self, peer):
        return list(self.live.get(peer, ()))

    def peers(self):
        return list(self.live)

    async def dial(self, endpoint, expected):
        self.dials.append(endpoint.host)
        await trio.sleep(self.answers.get(endpoint.host, 60))
        if endpoint.host.endswith(".13"):
            raise DialError("refused")
        return self.connect(expected)

    def connect(self, peer, *, outbound=True):
        connection = SimpleNamespace(outbound=outbound)
        connection.muxer = SimpleNamespace(close=lambda: self.live.pop(peer, None))
        self.live.setdefault(peer, []).append(connection)
        return connection


def play(script, answers=None, *, kept=(), own=("/ip4/203.0.113.5/tcp/4001",)):
    network: Any = FakeNetwork(answers or {})

    async def main():
        links = Links(network, Networks(("10.1.0.0/24",)), keeps=kept.__contains__, own=lambda: own)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(links.run)
            await script(network, links)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return network


def test_several_who_ask_share_one_connection():
    async def script(network, links):
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(links.connect, PEER, [at("198.51.100.1")])
        assert len(network.live[PEER]) == 1

    assert play(script, {"198.51.100.1": 0.1}).dials == ["198.51.100.1"]


def test_the_next_address_is_tried_beside_a_silent_one():
    async def script(_network, links):
        began = trio.current_time()
        await links.connect(PEER, [at("198.51.100.13"), at("198.51.100.2"), at("198.51.100.3")])
        assert trio.current_time() - began < 1

    play(script, {"198.51.100.13": 0, "198.51.100.3": 0.1})


def test_a_silent_node_costs_its_time_once():
    async def script(network, links):
        began = trio.current_time()
        for _ in range(3):
            with pytest.raises(DialError):
                await links.connect(PEER, [at("198.51.100.1")])
        assert trio.current_time() - began <= DIAL_TIMEOUT + 0.1
        # the user named it: it is tried at any time
        with pytest.raises(DialError):
            await links.connect(PEER, [at("198.51.100.1")], anyway=True)
        assert len(network.dials) == 2
        await trio.sleep(DEAD_FOR)
        network.answers["198.51.100.1"] = 0.1
        await links.connect(PEER, [at("198.51.100.1")])

    play(script)


def test_a_node_without_an_address_is_not_reached():
    async def script(_network, links):
        with pytest.raises(DialError, match="no address"):
            await links.connect(PEER, [])

    play(script)


def test_idle_connections_of_ours_are_closed_and_no_others():
    async def script(network, links):
        await links.connect(PEER, [at("198.51.100.1")])
        await links.connect(OTHER, [at("198.51.100.1")])
        asker = PeerId("asker")
        network.connect(asker, outbound=False)
        links.used(asker)
        assert links.is_contact(PEER)
        assert not links.is_contact(OTHER)
        await trio.sleep(IDLE - 1)
        links.used(PEER)
        await trio.sleep(IDLE - 1)
        assert PEER in network.live
        await trio.sleep(LOOK + 2)
        assert PEER not in network.live
        assert {OTHER, asker} <= network.live.keys()
        assert links.is_contact(asker)
        network.live.clear()
        await trio.sleep(LOOK + 1)
        assert not links.is_contact(asker)

    play(script, {"198.51.100.1": 0.1}, kept={OTHER})


def test_where_a_dht_cannot_send_us():
    async def script(_network, links):
        offered = [
            at("10.1.0.7"),  # the VPN
            at("203.0.113.5"),  # ourselves
            at("127.0.0.1"),
            at("::1"),
            at("fe80::1"),
            at("169.254.1.1"),
            at("192.168.1.1"),
            at("8.8.8.8"),
            Endpoint("dns4", "node.example.org", 4001),
        ]
        assert [each.host for each in links.usable(offered)] == ["8.8.8.8", "node.example.org", "192.168.1.1"]

    play(script)


def test_on_loopback_alone_loopback_is_the_world():
    async def script(_network, links):
        assert links.usable([at("127.0.0.1", 1), at("127.0.0.1", 2)]) == (at("127.0.0.1", 2),)

    play(script, own=("/ip4/127.0.0.1/tcp/1",))


def test_what_is_remembered_is_bounded(monkeypatch):
    monkeypatch.setattr(kad_links, "MAX_CONTACTS", 10)
    monkeypatch.setattr(kad_links, "MAX_DEAD", 10)

    async def script(_network, links):
        for number in range(100):
            links.used(PeerId(str(number)))
            links.silent(PeerId(str(number)))
        assert len(links._used) == len(links._dead) == 10
        await trio.lowlevel.checkpoint()

    play(script)
