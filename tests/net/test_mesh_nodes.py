"""Whole meshes on loopback: rotations, hard kills, silent links, a broken host, streams and packets between nodes."""

from __future__ import annotations

import itertools
import random
import socket
import sys
from collections import defaultdict
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio

from provider_kairos.clock import SystemClock
from provider_kairos.errors import PeerError, UnreachableError
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.views import ClockSkew, EpochChanged, HostDown, NobodyOnTopic, NoPeers
from provider_kairos.token.codec import encode, generate

PATIENCE = 60  # seconds after which a test gives up; nothing is measured


class Node:
    """A mesh whose messages and events are collected."""

    def __init__(self, name, token, *bootstrap, clock=None, **options):
        self.mesh = Mesh(
            MeshSettings(
                seed=name.encode() * 32,
                token=token,
                listen=("/ip4/127.0.0.1/tcp/0",),
                bootstrap_peers=bootstrap,
                mdns=False,
                **options,
            ),
            clock or SystemClock(),
            random.Random(name),
        )
        self.got: dict[bytes, int] = defaultdict(int)
        self.events: list[object] = []
        self.changed = trio.Event()

    @property
    def host(self) -> Any:
        """The inside of the mesh as it is now."""
        return self.mesh._host

    @property
    def address(self):
        return f"{self.mesh.addresses()[0]}/p2p/{self.mesh.peer_id}"

    async def run(self, task_status):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.mesh.run)
            nursery.start_soon(self._messages)
            nursery.start_soon(self._events)
            task_status.started()

    async def _messages(self):
        async for message in self.mesh.messages:
            self.got[message.data] += 1
            self._wake()

    async def _events(self):
        async for event in self.mesh.events:
            self.events.append(event)
            self._wake()

    def _wake(self):
        self.changed.set()
        self.changed = trio.Event()

    async def until(self, true):
        """Wait until ``true()``; looked at whenever something happened here."""
        with trio.fail_after(PATIENCE):
            while not true():
                with trio.move_on_after(0.2):
                    await self.changed.wait()

    async def sees(self, *others):
        await self.until(lambda: {other.mesh.peer_id for other in others} <= self.mesh.on_chain())


@asynccontextmanager
async def nodes(*made):
    async with trio.open_nursery() as nursery:
        for node in made:
            await nursery.start(node.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def chain(names, token, nursery, **options):
    """Nodes that each know only the one before."""
    made: list[Node] = []
    for name in names:
        node = Node(name, token, *[each.address for each in made[-1:]], **options)
        await nursery.start(node.run)
        made.append(node)
    return made


def test_every_message_arrives_exactly_once_through_ten_rotations():
    async def main():
        token = generate(interval=2)
        async with trio.open_nursery() as nursery:
            a, b = await chain("ab", token, nursery, overlap=1.0, lead=0.5)
            await a.sees(b)
            await b.sees(a)
            sent: dict[Node, set[bytes]] = {a: set(), b: set()}

            def rotations(node):
                return sum(isinstance(event, EpochChanged) for event in node.events)

            number = 0
            while min(rotations(a), rotations(b)) < 11:  # the first is the start
                for sender, receiver in ((a, b), (b, a)):
                    number += 1
                    data = b"message %d" % number
                    sent[receiver].add(data)
                    await sender.mesh.publish(data)
                await trio.sleep(0.01)
            for node in (a, b):
                await node.until(lambda node=node: sent[node] <= node.got.keys())
                assert set(node.got.values()) == {1}
                assert node.mesh.waiting() == []
                assert node.mesh.counters.get("unopened_message", 0) == 0
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_messages_are_forwarded_to_those_that_are_not_neighbours():
    async def main():
        async with trio.open_nursery() as nursery:
            made = await chain("abcde", generate(), nursery)
            for before, after in itertools.pairwise(made):
                await after.sees(before)
                await before.sees(after)
            await made[0].mesh.publish(b"from one end")
            await made[-1].until(lambda: made[-1].got[b"from one end"])
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_node_with_another_token_learns_nothing_and_says_so():
    async def main():
        one = Node("a", generate())
        async with nodes(one) as nursery:
            other = Node("b", generate(), one.address)
            await nursery.start(other.run)
            await other.until(lambda: any(view.connected for view in other.mesh.peers()))
            assert one.mesh.on_chain() == set()
            assert [type(reason) for reason in other.mesh.waiting()] == [NobodyOnTopic]
            await one.mesh.publish(b"secret")
            assert one.mesh.counters["published_to_nobody"] == 1

    trio.run(main)


def test_a_wrong_clock_is_named():
    class LateClock(SystemClock):
        def now(self):
            return super().now().plus(-600)

    async def main():
        token = generate(interval=30)
        right = Node("a", token)
        async with nodes(right) as nursery:
            wrong = Node("b", token, right.address, clock=LateClock())
            await nursery.start(wrong.run)
            await right.until(lambda: [type(each) for each in right.mesh.waiting()][:1] == [ClockSkew])
            (skew, *_) = right.mesh.waiting()
            assert isinstance(skew, ClockSkew)
            # in the last seconds of an epoch a node is in the next room already
            assert skew.seconds in {600, 570}
            assert skew.peer == wrong.mesh.peer_id

    trio.run(main)


_CHILD = """
import random, sys, trio
from provider_kairos.clock import SystemClock
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.token.codec import decode
token, address = sys.argv[1:]
async def main():
    settings = MeshSettings(seed=b"c" * 32, token=decode(token), listen=("/ip4/127.0.0.1/tcp/0",),
                            bootstrap_peers=(address,), mdns=False)
    mesh = Mesh(settings, SystemClock(), random.Random(1))
    async with trio.open_nursery() as nursery:
        await nursery.start(mesh.run)
        async for message in mesh.messages:
            await mesh.publish(b"echo " + message.data)
trio.run(main)
"""


def test_a_peer_that_is_killed_hard_comes_back():
    async def main():
        token = generate()
        survivor = Node("a", token)
        async with nodes(survivor):
            for life in range(3):
                child = await trio.lowlevel.open_process(
                    [sys.executable, "-c", _CHILD, encode(token), survivor.address]
                )
                try:
                    await survivor.until(survivor.mesh.on_chain)
                    await survivor.mesh.publish(b"life %d" % life)
                    await survivor.until(lambda life=life: survivor.got[b"echo life %d" % life])
                finally:
                    child.kill()
                    with trio.CancelScope(shield=True):
                        await child.wait()
                await survivor.until(lambda: not survivor.mesh.on_chain())
            assert survivor.mesh.counters.get("host_restarts", 0) == 0

    trio.run(main)


class Line:
    """A TCP line between two nodes that can fall silent without closing anything, as a pulled cable does."""

    def __init__(self, port):
        self._port = port
        self.up = True

    async def run(self, task_status):
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.address = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}"
        await trio.serve_listeners(self._serve, listeners, task_status=task_status)

    async def _serve(self, near):
        if not self.up:
            await trio.sleep_forever()
        far = await trio.open_tcp_stream("127.0.0.1", self._port)
        async with near, far, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, near, far)
            nursery.start_soon(self._pump, far, near)

    async def _pump(self, source, target):
        try:
            async for data in source:
                if not self.up:
                    await trio.sleep_forever()
                await target.send_all(data)
            await target.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return


def test_a_link_that_falls_silent_is_given_up_and_found_again(monkeypatch):
    from provider_kairos.mesh import dialer, muxer, swarm

    monkeypatch.setattr(muxer, "PING_AFTER", 0.3)
    monkeypatch.setattr(muxer, "PING_TIMEOUT", 0.6)
    monkeypatch.setattr(muxer.Muxer.ping, "__defaults__", (0.6,))
    monkeypatch.setattr(swarm, "UPGRADE_TIMEOUT", 1.0)
    monkeypatch.setattr(dialer, "PAUSE_MOST", 0.5)

    async def main():
        token = generate()
        a = Node("a", token)
        async with nodes(a) as nursery:
            line = Line(int(a.mesh.addresses()[0].rpartition("/")[2]))
            await nursery.start(line.run)
            # b knows the line only; a's own address is in a network that b never dials
            b = Node("b", token, f"{line.address}/p2p/{a.mesh.peer_id}")
            await nursery.start(b.run)
            await a.sees(b)
            host = b.host
            host.dialer.learn = lambda *_args: None
            known = host.dialer.known[a.mesh.peer_id]
            for endpoint in [each for each in known.endpoints if str(each) != line.address]:
                del known.endpoints[endpoint]
            a.host.dialer.known.clear()

            line.up = False
            await a.until(lambda: not any(view.connected for view in a.mesh.peers()))
            await b.until(lambda: not any(view.connected for view in b.mesh.peers()))
            assert isinstance(b.mesh.waiting()[0], NoPeers)
            line.up = True
            await a.sees(b)
            await b.sees(a)
            await a.mesh.publish(b"healed")
            await b.until(lambda: b.got[b"healed"])

    trio.run(main)


def test_a_broken_host_is_replaced_and_everything_goes_on():
    async def main():
        token = generate()
        a = Node("a", token)
        async with nodes(a) as nursery:
            b = Node("b", token, a.address)
            await nursery.start(b.run)
            await a.sees(b)
            before = a.host
            address = a.address

            async def bug():
                raise ZeroDivisionError("a bug somewhere in the host")

            before._nursery.start_soon(bug)
            await a.until(lambda: a.host is None)
            (reason,) = a.mesh.waiting()
            assert isinstance(reason, HostDown)
            assert "ZeroDivisionError" in reason.text()
            await a.mesh.publish(b"dropped while down")
            await a.until(lambda: a.host not in {None, before})
            assert a.address == address
            await a.sees(b)
            await b.sees(a)
            await a.mesh.publish(b"here again")
            await b.until(lambda: b.got[b"here again"])
            assert a.mesh.counters["host_restarts"] == 1
            assert a.mesh.counters["published_while_down"] == 1

    trio.run(main)


def test_both_sides_dial_at_once_and_one_connection_remains(monkeypatch):
    from provider_kairos.mesh import dialer, swarm

    monkeypatch.setattr(swarm, "DUPLICATE_GRACE", 0.2)
    monkeypatch.setattr(dialer, "COURTESY", 0.0)

    async def main():
        token = generate()
        a, b = Node("a", token), Node("b", token)
        async with nodes(a, b):
            for _ in range(5):
                a.mesh.add_peer(b.mesh.peer_id, b.mesh.addresses())
                b.mesh.add_peer(a.mesh.peer_id, a.mesh.addresses())
                await a.sees(b)
                await b.sees(a)
                await a.mesh.publish(b"a")
                await a.until(
                    lambda: (
                        len(a.host.swarm.connections(b.mesh.peer_id)) == 1
                        and len(b.host.swarm.connections(a.mesh.peer_id)) == 1
                    )
                )
                assert a.mesh.on_chain() == {b.mesh.peer_id}
                for node in (a, b):
                    for connections in node.host.swarm._connections.values():
                        for connection in connections:
                            connection.muxer.close()
                await a.until(lambda: not a.mesh.on_chain() and not b.mesh.on_chain())

    trio.run(main)


def test_streams_and_packets_reach_their_handlers():
    async def main():
        token = generate()
        a, b = Node("a", token), Node("b", token)
        packets = []
        arrived = trio.Event()

        def on_packet(peer, packet):
            packets.append((peer, packet))
            arrived.set()
            raise ValueError("a handler's bug")

        async def upper(peer, stream):
            assert peer == a.mesh.peer_id
            while data := await stream.read():
                await stream.write(data.upper())

        async def broken(_peer, _stream):
            raise KeyError("a handler's bug")

        b.mesh.set_stream_handler("/upper/1", upper)
        b.mesh.set_stream_handler("/broken/1", broken)
        b.mesh.set_packet_handler("/edgevpn/0.1", on_packet)
        async with nodes(a, b):
            with pytest.raises(UnreachableError):
                await a.mesh.open_stream(b.mesh.peer_id, "/upper/1")
            a.mesh.add_peer(b.mesh.peer_id, b.mesh.addresses())
            stream = await a.mesh.open_stream(b.mesh.peer_id, "/upper/1")  # connects by itself
            await stream.write(b"hello")
            assert await stream.read() == b"HELLO"
            await stream.close()

            broken_stream = await a.mesh.open_stream(b.mesh.peer_id, "/broken/1")
            with pytest.raises(PeerError):
                await broken_stream.read()
            with pytest.raises(PeerError):
                await a.mesh.open_stream(b.mesh.peer_id, "/nobody/1")

            packet_stream = await a.mesh.open_stream(b.mesh.peer_id, "/edgevpn/0.1")
            for size in (20, 1400, 40):
                arrived = trio.Event()
                await packet_stream.write_packet(b"p" * size)
                await arrived.wait()
            assert [len(packet) for _, packet in packets] == [20, 1400, 40]
            assert packets[0][0] == a.mesh.peer_id
            assert b.mesh.counters["handler_crashed"] == 1
            assert b.mesh.counters["packet_handler_crashed"] == 3
            assert b.mesh.traffic.by_protocol()["/edgevpn/0.1"]["TotalIn"] == 1460
            assert b.mesh.traffic.by_peer()[a.mesh.peer_id]["TotalIn"] == b.mesh.traffic.total()["TotalIn"]

            # A protocol that is served later is pushed, so that the other side knows without asking.
            b.mesh.set_stream_handler("/later/1", upper)
            await a.until(lambda: any("/later/1" in view.protocols for view in a.mesh.peers()))

    trio.run(main)


def test_a_message_as_large_as_the_token_allows_passes_and_a_larger_one_is_counted():
    async def main():
        a = Node("a", generate(max_message_size=1 << 20))
        async with nodes(a) as nursery:
            b = Node("b", a.mesh.settings.token, a.address)
            await nursery.start(b.run)
            await a.sees(b)
            large = random.Random(1).randbytes(500_000)  # hexadecimal doubles it
            await a.mesh.publish(large)
            await b.until(lambda: b.got[large])
            await a.mesh.publish(large + large)
            assert a.mesh.counters["publish_oversized"] == 1
            await a.mesh.publish(b"small")
            await b.until(lambda: b.got[b"small"])

    trio.run(main)


def test_the_vpn_is_neither_listened_to_nor_advertised():
    async def main():
        blocked = Node("a", generate(), blocked_networks=("127.0.0.0/8",))
        async with nodes(blocked) as nursery:
            port = blocked.host.swarm.bound[0][1]
            assert blocked.mesh.addresses() == []
            address = f"/ip4/127.0.0.1/tcp/{port}/p2p/{blocked.mesh.peer_id}"
            other = Node("b", blocked.mesh.settings.token, address)
            await nursery.start(other.run)
            await blocked.until(lambda: blocked.mesh.counters.get("inbound_refused"))
            assert not any(view.connected for view in other.mesh.peers())

    trio.run(main)


def test_a_taken_port_is_named_and_waited_for():
    async def main():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            mesh = Mesh(
                MeshSettings(seed=b"x" * 32, token=generate(), listen=(f"/ip4/127.0.0.1/tcp/{port}",), mdns=False),
                SystemClock(),
                random.Random(1),
            )
            async with trio.open_nursery() as nursery:
                await nursery.start(mesh.run)
                (reason,) = mesh.waiting()
                assert isinstance(reason, HostDown)
                assert f"port {port}: Address already in use" in reason.text()
                assert "choose another listen address" in reason.text()
                await mesh.publish(b"nobody hears this")
                taken.close()
                with trio.fail_after(PATIENCE):
                    while not mesh.ready:  # noqa: ASYNC110 - the mesh tells nobody but those who look
                        await trio.sleep(0.05)
                assert mesh.addresses() == [f"/ip4/127.0.0.1/tcp/{port}"]
                nursery.cancel_scope.cancel()

    trio.run(main)
