"""Too many connections, on loopback: strangers are sent away, members come in all the same."""

from __future__ import annotations

import random
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import trio

from provider_kairos.clock import SystemClock
from provider_kairos.mesh import swarm
from provider_kairos.mesh.addresses import parse_endpoint
from provider_kairos.mesh.connection_limits import ConnectionLimits
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.views import ConnectionsFull
from provider_kairos.token.codec import generate

PATIENCE = 60  # seconds after which a test gives up; nothing is measured
TOKEN = generate()


def make(name, *bootstrap, token=TOKEN, **options):
    settings = MeshSettings(
        seed=name.ljust(32, "-").encode(),
        token=token,
        listen=("/ip4/127.0.0.1/tcp/0",),
        bootstrap_peers=bootstrap,
        mdns=False,
        **options,
    )
    return Mesh(settings, SystemClock(), random.Random(name))


@asynccontextmanager
async def running(mesh):
    async with trio.open_nursery() as nursery:
        await nursery.start(mesh.run)
        yield mesh
        nursery.cancel_scope.cancel()


async def until(true):
    with trio.fail_after(PATIENCE):
        while not true():  # noqa: ASYNC110 - counters have no events
            await trio.sleep(0.02)


def address(mesh):
    return f"{mesh.addresses()[0]}/p2p/{mesh.peer_id}"


@asynccontextmanager
async def crowd(count, *where):
    """Strangers that keep themselves connected to ``where``."""
    async with AsyncExitStack() as stack:
        meshes = [make(f"stranger{number}", *where, token=generate()) for number in range(count)]
        yield [await stack.enter_async_context(running(mesh)) for mesh in meshes]


@pytest.fixture(autouse=True)
def _look_often(monkeypatch):
    monkeypatch.setattr(swarm, "TRIM_EVERY", 0.1)


def test_above_the_high_mark_strangers_go_and_members_stay():
    async def main():
        limits = ConnectionLimits(low=1, high=2, grace=0)
        async with running(make("middle", limits=limits)) as middle, running(make("friend", address(middle))) as friend:
            middle.protect([friend.peer_id])
            await until(lambda: friend.peer_id in middle.on_chain())
            async with crowd(3, address(middle)):
                await until(lambda: middle.counters.get("connections_trimmed", 0) >= 3)
                assert friend.peer_id in middle.on_chain()
                assert middle.connections().members == 1
            assert {view.peer_id for view in middle.peers() if view.connected} >= {friend.peer_id}

    trio.run(main)


def test_whom_we_sent_away_we_do_not_dial_again():
    async def main():
        limits = ConnectionLimits(low=0, high=0, grace=0)
        async with running(make("middle", limits=limits)) as middle, running(make("a", token=generate())) as stranger:
            middle.add_peer(stranger.peer_id, stranger.addresses())
            await until(lambda: middle.counters.get("connections_trimmed"))
            await until(lambda: stranger.peer_id not in middle.peerstore())

    trio.run(main)


def test_a_newcomer_finds_a_place_where_strangers_fill_all():
    async def main():
        async with running(make("middle", limits=ConnectionLimits(most=3))) as middle, crowd(3, address(middle)):
            await until(lambda: middle.connections().open == 3)
            assert [each for each in middle.waiting() if isinstance(each, ConnectionsFull)] == [ConnectionsFull(3)]
            async with running(make("friend", address(middle))) as friend:
                # the strangers come back and take places of strangers in their turn, never a member's
                middle.protect([friend.peer_id])
                await until(lambda: friend.peer_id in middle.on_chain())
                assert middle.counters["connections_replaced"] >= 1

    trio.run(main)


def test_members_that_fill_all_places_are_not_replaced():
    async def main():
        limits = ConnectionLimits(most=1)
        async with running(make("middle", limits=limits)) as middle, running(make("friend", address(middle))) as friend:
            middle.protect([friend.peer_id])
            await until(lambda: friend.peer_id in middle.on_chain())
            async with crowd(1, address(middle)) as (stranger,):
                await until(lambda: middle.counters.get("inbound_over_limit"))
                middle.add_peer(stranger.peer_id, stranger.addresses())
                await until(lambda: middle.counters.get("dial_over_limit"))
            assert friend.peer_id in middle.on_chain()

    trio.run(main)


@pytest.mark.parametrize("exempt", [(), ("127.0.0.0/8",)])
def test_one_address_has_so_many_strangers_unless_it_is_exempt(exempt):
    async def main():
        limits = ConnectionLimits(most_per_address=2, exempt=exempt)
        async with running(make("middle", limits=limits)) as middle, crowd(4, address(middle)):
            if exempt:
                await until(lambda: middle.connections().open == 4)
            else:
                await until(lambda: middle.counters.get("inbound_over_address_limit", 0) >= 4)
                assert middle.connections().open == 2

    trio.run(main)


def test_one_peer_has_so_many_connections():
    async def main():
        limits = ConnectionLimits(most_per_peer=2)
        async with running(make("middle", limits=limits)) as middle, running(make("greedy")) as greedy:
            endpoint, peer = parse_endpoint(address(middle)) or pytest.fail("no address")
            for _ in range(4):
                await greedy._host.swarm.dial(endpoint, peer)
            await until(lambda: middle.counters.get("inbound_over_peer_limit", 0) == 2)
            await until(lambda: middle.connections().open <= 2)

    trio.run(main)
