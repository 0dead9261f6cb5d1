"""The discovery over a DHT in virtual time: its way in, its rounds, what it does with what it finds, what it says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import trio
import trio.testing

from provider_kairos.clock import Now
from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import multiaddr
from provider_kairos.mesh.addresses import Endpoint
from provider_kairos.mesh.bootstrap import Bootstrap
from provider_kairos.mesh.dht import LEAD_MOST, RETRY_MOST, Dht
from provider_kairos.mesh.kad import Meeting
from provider_kairos.mesh.kad_wire import KadMessage, KadPeer, Kind
from provider_kairos.mesh.multistream import NegotiationError
from provider_kairos.mesh.rendezvous import Rendezvous
from provider_kairos.token.codec import generate

ME = PeerId("12D3KooWAKuk1EwYpBe6QNjqdbHotCBd2yaWAg6UVN7pJQv4fqXf")
BOOT = PeerId("QmNnooDu7bfjPFoTZYxMNLWUQJyrVwtbZg5gBMjTezGAJN")
TOO = PeerId("QmQCU2EcMqAqQPR2i9bChDtGNJchTbq5TbXJJ16u19uLTa")
FRIEND = PeerId("QmbLHAnMoJPWSCR5Zhtx6BHJX9KiKNN6tpvbUcqanj75Nb")
ADDRESS = multiaddr.encode("/ip4/192.0.2.1/tcp/4001")


class TrioClock:
    """Wall time that follows the virtual one."""

    def now(self):
        seconds = trio.current_time()
        return Now(round((1_700_000_000 + seconds) * 1e9), seconds)


class FakeLinks:
    def usable(self, endpoints):
        return tuple(each for each in endpoints if each.host != "10.1.0.7")


class FakeKad:
    """A DHT whose nodes answer when they are in ``alive``; ``providers`` are found at every rendezvous."""

    def __init__(self):
        self.me = ME
        self.on_first_contact = lambda: None
        self.server = False
        self.alive: set[PeerId] = set()
        self.up: set[PeerId] = set()
        self.table: dict[PeerId, float] = {}
        self.links = FakeLinks()
        self.providers: list[KadPeer] = []
        self.counters: Counter[str] = Counter()
        self.asked: list[tuple[float, PeerId]] = []
        self.met: list[tuple[float, bytes, bool]] = []
        self.hangs: set[int] = set()

    async def run(self, task_status=trio.TASK_STATUS_IGNORED):
        task_status.started()
        await trio.sleep_forever()

    async def ask(self, peer, _endpoints, message, *, trusted=False):
        assert trusted
        assert message.kind is Kind.FIND_NODE
        self.asked.append((trio.current_time(), peer))
        if peer in self.up:
            raise NegotiationError("serves none")
        if peer not in self.alive:
            await trio.sleep(8)
            raise PeerError("silent")
        first = not self.table
        self.table[peer] = trio.current_time()
        if first:
            self.on_first_contact()
        return KadMessage(Kind.FIND_NODE)

    async def look_around(self):
        await trio.lowlevel.checkpoint()

    async def meet(self, key, *, provide, found):
        self.met.append((trio.current_time(), key, provide))
        if len(self.met) in self.hangs:
            await trio.sleep_forever()
        await trio.sleep(0.1)
        for each in self.providers:
            found(each)
        return Meeting(answered=len(self.table), told=len(self.table) if provide else 0)


class Rig:
    def __init__(self, *peers, epoch=9000, interval=720.0):
        kad: Any = FakeKad()
        self.kad = kad
        self.room: set[PeerId] = set()
        self.busy: set[PeerId] = set()
        self.leads: list[tuple[float, PeerId, tuple[Endpoint, ...]]] = []
        self.addresses = ["/ip4/192.0.2.5/tcp/4001"]
        rng = random.Random(1)
        self.dht = Dht(
            kad,
            Bootstrap(f"/ip4/192.0.2.{number}/tcp/4001/p2p/{peer}" for number, peer in enumerate(peers, 1)),
            Rendezvous(generate(interval=epoch), interval, rng),
            TrioClock(),
            rng,
            lead=lambda peer, found: self.leads.append((trio.current_time(), peer, tuple(found))),
            busy=self.busy.__contains__,
            room=lambda: self.room,
            addresses=lambda: self.addresses,
        )

    def play(self, script):
        async def main():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.dht.run)
                await script(self)
                nursery.cancel_scope.cancel()

        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
        return self

    def codes(self):
        return [reason.code for reason in self.dht.waiting()]


def test_with_nobody_in_reach_it_tries_ever_less_often_and_says_so():
    async def script(rig):
        await trio.sleep(9)
        assert rig.codes() == ["dht-no-bootstrap"]
        assert rig.dht.waiting()[0].text() == "no bootstrap peer answers: 2 tried"
        await trio.sleep(3600)
        assert len(rig.kad.asked) / 2 < 30
        assert rig.kad.asked[-1][0] - rig.kad.asked[-3][0] > RETRY_MOST * 0.7
        assert rig.kad.met == []
        # the cable is plugged in
        rig.addresses = ["/ip4/192.0.2.6/tcp/4001"]
        rig.kad.alive.add(BOOT)
        await trio.sleep(30)
        assert rig.kad.met
        assert rig.codes() == ["dht-nobody-found"]

    Rig(BOOT, TOO).play(script)


def test_bootstrap_peers_that_serve_no_dht_are_told_apart():
    async def script(rig):
        rig.kad.up = {BOOT}
        await trio.sleep(9)
        assert rig.dht.waiting()[0].text() == "no bootstrap peer serves the DHT: 2 tried, 1 answer without"

    Rig(BOOT, TOO).play(script)


def test_a_node_that_is_its_own_bootstrap_peer_asks_nobody():
    async def script(rig):
        await trio.sleep(60)
        assert rig.kad.asked == []
        assert rig.dht.waiting()[0].text() == "there is no bootstrap peer to try"

    Rig(ME).play(script)


def test_a_server_may_be_the_first_of_its_dht():
    rig = Rig(ME)
    rig.kad.server = True

    async def script(rig):
        await trio.sleep(60)
        assert rig.kad.met
        assert rig.codes() == []

    rig.play(script)


def test_one_silent_bootstrap_peer_does_not_delay_the_first_round():
    async def script(rig):
        rig.kad.alive = {BOOT}
        await trio.sleep(1)
        assert rig.kad.met[0][0] < 0.5

    Rig(TOO, BOOT).play(script)


def test_a_point_that_hangs_costs_the_others_nothing():
    async def script(rig):
        rig.kad.alive = {BOOT}
        rig.kad.hangs = {1}
        await trio.sleep(5)
        assert len({key for _, key, _ in rig.kad.met}) == 3  # the current epoch, the one before, and one more
        await trio.sleep(120)
        assert len(rig.kad.met) > 3

    Rig(BOOT).play(script)


def test_alone_it_looks_often_and_in_company_within_the_interval():
    async def script(rig):
        rig.kad.alive = {BOOT}
        await trio.sleep(60)
        alone = len(rig.kad.met)
        assert alone >= 5 * 3
        rig.room = {FRIEND}
        rig.dht.wake()
        await trio.sleep(3600)
        assert len(rig.kad.met) - alone <= 8 * 2
        # the last one of the room is gone
        before = len(rig.kad.met)
        rig.room = set()
        rig.dht.wake()
        await trio.sleep(60)
        assert len(rig.kad.met) > before
        # a bootstrap peer is back, without its records
        rig.room = {FRIEND}
        rig.dht.wake()
        await trio.sleep(200)
        before = len(rig.kad.met)
        rig.dht.again()
        await trio.sleep(2)
        assert len(rig.kad.met) > before

    Rig(BOOT).play(script)


def test_who_is_found_is_dialled_and_stale_records_ever_less_often():
    async def script(rig):
        rig.kad.alive = {BOOT}
        rig.kad.providers = [
            KadPeer(FRIEND, (ADDRESS, multiaddr.encode("/ip4/10.1.0.7/tcp/1"))),
            KadPeer(TOO, (multiaddr.encode("/ip4/192.0.2.1/udp/4001/quic-v1"),)),
        ]
        await trio.sleep(1)
        assert [(peer, found) for _, peer, found in rig.leads] == [(FRIEND, (Endpoint("ip4", "192.0.2.1", 4001),))]
        assert rig.dht.counters["dht_peers_without_tcp_address"]
        # it is not waited for the next round: the first try may have been unlucky
        await trio.sleep(160)
        assert len(rig.leads) == 4
        await trio.sleep(8 * 3600)
        times = [when for when, _, _ in rig.leads]
        assert len(times) < 80
        assert times[-1] - times[-2] >= LEAD_MOST
        # it is being dialled, or in our room: no lead
        before = len(times)
        rig.busy = {FRIEND}
        rig.room = {FRIEND}
        await trio.sleep(7200)
        assert len(rig.leads) == before

    Rig(BOOT).play(script)


def test_a_member_that_was_lost_is_dialled_at_once_when_it_is_found_again():
    async def script(rig):
        rig.kad.alive = {BOOT}
        rig.kad.providers = [KadPeer(FRIEND, (ADDRESS,))]
        await trio.sleep(3600)
        rig.room = {FRIEND}
        await trio.sleep(3600)
        rig.room = set()
        before = len(rig.leads)
        rig.dht.wake()
        await trio.sleep(70)
        assert len(rig.leads) > before

    Rig(BOOT).play(script)


def test_leads_that_are_remembered_are_bounded():
    async def script(rig):
        rig.kad.alive = {BOOT}
        rng = random.Random(3)
        peers = [multiaddr.peer_id(b"\x12\x20" + rng.randbytes(32)) for _ in range(2000)]
        rig.kad.providers = [KadPeer(peer, (ADDRESS,)) for peer in peers if peer is not None]
        await trio.sleep(1)
        assert len(rig.dht._leads) == 512

    Rig(BOOT).play(script)
