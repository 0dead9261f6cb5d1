"""Dialling: all addresses, the likeliest first, pauses that grow, and two sides that find each other at once."""

from __future__ import annotations

import itertools
import random
from types import SimpleNamespace

import trio
import trio.testing

from provider_kairos.ids import PeerId
from provider_kairos.mesh import dialer as dialer_module
from provider_kairos.mesh.addresses import Endpoint, Networks
from provider_kairos.mesh.dialer import PAUSE_MOST, Dialer
from provider_kairos.mesh.swarm import DialError

ME, SMALLER, LARGER = PeerId("M"), PeerId("A"), PeerId("Z")


class FakeNetwork:
    """Addresses answer after some seconds, refuse, or never answer."""

    def __init__(self, answers):
        self.answers = answers
        self.dials = []
        self.live = {}
        self.dialer: Dialer
        self.start = 0.0

    def preferred(self, peer):
        return self.live.get(peer)

    async def dial(self, endpoint, expected):
        self.dials.append((round(trio.current_time(), 2), str(endpoint)))
        answer = self.answers.get(str(endpoint), "refuse")
        if answer == "silent":
            await trio.sleep(10)
            raise DialError("no answer")
        if answer == "refuse":
            raise DialError("refused")
        delay, peer = answer if isinstance(answer, tuple) else (answer, expected)
        await trio.sleep(delay)
        if expected not in {None, peer}:
            raise DialError("somebody else")
        self.connect(peer)
        return SimpleNamespace(peer=peer)

    def connect(self, peer):
        self.live[peer] = SimpleNamespace(peer=peer)
        self.dialer.connection_changed(peer)

    def disconnect(self, peer):
        del self.live[peer]
        self.dialer.connection_changed(peer)


def play(answers, script, *, bootstrap=(), blocked=("10.1.0.0/24",)):
    """Run ``script(network, dialer)`` in virtual time and return the network."""
    network = FakeNetwork(answers)

    async def main():
        dialer = network.dialer = Dialer(ME, network, Networks(blocked), random.Random(1), bootstrap=bootstrap)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dialer.run)
            await trio.testing.wait_all_tasks_blocked()
            network.start = trio.current_time()
            await script(network, dialer)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
    return network


def at(number):
    return f"/ip4/192.0.2.{number}/tcp/4001"


def test_a_dead_address_holds_up_the_good_one_only_for_a_moment():
    async def script(network, dialer):
        dialer.found(LARGER, [at(1), at(2)])
        await trio.sleep(1)
        assert network.preferred(LARGER)

    network = play({at(1): "silent", at(2): 0.01}, script)
    assert [address for _, address in network.dials] == [at(1), at(2)]
    assert network.dials[1][0] - network.dials[0][0] <= 0.2


def test_a_refusal_moves_on_at_once():
    async def script(_network, dialer):
        dialer.found(LARGER, [at(1), at(2), at(3)])
        await trio.sleep(1)

    network = play({at(3): 0.01}, script)
    assert network.dials[0][0] == network.dials[2][0]


def test_pauses_grow_to_a_ceiling_and_a_fresh_find_ends_them():
    async def script(network, dialer):
        dialer.found(LARGER, [at(1)])
        await trio.sleep(3600)
        network.dials.clear()
        asked_at = trio.current_time()
        network.answers[at(9)] = 0.01
        dialer.found(LARGER, [at(9)])
        await trio.sleep(1)
        assert network.preferred(LARGER)
        assert network.dials[0] == (network.dials[0][0], at(9))
        assert network.dials[0][0] - asked_at < 0.2

    times = []

    async def watch(network, dialer):
        await script(network, dialer)
        times.extend(network.dials)

    play({}, watch)

    async def pauses(network, dialer):
        dialer.found(LARGER, [at(1)])
        await trio.sleep(600)
        times[:] = [when for when, _ in network.dials]

    play({}, pauses)
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[0] < 0.5
    assert max(gaps) <= PAUSE_MOST * 1.3
    assert gaps[-1] >= PAUSE_MOST * 0.7


def test_a_lost_peer_is_dialled_again_at_what_it_told_us():
    async def script(network, dialer):
        dialer.found(LARGER, [at(1)])
        await trio.sleep(60)
        network.disconnect(LARGER)
        await trio.sleep(0.3)
        assert network.preferred(LARGER)

    assert len(play({at(1): 0.01}, script).dials) == 2


def test_the_smaller_peer_id_dials_and_the_larger_one_waits_a_moment():
    async def they_come(network, dialer):
        dialer.found(SMALLER, [at(1)])
        await trio.sleep(0.03)
        network.connect(SMALLER)
        await trio.sleep(5)

    assert play({at(1): 0.01}, they_come).dials == []

    async def they_do_not(network, dialer):
        dialer.found(SMALLER, [at(1)])
        await trio.sleep(0.2)
        assert network.preferred(SMALLER)

    assert len(play({at(1): 0.01}, they_do_not).dials) == 1

    async def they_come_while_we_dial(network, dialer):
        dialer.found(SMALLER, [at(1), at(2), at(3)])
        await trio.sleep(0.1)
        network.connect(SMALLER)
        await trio.sleep(5)

    assert len(play({at(1): "silent", at(2): "silent"}, they_come_while_we_dial).dials) == 1


def test_the_vpn_and_nonsense_are_never_dialled():
    async def script(_network, dialer):
        dialer.found(LARGER, ["/ip4/10.1.0.7/tcp/1", "/ip4/1.2.3.4/udp/1/quic-v1", "/ip4/0.0.0.0/tcp/5", "junk"])
        await trio.sleep(60)

    assert play({}, script).dials == []


def test_loopback_is_tried_last():
    async def script(_network, dialer):
        dialer.found(LARGER, ["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1", "/ip6/2001:db8::1/tcp/1", at(1)])
        await trio.sleep(0.1)

    network = play({}, script)
    assert [address for _, address in network.dials[:2]] == [at(1), "/ip6/2001:db8::1/tcp/1"]


def test_a_bootstrap_address_without_a_peer_id_serves_whoever_is_there():
    async def script(network, dialer):
        await trio.sleep(1)
        assert network.preferred(LARGER)
        network.disconnect(LARGER)
        await trio.sleep(1)
        assert network.preferred(LARGER)
        # the box at that address gets a new identity
        network.answers[at(1)] = (0.01, PeerId("Y"))
        network.disconnect(LARGER)
        network.live.pop(LARGER, None)
        await trio.sleep(120)
        assert network.preferred(PeerId("Y"))

    play({at(1): (0.01, LARGER)}, script, bootstrap=[at(1), "not an address"])


def test_known_peers_are_bounded_and_the_unreachable_forgotten_in_time(monkeypatch):
    monkeypatch.setattr(dialer_module, "MAX_KNOWN", 10)

    async def script(_network, dialer):
        for number in range(30):
            dialer.found(f"P{number}", [at(1)])
        assert sorted(dialer.known) == sorted(f"P{number}" for number in range(20, 30))
        await trio.sleep(2 * 3600)
        assert dialer.known == {}

    play({}, script)


def test_waiting_for_an_unknown_peer_says_so_at_once():
    async def script(_network, dialer):
        assert not await dialer.wait_connected(PeerId("nobody"))
        dialer.found(LARGER, [at(1)])
        assert await dialer.wait_connected(LARGER)

    play({at(1): 0.5}, script)


def endpoints(*numbers):
    return [Endpoint("ip4", f"192.0.2.{number}", 4001) for number in numbers]


def test_a_lead_that_nobody_answers_is_forgotten_soon():
    async def script(_network, dialer):
        for number in range(100):  # stale records of a DHT
            dialer.lead(PeerId(f"P{number}"), endpoints(1, 2, 3))
        dialer.lead(LARGER, endpoints(9))
        await trio.sleep(1)
        assert dialer.known[LARGER].source == "dht"
        await trio.sleep(120)
        assert list(dialer.known) == [LARGER]

    network = play({at(1): "silent", at(2): "silent", at(9): 0.01}, script)
    assert len(network.dials) < 100 * 3 * dialer_module.LEAD_ROUNDS + 10


def test_leads_hold_up_nobody_who_is_found_otherwise():
    async def script(network, dialer):
        for number in range(500):
            dialer.lead(PeerId(f"P{number}"), endpoints(1, 2, 3))
        dialer.found(LARGER, [at(9)])
        await trio.sleep(1)
        assert network.preferred(LARGER)

    play({at(1): "silent", at(2): "silent", at(3): "silent", at(9): 0.01}, script)


def test_a_lead_that_proves_to_be_ours_is_dialled_for_as_long_as_any_other():
    async def script(network, dialer):
        dialer.lead(LARGER, endpoints(1))
        await trio.sleep(30)
        dialer.learn(LARGER, endpoints(1), member=False)
        assert dialer.known[LARGER].rounds is not None
        dialer.learn(LARGER, endpoints(1))
        network.answers.clear()
        network.disconnect(LARGER)
        await trio.sleep(600)
        assert LARGER in dialer.known
        # neither does a fresh lead make less of it
        dialer.lead(LARGER, endpoints(2))
        await trio.sleep(600)
        assert LARGER in dialer.known

    play({at(1): 0.01}, script)


def test_a_lead_whose_connection_is_lost_gets_another_chance():
    async def script(network, dialer):
        dialer.lead(LARGER, endpoints(1))
        await trio.sleep(30)
        network.disconnect(LARGER)
        await trio.sleep(5)
        assert network.preferred(LARGER)
        network.answers.clear()
        network.disconnect(LARGER)
        await trio.sleep(60)
        assert LARGER not in dialer.known

    play({at(1): 0.01}, script)


def test_who_told_of_a_peer_is_remembered():
    async def script(_network, dialer):
        dialer.found("P1", [at(2)], "mdns")
        dialer.lead(PeerId("P1"), endpoints(2))
        dialer.keep(PeerId("P2"), endpoints(2))
        dialer.learn(PeerId("P3"), endpoints(2))
        assert [dialer.known[PeerId(f"P{n}")].source for n in (1, 2, 3)] == ["mdns", "bootstrap", "inbound"]
        assert dialer.known[PeerId("P1")].rounds is None
        await trio.sleep(2 * 3600)
        assert list(dialer.known) == ["P2"]

    play({}, script)
