from __future__ import annotations

import random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from provider_kairos.clock import Now
from provider_kairos.daemon.ledger_service import LedgerService
from provider_kairos.daemon.packet_pump import PacketPump
from provider_kairos.daemon.settings import DaemonSettings
from provider_kairos.daemon.testing import FakeMesh, FakeStream, FakeTun, ipv4
from provider_kairos.errors import HostError
from provider_kairos.ledger.block import Block, pack
from provider_kairos.ledger.engine import Ledger
from provider_kairos.ledger.liveness import heartbeat_text
from provider_kairos.ledger.model import LedgerSettings
from provider_kairos.ledger.signing import Signer
from provider_kairos.token.codec import generate
from provider_kairos.vpn.packets import parse
from provider_kairos.vpn.records import machine_record
from provider_kairos.vpn.session import EDGEVPN_PROTOCOL, PACKETS_PROTOCOL
from provider_kairos.vpn.streams import FrameDecoder, FrameError, encode

US, ONE, TWO = (Signer(bytes([number]) * 32) for number in (1, 2, 3))
START = 1_800_000_000


class TrioClock:
    def now(self):
        return Now(round((START + trio.current_time()) * 1e9), trio.current_time())


class Inbound:
    """A peer's stream of frames as the mesh hands it over."""

    def __init__(self):
        self.take: Any = None

    async def feed(self, take):
        self.take = take
        await trio.sleep_forever()


class Rig:
    """We are 10.1.0.1; peers ONE and TWO are 10.1.0.2 and 10.1.0.3 and speak our protocol."""

    def __init__(self):
        self.clock = TrioClock()
        self.mesh = FakeMesh(US.peer_id)
        mesh: Any = self.mesh
        self.service = LedgerService(
            Ledger(LedgerSettings(), US, rng=random.Random(1)), self.clock, lambda _rows: None, self._publish
        )
        self.pump = PacketPump(DaemonSettings(generate()), self.service, mesh, self.clock)
        self.tun: Any = FakeTun()
        self.streams = {signer: FakeStream() for signer in (ONE, TWO)}
        for signer, stream in self.streams.items():
            self.mesh.paths[signer.peer_id, PACKETS_PROTOCOL] = stream
        self.service.announce("machines", "10.1.0.1", machine_record(US.peer_id, "us", "x", "10.1.0.1", "v1"))
        self.joins(ONE, "10.1.0.2")
        self.joins(TWO, "10.1.0.3")

    async def _publish(self, data):
        await trio.lowlevel.checkpoint()

    def joins(self, signer, address):
        now = self.clock.now()
        beat = signer.sign("healthcheck", signer.peer_id, heartbeat_text(now.unix), now.unix_ns, now.unix)
        text = machine_record(signer.peer_id, "peer", "x", address, "v1")
        machine = signer.sign("machines", address, text, now.unix_ns, now.unix)
        storage = {"healthcheck": {signer.peer_id: beat}, "machines": {address: machine}}
        self.service.receive(pack(Block(1, "", storage, "f" * 64, "")), signer.peer_id, signer.peer_id)

    def sent_to(self, signer):
        return FrameDecoder().feed(b"".join(self.streams[signer].written))


def drive(scenario):
    async def main():
        rig = Rig()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.pump.run, rig.tun)
            await wait_all_tasks_blocked()
            await scenario(rig)
            nursery.cancel_scope.cancel()
        assert rig.mesh.handlers == {}

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_packets_go_to_whom_the_ledger_names():
    async def scenario(rig):
        one, two = ipv4("10.1.0.1", "10.1.0.2", b"1"), ipv4("10.1.0.1", "10.1.0.3", b"2")
        rig.tun.arrives(one, two, one)
        await wait_all_tasks_blocked()
        assert rig.sent_to(ONE) == [one, one]
        assert rig.sent_to(TWO) == [two]
        assert rig.pump.counters["packets_out_sent"] == 3

    drive(scenario)


def test_nobody_there_is_an_icmp_answer_and_a_flood_of_them_is_bounded():
    async def scenario(rig):
        rig.tun.arrives(*(ipv4("10.1.0.1", "10.1.0.99") for _ in range(1000)))
        await wait_all_tasks_blocked()
        assert 1 <= len(rig.tun.written) <= 20
        header = parse(rig.tun.written[0])
        assert header is not None
        # the kernel drops what arrives from one of its own addresses
        assert (header.source, header.destination) == (bytes([10, 1, 0, 99]), bytes([10, 1, 0, 1]))
        assert rig.tun.written[0][20:22] == b"\x03\x01"  # host unreachable
        assert rig.pump.counters["packets_no_route"] == 1000

    drive(scenario)


def test_a_dead_peer_with_a_route_is_an_icmp_answer_and_costs_the_others_nothing():
    async def scenario(rig):
        rig.mesh.unreachable(ONE.peer_id, PACKETS_PROTOCOL, EDGEVPN_PROTOCOL)
        rig.tun.arrives(ipv4("10.1.0.1", "10.1.0.2"), ipv4("10.1.0.1", "10.1.0.3"))
        await trio.sleep(2)
        assert len(rig.sent_to(TWO)) == 1
        assert rig.tun.written[0][20:22] == b"\x03\x01"

    drive(scenario)


def test_a_slow_peer_delays_nobody_and_its_queue_is_bounded():
    async def scenario(rig):
        rig.streams[ONE].room, rig.streams[ONE].hold = 0, trio.Event()
        for _ in range(400):
            rig.tun.arrives(*(ipv4("10.1.0.1", "10.1.0.2", bytes(20)) for _ in range(250)))
            await wait_all_tasks_blocked()
        last = ipv4("10.1.0.1", "10.1.0.3")
        rig.tun.arrives(last)
        await wait_all_tasks_blocked()
        assert rig.sent_to(TWO) == [last]
        assert sum(len(sender._queue) for sender in rig.pump._senders.values()) <= 512
        assert rig.pump.counters["packets_out_queue_full"] > 99_000

    drive(scenario)


def test_what_the_kernel_says_to_groups_and_in_ipv6_stays_here():
    async def scenario(rig):
        router_solicitation = (
            bytes([0x60, 0, 0, 0, 0, 8, 58, 255]) + b"\xfe\x80" + bytes(14) + b"\xff\x02" + bytes(14) + bytes(8)
        )
        rig.tun.arrives(
            router_solicitation, ipv4("10.1.0.1", "224.0.0.251"), b"\x45", b"", ipv4("10.1.0.7", "10.1.0.2")
        )
        await wait_all_tasks_blocked()
        assert not rig.sent_to(ONE)
        assert not rig.sent_to(TWO)
        assert rig.pump.counters["packets_out_spoofed"] == 1

    drive(scenario)


def test_inbound_packets_reach_the_device_and_spoofed_ones_do_not():
    async def scenario(rig):
        async with trio.open_nursery() as nursery:
            stream = Inbound()
            nursery.start_soon(rig.mesh.handlers[PACKETS_PROTOCOL], ONE.peer_id, stream)
            await wait_all_tasks_blocked()
            good, spoofed, ours = (
                ipv4("10.1.0.2", "10.1.0.1"),
                ipv4("10.1.0.3", "10.1.0.1"),
                ipv4("10.1.0.1", "10.1.0.1"),
            )
            stream.take(encode([good, spoofed, ours, good]))
            assert rig.tun.written == [good, good]
            rig.mesh.handlers[EDGEVPN_PROTOCOL](TWO.peer_id, ipv4("10.1.0.3", "10.1.0.1"))
            rig.mesh.handlers[EDGEVPN_PROTOCOL](TWO.peer_id, good)
            rig.mesh.handlers[EDGEVPN_PROTOCOL](TWO.peer_id, b"\xff" * 30)
            assert len(rig.tun.written) == 3
            counters = rig.pump.counters
            assert counters["packets_in_spoofed"] == 3
            assert counters["packets_in_malformed"] == 1
            with pytest.raises(FrameError):
                stream.take(b"\x00\xff\xff\xff")
            nursery.cancel_scope.cancel()

    drive(scenario)


def test_streams_of_peers_outlive_a_device_that_is_made_anew():
    async def main():
        rig = Rig()
        stream = Inbound()
        packet = ipv4("10.1.0.2", "10.1.0.1")
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(rig.pump.run, rig.tun)
                await wait_all_tasks_blocked()
                outer.start_soon(rig.mesh.handlers[PACKETS_PROTOCOL], ONE.peer_id, stream)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            rig.tun.close()
            stream.take(encode([packet]))
            assert rig.pump.counters["packets_in_no_device"] == 1
            new: Any = FakeTun()
            outer.start_soon(rig.pump.run, new)
            await wait_all_tasks_blocked()
            stream.take(encode([packet]))
            assert new.written == [packet]
            outer.cancel_scope.cancel()

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_device_that_is_gone_ends_the_pump_with_what_the_machine_said():
    async def main():
        rig = Rig()
        rig.tun.delete()
        with pytest.raises(ExceptionGroup) as caught:
            await rig.pump.run(rig.tun)
        assert caught.group_contains(HostError, match="gone")

    trio.run(main, clock=MockClock(autojump_threshold=0))


def test_a_peer_whose_heartbeat_grew_old_has_no_route():
    async def scenario(rig):
        await trio.sleep(500)
        rig.tun.arrives(ipv4("10.1.0.1", "10.1.0.2"))
        await wait_all_tasks_blocked()
        assert rig.pump.counters["packets_no_route"] == 1

    drive(scenario)


def test_a_peer_that_is_in_the_room_has_a_route_before_its_heartbeat_is_heard():
    """After a restart no heartbeat is known; EdgeVPN repeats its own only when it next shows its block."""

    async def scenario(rig):
        await trio.sleep(500)
        rig.mesh.room.add(ONE.peer_id)
        rig.pump.room_changed()
        await wait_all_tasks_blocked()
        packet = ipv4("10.1.0.1", "10.1.0.2")
        rig.tun.arrives(packet)
        await wait_all_tasks_blocked()
        assert rig.sent_to(ONE) == [packet]

    drive(scenario)
