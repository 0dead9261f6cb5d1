"""What must not wait goes out at once, what the socket does not take follows in order, and nobody starves meanwhile."""

from __future__ import annotations

import random
import socket
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import parts
from provider_kairos.mesh.channels import NOISE, TLS, Handshakes, TcpChannel
from provider_kairos.mesh.multistream import HEADER, encode_line
from provider_kairos.mesh.muxer import Muxer
from provider_kairos.mesh.yamux_frames import Flag, FrameParser, Kind, encode_header

PACKETS = "/packets/1"
OPENING = HEADER + encode_line(PACKETS)


def socket_pair(buffer=0):
    pair = socket.socketpair()
    for each in pair:
        each.setblocking(False)
        if buffer:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    return [trio.SocketStream(trio.socket.from_stdlib_socket(each)) for each in pair]


@asynccontextmanager
async def secure_pair(security, buffer=0):
    taken = parts.load()
    sides = [Handshakes(taken.create_ed25519(bytes([n]) * 32)) for n in (1, 2)]
    raws = [TcpChannel(stream, initiator=not n) for n, stream in enumerate(socket_pair(buffer))]
    made: dict[int, tuple[PeerId, object]] = {}

    async def one(number):
        made[number] = await sides[number].secure(raws[number], security, None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one, 0)
        nursery.start_soon(one, 1)
    try:
        yield made[0][1], made[1][1]
    finally:
        for raw in raws:
            await raw.close()


@pytest.mark.parametrize("security", [TLS, NOISE])
def test_pieces_sent_with_and_without_waiting_arrive_in_order(security):
    """Through a socket that takes little at once, sent in turns as a reader and a writer do."""
    rng = random.Random(7)
    pieces = [rng.randbytes(rng.choice((1, 100, 1400, 30_000))) for _ in range(300)]
    left: list[bool] = []

    async def main():
        async with secure_pair(security, buffer=4096) as (ours, theirs):
            got = bytearray()

            async def read():
                while len(got) < sum(map(len, pieces)):
                    got.extend(await theirs.receive())

            async def write():
                for number, piece in enumerate(pieces):
                    if number % 3 and ours.idle:
                        left.append(not ours.send_nowait(piece))
                    else:
                        await ours.send(piece)
                await ours.send(b"")

            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(read)
                    nursery.start_soon(write)
            assert bytes(got) == b"".join(pieces)

    trio.run(main)
    assert any(left)
    assert not all(left)


@pytest.mark.parametrize("security", [TLS, NOISE])
def test_a_channel_that_waits_for_its_socket_is_not_idle(security):
    async def main():
        async with secure_pair(security, buffer=4096) as (ours, theirs):
            assert ours.idle
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ours.send, bytes(1 << 20))
                await wait_all_tasks_blocked()
                assert not ours.idle
                got = 0
                while got < 1 << 20:
                    got += len(await theirs.receive())
                await wait_all_tasks_blocked()
                assert ours.idle

    trio.run(main)


@pytest.mark.parametrize("security", [TLS, NOISE])
def test_a_broken_connection_is_an_error_of_the_peers_also_without_waiting(security):
    async def main():
        async with secure_pair(security) as (ours, theirs):
            await theirs.aclose()
            with pytest.raises(PeerError):
                ours.send_nowait(bytes(1000))
            await ours.aclose()
            with pytest.raises(PeerError):
                await ours.receive()

    trio.run(main)


def test_a_flood_lets_other_tasks_have_their_turn():
    async def main():
        ours, theirs = (TcpChannel(stream, initiator=True) for stream in socket_pair())
        turns = 0
        received = 0

        async def other():
            nonlocal turns
            while True:
                turns += 1
                await trio.lowlevel.checkpoint()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(other)
            for _ in range(40):
                await ours.write(bytes(64))
            before = turns
            for _ in range(200):
                if received < 40 * 64:
                    received += len(await theirs.read(64))
            assert received == 40 * 64
            for _ in range(400):  # every byte is there already when it is asked for
                ours.write_nowait(b"x")
                await theirs.receive()
            assert turns > before
            nursery.cancel_scope.cancel()
        await ours.close()
        await theirs.close()

    trio.run(main)


class Wire:
    """A channel that takes ``room`` bytes at once when asked without waiting, and everything from who waits."""

    def __init__(self, room=1 << 30):
        self.room = room
        self.idle = True
        self.now = bytearray()
        self.later = bytearray()
        self._left = b""
        self._sender, self._receiver = trio.open_memory_channel[bytes](64)

    def arrives(self, data):
        self._sender.send_nowait(data)

    async def receive(self):
        return await self._receiver.receive()

    async def send(self, data):
        self.idle = False
        await trio.lowlevel.checkpoint()
        left, self._left = self._left, b""
        self.later += left + data
        self.idle = True

    def send_nowait(self, data):
        assert self.idle
        self.now += data[: self.room]
        self._left = data[self.room :]
        self.idle = not self._left
        return self.idle

    async def aclose(self):
        await trio.lowlevel.checkpoint()


@asynccontextmanager
async def served(wire, handler=lambda _peer, _packet: None):
    muxer = Muxer(
        wire,
        PeerId("go"),
        initiator=False,
        serves=PACKETS.__eq__,
        on_stream=lambda stream: stream.reset(),
        packet_handlers={PACKETS: handler},
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(muxer.run)
        await wait_all_tasks_blocked()
        yield muxer
        nursery.cancel_scope.cancel()


def packet_stream(number, payload, *, opening=OPENING):
    """What a Go peer sends for one packet, and how it ends the stream."""
    body = opening + payload
    return (
        encode_header(Kind.WINDOW_UPDATE, Flag.SYN, number, 0) + encode_header(Kind.DATA, 0, number, len(body)) + body,
        encode_header(Kind.WINDOW_UPDATE, Flag.FIN, number, 0),
    )


def test_the_answer_to_a_packet_goes_out_from_inside_the_reader():
    got = []

    async def main():
        wire = Wire()
        async with served(wire, lambda peer, packet: got.append((peer, packet, bytes(wire.now)))) as muxer:
            begin, end = packet_stream(1, b"packet")
            wire.arrives(begin)
            await wait_all_tasks_blocked()
            (answer,) = FrameParser().feed(bytes(wire.now))
            assert (answer.flags, answer.stream_id, answer.body) == (Flag.ACK, 1, OPENING)
            wire.arrives(end)
            await wait_all_tasks_blocked()
            assert wire.later == b""
            assert muxer.idle
            assert [frame.flags for frame in FrameParser().feed(bytes(wire.now))] == [Flag.ACK, Flag.FIN]

    trio.run(main)
    assert [(peer, packet) for peer, packet, _ in got] == [("go", b"packet")]


@pytest.mark.parametrize("cut", [1, 19, 20, len(OPENING) - 1, len(OPENING)])
def test_a_proposal_in_pieces_is_answered_as_well(cut):
    got = []

    async def main():
        wire = Wire()
        async with served(wire, lambda _peer, packet: got.append(packet)):
            text = OPENING + b"packet"
            wire.arrives(
                encode_header(Kind.DATA, Flag.SYN, 1, cut)
                + text[:cut]
                + encode_header(Kind.DATA, 0, 1, len(text) - cut)
                + text[cut:]
            )
            await wait_all_tasks_blocked()
            frames = FrameParser().feed(bytes(wire.now))
            assert b"".join(frame.body for frame in frames) == OPENING

    trio.run(main)
    assert b"".join(got) == b"packet"


@pytest.mark.parametrize("room", [0, 5, 40])
def test_what_the_socket_does_not_take_is_left_to_the_writer_in_order(room):
    async def main():
        wire = Wire(room)
        async with served(wire):
            for number in (1, 3):
                wire.arrives(b"".join(packet_stream(number, b"packet")))
            await wait_all_tasks_blocked()
            frames = list(FrameParser().feed(bytes(wire.now + wire.later)))
            assert [(frame.stream_id, frame.flags) for frame in frames] == [
                (1, Flag.ACK),
                (1, Flag.FIN),
                (3, Flag.ACK),
                (3, Flag.FIN),
            ]

    trio.run(main)


def test_several_packets_go_out_in_one_piece():
    async def main():
        wire = Wire()
        async with served(wire) as muxer:
            stream = muxer.open_stream()
            taken = stream.try_write_packets([b"a" * 100, b"b" * 100, b"c" * 70_000, b"d"])
            assert taken == 2, "one that fits no frame ends it"
            assert [frame.body[:1] for frame in FrameParser().feed(bytes(wire.now))] == [b"a", b"b"]

    trio.run(main)
