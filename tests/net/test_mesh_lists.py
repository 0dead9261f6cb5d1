"""Meshes on loopback with lists: who is blocked is not connected with, who is not in the table is not heard."""

from __future__ import annotations

import random
from collections import Counter
from contextlib import asynccontextmanager
from typing import Any

import trio

from provider_kairos.clock import SystemClock
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.views import AllGatedOut
from provider_kairos.token.codec import generate

PATIENCE = 60


class Node:
    """A mesh whose messages are counted by author, and public ones kept."""

    def __init__(self, name, token, *bootstrap, **options):
        self.mesh = Mesh(
            MeshSettings(
                seed=name.encode() * 32,
                token=token,
                listen=("/ip4/127.0.0.1/tcp/0",),
                bootstrap_peers=bootstrap,
                mdns=False,
                blocked_networks=options.pop("blocked_networks", ()),
                **options,
            ),
            SystemClock(),
            random.Random(name),
        )
        self.heard: Counter[str] = Counter()
        self.public: list[Any] = []

    @property
    def address(self):
        return f"{self.mesh.addresses()[0]}/p2p/{self.mesh.peer_id}"

    async def run(self, task_status):
        async with trio.open_nursery() as nursery:
            await nursery.start(self.mesh.run)
            nursery.start_soon(self._ledger)
            nursery.start_soon(self._public)
            task_status.started()

    async def _ledger(self):
        async for message in self.mesh.messages:
            self.heard[message.author] += 1

    async def _public(self):
        async for message in self.mesh.public_messages:
            self.public.append(message)


def peer_id(name):
    return Mesh(MeshSettings(seed=name.encode() * 32, token=generate()), SystemClock(), random.Random()).peer_id


@asynccontextmanager
async def running(*made):
    async with trio.open_nursery() as nursery:
        for node in made:
            await nursery.start(node.run)
        yield nursery
        nursery.cancel_scope.cancel()


async def until(true, what, meanwhile=None):
    """Wait until ``true()``; ``meanwhile`` is awaited before each look."""
    with trio.move_on_after(PATIENCE) as scope:
        while not true():
            if meanwhile is not None:
                await meanwhile()
            await trio.sleep(0.05)
    assert not scope.cancelled_caught, what


def test_gossip_of_peers_that_are_not_in_the_table_is_dropped_and_counted():
    async def main():
        token = generate()
        a = Node("a", token, only_peers=frozenset({peer_id("b")}))
        async with running(a) as nursery:
            b, c = (Node(name, token, a.address) for name in "bc")
            await nursery.start(c.run)
            await until(lambda: a.mesh.on_chain() == {c.mesh.peer_id}, "c is in the room")
            assert AllGatedOut(1, "static peer table") in a.mesh.waiting()
            await nursery.start(b.run)
            await until(lambda: len(a.mesh.on_chain()) == 2, "both are in the room")
            assert not any(isinstance(reason, AllGatedOut) for reason in a.mesh.waiting())

            async def speak():
                await b.mesh.publish(b"from b")
                await c.mesh.publish(b"from c")

            await until(lambda: a.heard[b.mesh.peer_id] >= 3 and a.mesh.counters.get("gated", 0) >= 3, "both", speak)
            assert set(a.heard) == {b.mesh.peer_id}
            assert not b.heard, "a does not pass on what it does not hear"

    trio.run(main)


def test_what_is_said_in_the_public_room_arrives_there_with_its_annotations():
    async def main():
        token = generate(interval=2)
        a = Node("a", token, public_room=True, overlap=1.0, lead=0.5)
        async with running(a) as nursery:
            b = Node("b", token, a.address, public_room=True, overlap=1.0, lead=0.5)
            outside = Node("c", token, a.address, overlap=1.0, lead=0.5)
            await nursery.start(b.run)
            await nursery.start(outside.run)
            sent = 0

            async def speak():
                nonlocal sent
                sent += 1
                await b.mesh.publish_public(b"challenge", {"number": sent})
                await b.mesh.publish(b"block")

            await until(lambda: len(a.public) >= 60 and outside.heard[b.mesh.peer_id] >= 60, "sixty", speak)
            numbers = [message.annotations["number"] for message in a.public]
            assert len(numbers) == len(set(numbers))
            assert {(message.room, message.author, message.via) for message in a.public} == {
                ("public", b.mesh.peer_id, b.mesh.peer_id)
            }
            assert not outside.public
            assert set(a.heard) == {b.mesh.peer_id}

    trio.run(main)


def test_a_blocked_peer_is_refused_from_both_sides_and_others_are_not():
    async def main():
        token = generate()
        a = Node("a", token, blocked_peers=frozenset({peer_id("b")}))
        async with running(a) as nursery:
            b, c = (Node(name, token, a.address) for name in "bc")
            for node in (b, c):
                await nursery.start(node.run)
            await until(lambda: a.mesh.counters.get("blocked_peer", 0) >= 2, "b tries")
            await until(lambda: a.mesh.on_chain() == {c.mesh.peer_id}, "c is in")
            a.mesh.add_peer(b.mesh.peer_id, b.mesh.addresses())
            assert b.mesh.peer_id not in a.mesh.peerstore()
            for one, other in ((a, b), (b, a)):
                assert not any(view.connected for view in one.mesh.peers() if view.peer_id == other.mesh.peer_id)

    trio.run(main)


def test_a_blocked_network_is_neither_dialled_nor_accepted():
    async def main():
        token = generate()
        b = Node("b", token)
        async with running(b) as nursery:
            a = Node("a", token, b.address, blocked_networks=("127.0.0.0/8",))
            await nursery.start(a.run)
            inside: Any = a.mesh
            host, port = inside._host.swarm.bound[0]
            b.mesh.add_peer(a.mesh.peer_id, [f"/ip4/{host}/tcp/{port}"])
            await until(lambda: a.mesh.counters.get("inbound_refused", 0) >= 2, "b tries")
            assert not any(view.connected for view in [*a.mesh.peers(), *b.mesh.peers()])
            assert b.mesh.counters.get("inbound_failed", 0) == 0, "a does not dial"

    trio.run(main)
