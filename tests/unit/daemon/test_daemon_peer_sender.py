from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from provider_kairos.clock import Now
from provider_kairos.daemon.peer_sender import IDLE, PeerSender
from provider_kairos.daemon.testing import FakeMesh, FakeStream, ipv4
from provider_kairos.ids import PeerId
from provider_kairos.vpn.session import EDGEVPN_PROTOCOL, PACKETS_PROTOCOL, PathKind
from provider_kairos.vpn.streams import FrameDecoder

PEER = PeerId("peer")
ONE, TWO = ipv4("10.1.0.1", "10.1.0.2", b"one"), ipv4("10.1.0.1", "10.1.0.2", b"two")


class TrioClock:
    def now(self):
        return Now(0, trio.current_time())


class Rig:
    def __init__(self):
        self.mesh = FakeMesh()
        self.lost: list[bytes] = []
        self.sender = PeerSender(PEER, self.mesh, TrioClock(), self.lost.extend)

    def send(self, *packets):
        for packet in packets:
            self.sender.put(packet, trio.current_time())
        self.sender.flush(trio.current_time())

    def serves(self, protocol, stream=None):
        stream = stream or FakeStream()
        self.mesh.paths[PEER, protocol] = stream
        return stream


def drive(scenario):
    async def main():
        rig = Rig()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.sender.run)
            await scenario(rig)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def packets_of(stream):
    return FrameDecoder().feed(b"".join(stream.written))


def test_packets_that_came_before_the_stream_go_first():
    async def scenario(rig):
        stream = rig.serves(PACKETS_PROTOCOL)
        rig.send(ONE, TWO)
        await wait_all_tasks_blocked()
        assert packets_of(stream) == [ONE, TWO]
        rig.send(ONE)  # from here on without waking anybody
        assert packets_of(stream) == [ONE, TWO, ONE]
        assert rig.sender.counters["out-sent"] == 3
        assert rig.sender.path is PathKind.STREAM

    drive(scenario)


def test_a_peer_that_does_not_speak_ours_gets_edgevpns_one_packet_per_frame():
    async def scenario(rig):
        stream = rig.serves(EDGEVPN_PROTOCOL)
        rig.send(ONE, TWO)
        await wait_all_tasks_blocked()
        rig.send(TWO, ONE)
        assert stream.written == [ONE, TWO, TWO, ONE]
        assert [protocol for _, protocol in rig.mesh.opened] == [PACKETS_PROTOCOL, EDGEVPN_PROTOCOL]

    drive(scenario)


def test_a_packet_too_large_for_a_go_peer_is_dropped_and_nothing_breaks():
    async def scenario(rig):
        stream = rig.serves(EDGEVPN_PROTOCOL)
        rig.send(ipv4("10.1.0.1", "10.1.0.2", bytes(65_515)), ONE)
        await wait_all_tasks_blocked()
        stream.room = 65_524
        rig.send(ipv4("10.1.0.1", "10.1.0.2", bytes(65_515)), TWO)
        await wait_all_tasks_blocked()
        assert stream.written == [ONE, TWO]
        assert rig.sender.counters["out-too-large"] == 2

    drive(scenario)


def test_order_is_kept_while_a_write_waits():
    async def scenario(rig):
        stream = rig.serves(PACKETS_PROTOCOL, FakeStream(room=0))
        stream.hold = trio.Event()
        rig.send(ONE)
        await wait_all_tasks_blocked()
        hold, stream.hold, stream.room = stream.hold, None, 1 << 20
        rig.send(TWO)  # there is room now, but ONE is still being written
        hold.set()
        await wait_all_tasks_blocked()
        assert packets_of(stream) == [ONE, TWO]

    drive(scenario)


def test_what_a_broken_stream_did_not_take_goes_by_the_next_one():
    async def scenario(rig):
        old = rig.serves(PACKETS_PROTOCOL)
        rig.send(ONE)
        await wait_all_tasks_blocked()
        old.ended = True
        new = rig.serves(PACKETS_PROTOCOL)
        rig.send(TWO)
        await trio.sleep(1)
        assert packets_of(new) == [TWO]

    drive(scenario)


def test_a_peer_that_takes_nothing_costs_a_bounded_queue():
    async def scenario(rig):
        stream = rig.serves(PACKETS_PROTOCOL, FakeStream(room=0))
        stream.hold = trio.Event()
        rig.send(ONE)
        await wait_all_tasks_blocked()
        for _ in range(100_000):
            rig.sender.put(ONE, trio.current_time())
        assert len(rig.sender._queue) <= 512
        assert rig.sender.counters["out-queue-full"] == 100_000 - 512

    drive(scenario)


def test_packets_for_a_peer_that_cannot_be_reached_are_handed_back():
    async def scenario(rig):
        rig.mesh.unreachable(PEER, PACKETS_PROTOCOL, EDGEVPN_PROTOCOL)
        rig.send(ONE)
        await trio.sleep(2)
        assert rig.lost == [ONE]
        rig.send(TWO)
        await trio.sleep(2)
        assert rig.lost == [ONE, TWO]

    drive(scenario)


def test_opening_that_never_ends_is_given_up_and_the_packets_handed_back():
    async def scenario(rig):
        rig.mesh.stuck = True
        rig.send(ONE)
        await trio.sleep(5)
        assert rig.lost == [ONE]

    drive(scenario)


def test_a_peer_that_is_back_is_not_left_waiting():
    async def scenario(rig):
        rig.mesh.unreachable(PEER, PACKETS_PROTOCOL, EDGEVPN_PROTOCOL)
        for _ in range(60):
            rig.send(ONE)
            await trio.sleep(2)
        stream = rig.serves(PACKETS_PROTOCOL)
        rig.sender.connected()
        rig.send(TWO)
        await trio.sleep(0.2)
        assert packets_of(stream) == [TWO]

    drive(scenario)


def test_a_peer_that_refuses_both_is_asked_again_for_it_may_get_its_address_any_moment():
    async def scenario(rig):
        rig.send(ONE)
        await trio.sleep(0.5)
        stream = rig.serves(PACKETS_PROTOCOL)
        await trio.sleep(1.5)
        assert packets_of(stream) == [ONE]

    drive(scenario)


def test_after_long_idleness_it_ends_but_not_while_flush_keeps_the_stream_busy():
    async def main():
        rig = Rig()
        stream = rig.serves(PACKETS_PROTOCOL)
        ended = trio.Event()

        async def run():
            await rig.sender.run()
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            rig.send(ONE)
            for _ in range(4):
                await trio.sleep(IDLE * 0.7)
                rig.send(TWO)
            assert not ended.is_set()
            await trio.sleep(2 * IDLE + 1)
            assert ended.is_set()
            assert stream.closed

    trio.run(main, clock=MockClock(autojump_threshold=0))
