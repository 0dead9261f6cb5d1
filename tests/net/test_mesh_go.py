"""Our mesh against a real go-libp2p with EdgeVPN's options (fixture ``go_peer``), on loopback.

TLS, Noise, yamux, identify, gossip with strict signing, streams, and one stream per packet, with either side dialling.
"""

from __future__ import annotations

import base64
import random

import pytest
import trio

from provider_kairos.clock import SystemClock
from provider_kairos.errors import PeerError
from provider_kairos.mesh import swarm
from provider_kairos.mesh.channels import NOISE, TLS
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.views import PeerSubscribed
from provider_kairos.token.codec import encode, generate
from tests.interop.go_peer import GoError, data_of

PACKETS = "/edgevpn/0.1"


@pytest.fixture
def run_beside(go_peer):
    """``run_beside(talk, **options)``: a mesh of ours and a Go peer of the same token, both alive while ``talk`` runs."""

    def run(talk, **options):
        token = generate()
        go = go_peer(token=encode(token), **options)
        mesh = Mesh(
            MeshSettings(seed=b"a" * 32, token=token, listen=("/ip4/127.0.0.1/tcp/0",), mdns=False),
            SystemClock(),
            random.Random(1),
        )

        async def main():
            with trio.fail_after(120):
                async with trio.open_nursery() as nursery:
                    await nursery.start(mesh.run)
                    await talk(mesh, go)
                    nursery.cancel_scope.cancel()

        trio.run(main)

    return run


async def meet(mesh, go, *, we_dial=True):
    """Connect and wait until each knows that the other is in its room."""
    if we_dial:
        mesh.add_peer(go.id, [address.rsplit("/p2p/", 1)[0] for address in go.addrs])
    else:
        await trio.to_thread.run_sync(go.connect, f"{mesh.addresses()[0]}/p2p/{mesh.peer_id}")
    async for event in mesh.events:
        if event == PeerSubscribed(go.id):
            break
    await go.aevent("subscribed", peer=mesh.peer_id)


@pytest.mark.parametrize("security", [TLS, NOISE])
@pytest.mark.parametrize("we_dial", [True, False])
def test_go_gossip_and_streams(run_beside, monkeypatch, security, we_dial):
    made = swarm.Swarm.__init__
    monkeypatch.setattr(
        swarm.Swarm, "__init__", lambda self, *args, **options: made(self, *args, **options, security=(security,))
    )

    async def talk(mesh, go):
        packets = []
        all_there = trio.Event()

        def on_packet(peer, packet):
            packets.append((peer, packet))
            if len(packets) == 50:
                all_there.set()

        async def upper(_peer, stream):
            while data := await stream.read():
                await stream.write(data.upper())

        mesh.set_stream_handler("/upper/1", upper)
        mesh.set_packet_handler(PACKETS, on_packet)
        await meet(mesh, go, we_dial=we_dial)
        (view,) = [view for view in mesh.peers() if view.peer_id == go.id]
        assert view.security == security
        assert view.direction == ("outbound" if we_dial else "inbound")
        (connection,) = (await trio.to_thread.run_sync(go.peers))[mesh.peer_id]["connections"]
        assert connection["security"] == security
        assert connection["muxer"] == "/yamux/1.0.0"

        for plain in (b"small", random.Random(2).randbytes(300_000)):
            await mesh.publish(plain)
            heard = await go.aevent("message", **{"from": mesh.peer_id}, size=len(plain))
            if "data" in heard:
                assert data_of(heard) == plain
            await go.ado("publish", data=plain[::-1])
            message = await mesh.messages.receive()
            assert (message.author, message.data) == (go.id, plain[::-1])

        stream = (await go.ado("open_stream", peer=mesh.peer_id, protocol="/upper/1"))["stream"]
        await go.ado("write_stream", stream=stream, data=b"abc" * 30_000)
        assert data_of(await go.ado("read_stream", stream=stream, size=90_000)) == b"ABC" * 30_000
        await go.ado("close_stream", stream=stream)
        expected = [b"packet %d" % number for number in range(50)]
        await go.ado("send_packet", peer=mesh.peer_id, packets=expected)
        await all_there.wait()
        assert sorted(packets) == sorted((go.id, packet) for packet in expected)
        assert mesh.waiting() == []

    run_beside(talk)


def test_go_takes_packets_one_stream_each_and_many_on_one(run_beside):
    """A frame of ours is a packet of theirs, whether the stream carries one or many (spec 8.1)."""

    async def talk(mesh, go):
        await go.ado("serve", protocol=PACKETS, mode="packets")
        await meet(mesh, go)
        expected = [b"one stream %d" % number for number in range(20)]
        for packet in expected:
            stream = await mesh.open_stream(go.id, PACKETS)
            await stream.write(packet)
            await stream.close()
        long = await mesh.open_stream(go.id, PACKETS)
        for number in range(200):
            expected.append(b"long stream %d " % number + b"x" * (number * 7))
            await long.write(expected[-1])
        await long.close()
        await go.aevent("packet", data=base64.b64encode(expected[-1]).decode())
        await trio.to_thread.run_sync(
            lambda: go.until(lambda: sorted(go.packets(mesh.peer_id)) == sorted(expected), "all packets, uncut")
        )
        counts = (await go.ado("packet_counts"))["peers"][mesh.peer_id]
        assert (counts["streams"], counts["packets"]) == (21, 220)

    run_beside(talk)


def test_go_sends_many_packets_on_one_stream(run_beside):
    async def talk(mesh, go):
        expected = [b"packet %d" % number for number in range(100)]
        packets = []
        all_there = trio.Event()

        def on_packet(_peer, packet):
            packets.append(packet)
            if len(packets) == len(expected):
                all_there.set()

        mesh.set_packet_handler(PACKETS, on_packet)
        await meet(mesh, go)
        await go.ado("send_packet", peer=mesh.peer_id, packets=expected, long=True)
        await all_there.wait()
        assert packets == expected

    run_beside(talk)


def test_go_identify(run_beside):
    """What each side says of itself (spec 7), also when it changes later."""

    async def talk(mesh, go):
        await meet(mesh, go)
        said = (await trio.to_thread.run_sync(go.peers))[mesh.peer_id]
        assert (said["agent"], said["protocol_version"]) == ("edgevpn", "")
        assert {"/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0", "/meshsub/1.1.0"} <= set(said["protocols"])
        assert not [each for each in said["protocols"] if each.startswith("/edgevpn")]
        assert said["addrs"] == mesh.addresses()
        assert said["observed"].startswith("/ip4/127.0.0.1/tcp/")

        mesh.set_packet_handler(PACKETS, lambda _peer, _packet: None)
        await trio.to_thread.run_sync(
            lambda: go.until(lambda: PACKETS in go.peers()[mesh.peer_id]["protocols"], "our push")
        )
        await go.ado("serve", protocol=PACKETS, mode="packets")
        (view,) = mesh.peers()
        assert view.agent == "edgevpn"
        while PACKETS not in mesh.peers()[0].protocols:  # noqa: ASYNC110 - nobody is told of identify pushes
            await trio.sleep(0.05)

    run_beside(talk)


def test_go_is_told_na_for_what_we_do_not_serve(run_beside):
    async def talk(mesh, go):
        await meet(mesh, go)
        with pytest.raises(GoError, match="protocols not supported"):
            await go.ado("open_stream", peer=mesh.peer_id, protocol="/edgevpn/egress/0.1")
        with pytest.raises(PeerError):
            await mesh.open_stream(go.id, "/edgevpn/egress/0.1")

    run_beside(talk)


def test_go_as_a_direct_peer_hears_us(run_beside, go_peer):
    """EdgeVPN refuses the GRAFT of its bootstrap peers and floods to them all the same (spec 4.5)."""

    async def talk(mesh, go):
        await meet(mesh, go)
        direct = f"{mesh.addresses()[0]}/p2p/{mesh.peer_id}"
        token = encode(mesh.settings.token)
        other = await trio.to_thread.run_sync(lambda: go_peer(token=token, direct=[direct]))
        async for event in mesh.events:  # gossipsub dials its direct peers by itself
            if event == PeerSubscribed(other.id):
                break
        await other.aevent("subscribed", peer=mesh.peer_id)
        for number in range(3):
            await mesh.publish(b"to both %d" % number)
            for peer in (go, other):
                await peer.aevent("message", data=base64.b64encode(b"to both %d" % number).decode())
            await other.ado("publish", data=b"from a direct peer %d" % number)
            message = await mesh.messages.receive()
            assert (message.author, message.data) == (other.id, b"from a direct peer %d" % number)

    run_beside(talk)
