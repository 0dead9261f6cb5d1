"""Garbage on every layer and protocol: the node lives, its other peer notices nothing, its memory stays."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest
import trio

from provider_kairos.clock import SystemClock
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import DhtMode, DhtSettings, MeshSettings
from provider_kairos.token.codec import generate

_SPEC = importlib.util.spec_from_file_location("mesh_fuzz", Path(__file__).parent / "mesh_fuzz.py")
assert _SPEC
assert _SPEC.loader
mesh_fuzz = importlib.util.module_from_spec(_SPEC)
sys.modules["mesh_fuzz"] = mesh_fuzz
_SPEC.loader.exec_module(mesh_fuzz)


def make(seed, token, *bootstrap):
    settings = MeshSettings(
        seed=seed * 32,
        token=token,
        listen=("/ip4/127.0.0.1/tcp/0",),
        bootstrap_peers=bootstrap,
        mdns=False,
        dht=DhtSettings(mode=DhtMode.SERVER, defaults=()),
    )
    return Mesh(settings, SystemClock(), random.Random(1))


@pytest.mark.parametrize("kind", mesh_fuzz.KINDS)
def test_fuzz(kind):
    seed = random.SystemRandom().randrange(2**32)

    async def main():
        token = generate()
        target = make(b"t", token)
        async with trio.open_nursery() as nursery:
            await nursery.start(target.run)
            target.set_packet_handler("/edgevpn/0.1", lambda _peer, packet: 1 // (len(packet) % 7))
            address = f"{target.addresses()[0]}/p2p/{target.peer_id}"
            friend = make(b"f", token, address)
            await nursery.start(friend.run)
            await friend_there(target)
            host = target._host
            report = await mesh_fuzz.attack_all(address, mesh_fuzz.count_from_environment(), seed, (kind,))
            assert report["sent"] == {kind: mesh_fuzz.count_from_environment()}
            assert report["alive"] == {kind: True}
            assert target._host is host, "the host was restarted"
            assert target.counters.get("host_restarts", 0) == 0
            assert target.counters.get("connection_crashed", 0) == 0
            assert target.counters.get("handler_crashed", 0) == 0
            # the friend kept its connection and still hears us
            await target.publish(b"after the storm")
            with trio.fail_after(10):
                async for message in friend.messages:
                    if message.data == b"after the storm":
                        break
            nursery.cancel_scope.cancel()

    async def friend_there(target):
        with trio.fail_after(20):
            async for _ in target.events:
                if target.on_chain():
                    return

    try:
        trio.run(main)
    except BaseException:
        print(f"replay: seed {seed}, kind {kind}")
        raise
