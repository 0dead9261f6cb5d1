"""Against a real go-libp2p: the ``p2pd`` daemon (inside the ``hivemind`` wheel), when ``P2PD`` names its binary.

TLS, Noise, yamux, identify, gossip with strict signing, streams, and one stream per packet, with either side dialling.
The daemon's control protocol is a handful of protobuf fields, written and read here by hand.
"""

from __future__ import annotations

import os
import random
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import base58
import pytest
import trio

from provider_kairos.clock import SystemClock
from provider_kairos.ids import PeerId
from provider_kairos.mesh import parts, swarm
from provider_kairos.mesh.channels import NOISE, TLS
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.views import PeerSubscribed
from provider_kairos.mesh.wire import DelimitedReader, encode_delimited, encode_varint
from provider_kairos.token import envelope, seal
from provider_kairos.token.codec import generate
from provider_kairos.token.otp import epoch_at

P2PD = os.environ.get("P2PD", "")
pytestmark = pytest.mark.skipif(not P2PD, reason="needs a go-libp2p daemon: P2PD=/path/to/p2pd")

IDENTIFY, CONNECT, STREAM_OPEN, PUBSUB = 0, 1, 2, 8
PUBLISH, SUBSCRIBE = 2, 3


def field(number: int, value: bytes | str | int) -> bytes:
    if isinstance(value, int):
        return encode_varint(number << 3) + encode_varint(value)
    raw = value.encode() if isinstance(value, str) else value
    return encode_varint(number << 3 | 2) + encode_varint(len(raw)) + raw


def fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Numbers and bodies of the length-delimited fields; others are skipped."""
    position = 0

    def varint() -> int:
        nonlocal position
        value = shift = 0
        while True:
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while position < len(data):
        tag = varint()
        size = varint()
        if tag & 7 == 2:
            yield tag >> 3, data[position : position + size]
            position += size


class Control:
    """One control connection."""

    async def open(self, path: Path, stack: AsyncExitStack) -> Control:
        self.stream = await stack.enter_async_context(await trio.open_unix_socket(str(path)))
        self.reader = DelimitedReader(lambda: self.stream.receive_some(65536), 30 << 20)
        return self

    async def ask(self, kind: int, *rest: bytes) -> bytes:
        await self.stream.send_all(encode_delimited(field(1, kind) + b"".join(rest)))
        answer = await self.reader.next()
        assert answer is not None
        assert answer.startswith(b"\x08\x00"), answer
        return answer


@pytest.mark.parametrize("security", [TLS, NOISE])
@pytest.mark.parametrize("we_dial", [True, False])
def test_go(tmp_path, monkeypatch, security, we_dial):
    made = swarm.Swarm.__init__
    monkeypatch.setattr(
        swarm.Swarm, "__init__", lambda self, *args, **options: made(self, *args, **options, security=(security,))
    )
    control_path = tmp_path / "control"

    async def main():
        command = [P2PD, "-listen", f"/unix{control_path}", "-pubsub", "-hostAddrs", "/ip4/127.0.0.1/tcp/0"]
        process = await trio.lowlevel.open_process(
            [*command, "-relay=0", "-relayService=0"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            with trio.fail_after(60):
                while not control_path.exists():  # noqa: ASYNC110 - the daemon tells nobody when it is ready
                    await trio.sleep(0.05)
                async with AsyncExitStack() as stack:
                    await talk(stack)
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()

    async def talk(stack):
        control = await Control().open(control_path, stack)
        identity = dict(fields(await control.ask(IDENTIFY)))[4]
        go_id = PeerId(base58.b58encode(dict(fields(identity))[1]).decode())
        multiaddr = parts.load().Multiaddr
        go_addresses = [str(multiaddr(body)) for number, body in fields(identity) if number == 2]

        mesh = Mesh(
            MeshSettings(seed=b"a" * 32, token=generate(), listen=("/ip4/127.0.0.1/tcp/0",), mdns=False),
            SystemClock(),
            random.Random(1),
        )
        our_id = base58.b58decode(mesh.peer_id)
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
        mesh.set_packet_handler("/edgevpn/0.1", on_packet)
        async with trio.open_nursery() as nursery:
            await nursery.start(mesh.run)
            epoch = epoch_at(mesh.settings.token, SystemClock().now().unix)
            listener = await Control().open(control_path, stack)
            await listener.ask(PUBSUB, field(8, field(1, SUBSCRIBE) + field(2, epoch.topic)))
            if we_dial:
                mesh.add_peer(go_id, go_addresses)
            else:
                addresses = b"".join(field(2, multiaddr(each).to_bytes()) for each in mesh.addresses())
                await control.ask(CONNECT, field(2, field(1, our_id) + addresses + field(3, 10)))
            async for event in mesh.events:
                if event == PeerSubscribed(go_id):
                    break
            (view,) = [view for view in mesh.peers() if view.peer_id == go_id]
            assert view.security == security
            assert view.direction == ("outbound" if we_dial else "inbound")

            for plain in (b"small", random.Random(2).randbytes(300_000)):
                await mesh.publish(plain)
                while True:  # it hears itself too
                    heard = dict(fields(await listener.reader.next() or b""))
                    if heard[1] == our_id:
                        break
                assert seal.unseal(epoch.seal_key, envelope.decode(heard[2]).message) == plain

                body = envelope.encode(envelope.Envelope(seal.seal(epoch.seal_key, plain[::-1])))
                await control.ask(PUBSUB, field(8, field(1, PUBLISH) + field(2, epoch.topic) + field(3, body)))
                message = await mesh.messages.receive()
                assert (message.author, message.data) == (go_id, plain[::-1])

            async def go_stream(protocol):
                opened = await Control().open(control_path, stack)
                await opened.ask(STREAM_OPEN, field(3, field(1, our_id) + field(2, protocol) + field(3, 5)))
                return opened.stream

            stream = await go_stream("/upper/1")
            await stream.send_all(b"abc" * 30_000)
            got = b""
            while len(got) < 90_000:
                got += await stream.receive_some(65536)
            assert got == b"ABC" * 30_000
            await stream.aclose()
            for number in range(50):
                stream = await go_stream("/edgevpn/0.1")
                await stream.send_all(b"packet %d" % number)
                await stream.aclose()
            await all_there.wait()
            assert sorted(packets) == sorted((go_id, b"packet %d" % number) for number in range(50))
            assert mesh.waiting() == []
            nursery.cancel_scope.cancel()

    trio.run(main)
