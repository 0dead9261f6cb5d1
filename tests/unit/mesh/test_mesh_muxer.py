"""Streams over one connection: windows, boundaries, limits, ends."""

from __future__ import annotations

from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from provider_kairos.errors import LocalError
from provider_kairos.mesh import muxer as muxer_module
from provider_kairos.mesh.channels import ChannelError
from provider_kairos.mesh.multistream import HEADER, NegotiationError, encode_line, select
from provider_kairos.mesh.muxer import MAX_STREAMS, PING_AFTER, PING_TIMEOUT
from provider_kairos.mesh.muxer_stream import Stream, StreamEndedError
from provider_kairos.mesh.testing import muxer_pair
from provider_kairos.mesh.yamux_frames import INITIAL_WINDOW, Flag, Frame, FrameParser, GoAway, Kind

ECHO = "/echo/1"
PACKETS = "/packets/1"


class Pair:
    """A client and a server that serves an echo, raw streams and packets."""

    def __init__(self, piece=1 << 20):
        self.nursery: trio.Nursery
        self.accepted: list[Stream] = []
        self.packets: list[tuple[str, bytes]] = []
        self.client, self.server, self.client_channel, self.server_channel = muxer_pair(
            serves=lambda protocol: protocol in {ECHO, PACKETS, "/raw/1"},
            on_stream=self._on_stream,
            packet_handlers={PACKETS: lambda peer, packet: self.packets.append((peer, packet))},
            piece=piece,
        )
        self.arrived = trio.Event()

    def _on_stream(self, stream):
        self.accepted.append(stream)
        self.arrived.set()
        if stream.protocol == ECHO:
            self.nursery.start_soon(self._echo, stream)

    async def _echo(self, stream):
        try:
            while data := await stream.read():
                await stream.write(data)
        except StreamEndedError:
            return
        await stream.close()

    async def open(self, protocol):
        stream = self.client.open_stream()
        stream.protocol = await select((protocol,), stream.read, stream.write)
        return stream

    async def settle(self):
        await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def connected(**options):
    pair = Pair(**options)
    async with trio.open_nursery() as nursery:
        pair.nursery = nursery
        nursery.start_soon(pair.client.run)
        nursery.start_soon(pair.server.run)
        yield pair
        nursery.cancel_scope.cancel()


def run(test, clock=None):
    trio.run(test, clock=clock)


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_bytes_come_back_and_the_stream_is_forgotten(piece):
    async def test():
        async with connected(piece=piece) as pair:
            stream = await pair.open(ECHO)
            await stream.write(b"x" * 1000 + b"end")
            got = b""
            while len(got) < 1003:
                got += await stream.read()
            assert got == b"x" * 1000 + b"end"
            stream.close_write()
            assert await stream.read() == b""
            await pair.settle()
            assert pair.client.idle
            assert pair.server.idle
            assert (pair.client.buffered, pair.server.buffered) == (0, 0)

    run(test)


def test_much_more_than_a_window_passes_to_a_reader_and_waits_for_one_that_pauses():
    async def test():
        async with connected() as pair:
            stream = await pair.open("/raw/1")
            written = trio.Event()

            async def write():
                await stream.write(b"y" * (INITIAL_WINDOW * 5))
                written.set()

            pair.nursery.start_soon(write)
            await pair.settle()
            assert not written.is_set()
            assert pair.server.buffered <= INITIAL_WINDOW  # that much and no more may be held for a lazy reader
            (accepted,) = pair.accepted
            got = 0
            while got < INITIAL_WINDOW * 5:
                got += len(await accepted.read())
            assert written.is_set()

    run(test)


def test_packets_keep_their_boundaries_and_are_never_split():
    async def test():
        async with connected() as pair:
            stream = await pair.open("/raw/1")
            packets = [bytes([n]) * size for n, size in enumerate((1, 1200, 65000, 20, 9000))]
            for packet in packets:
                await stream.write_packet(packet)
            await pair.settle()
            (accepted,) = pair.accepted
            assert [await accepted.read() for _ in packets] == packets

            # The window is nearly used up: the packet waits as a whole.
            await stream.write(b"z" * (INITIAL_WINDOW - 80_000))
            done = trio.Event()

            async def write():
                for _ in range(3):
                    await stream.write_packet(b"p" * 60_000)
                done.set()

            pair.nursery.start_soon(write)
            await pair.settle()
            assert not done.is_set()
            sizes: list[int] = []
            while len(sizes) < 3:
                data = await accepted.read()
                sizes += [len(data)] if data.startswith(b"p") else []
            assert sizes == [60_000] * 3

    run(test)


def test_a_packet_that_would_wait_can_be_dropped_instead():
    async def test():
        async with connected() as pair:
            stream = await pair.open("/raw/1")
            sent = 0
            while stream.try_write_packet(b"q" * 1000):
                sent += 1
            assert 0 < sent <= INITIAL_WINDOW // 1000
            with pytest.raises(LocalError, match="does not fit"):
                await stream.write_packet(b"q" * 70_000)

    run(test)


def test_one_stream_per_packet_needs_no_task_and_ends_by_itself():
    async def test():
        async with connected() as pair:
            for number in range(50):
                stream = pair.client.open_stream()
                # as Go does when it knows that we serve it: header, proposal and packet at once, then the end
                await stream.write(HEADER + encode_line(PACKETS) + b"packet %d" % number)
                assert await stream.read() == HEADER + encode_line(PACKETS)
                stream.close_write()
                assert await stream.read() == b""
            assert pair.packets == [("client", b"packet %d" % number) for number in range(50)]
            assert pair.accepted == []
            await pair.settle()
            assert pair.server.idle

            stream = await pair.open(PACKETS)  # and one long stream with a packet per frame
            pair.packets.clear()
            for number in range(5):
                await stream.write_packet(b"%d" % number)
            await pair.settle()
            assert [packet for _, packet in pair.packets] == [b"0", b"1", b"2", b"3", b"4"]

    run(test)


def test_a_protocol_that_nobody_serves_is_answered_with_na():
    async def test():
        async with connected() as pair:
            stream = pair.client.open_stream()
            assert await select(("/nothing/1", ECHO), stream.read, stream.write) == ECHO
            with pytest.raises(NegotiationError, match="serves none"):
                await pair.open("/nothing/1")

    run(test)


def test_a_cancelled_write_harms_nothing():
    async def test():
        async with connected() as pair:
            stuck = await pair.open("/raw/1")
            with trio.move_on_after(0.01):
                await stuck.write(b"w" * (INITIAL_WINDOW * 3))
            stream = await pair.open(ECHO)
            await stream.write(b"still here")
            assert await stream.read() == b"still here"
            stuck.reset()
            await pair.settle()
            assert pair.server.buffered == 0
            got = 0
            with suppress(StreamEndedError):  # what came before the reset is still there, and then it raises
                while True:
                    got += len(await pair.accepted[0].read())
            assert INITIAL_WINDOW - 100 < got <= INITIAL_WINDOW
            with pytest.raises(StreamEndedError):
                await stuck.write(b"more")

    run(test)


def test_streams_over_the_limit_are_reset_and_the_others_live():
    async def test():
        async with connected() as pair:
            streams = [pair.client.open_stream() for _ in range(MAX_STREAMS + 5)]
            for stream in streams:
                stream.open()
            await pair.settle()
            assert len(pair.server.streams) == MAX_STREAMS
            assert sum(stream.ended for stream in streams) == 5
            streams[0].reset()
            await pair.settle()
            echo = await pair.open(ECHO)
            await echo.write(b"room again")
            assert await echo.read() == b"room again"

    run(test)


@pytest.mark.parametrize(
    "frame",
    [
        Frame(Kind.DATA, Flag.SYN, 1, INITIAL_WINDOW + 1, b"a" * (INITIAL_WINDOW + 1)),  # more than the window
        Frame(Kind.WINDOW_UPDATE, Flag.SYN, 2, 0),  # a stream number of the other side
        Frame(Kind.WINDOW_UPDATE, Flag.SYN, 0, 0),  # the session's number
        Frame(9, Flag.NONE, 1, 0),  # no such type
    ],
)
def test_a_peer_that_breaks_the_protocol_is_told_and_left(frame):
    async def test():
        pair = Pair()
        async with trio.open_nursery() as nursery:
            pair.nursery = nursery
            nursery.start_soon(pair.server.run)
            await pair.client_channel.send(frame.encode())
            told: list[Frame] = []
            parser = FrameParser()
            while data := await pair.client_channel.receive():
                told += parser.feed(data)
            assert told[-1] == Frame(Kind.GO_AWAY, Flag.NONE, 0, GoAway.PROTOCOL_ERROR)
            await pair.server.ended.wait()
            assert not pair.server.alive

    run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_late_frames_of_a_forgotten_stream_are_ignored():
    async def test():
        async with connected() as pair:
            for frame in (
                Frame(Kind.DATA, Flag.NONE, 99, 3, b"abc"),
                Frame(Kind.WINDOW_UPDATE, Flag.RST, 99, 0),
                Frame(Kind.WINDOW_UPDATE, Flag.FIN, 99, 7),
            ):
                pair.client.put(frame.encode())
            stream = await pair.open(ECHO)
            await stream.write(b"fine")
            assert await stream.read() == b"fine"

    run(test)


def test_a_silent_link_is_found_dead_within_seconds():
    async def test():
        async with connected() as pair:
            stream = await pair.open("/raw/1")
            await trio.sleep(600)
            assert pair.client.alive  # pings keep an idle link alive
            pair.client_channel.silent = pair.server_channel.silent = True
            before = trio.current_time()
            with pytest.raises(StreamEndedError):
                await stream.read()
            assert trio.current_time() - before <= 2 * PING_AFTER + PING_TIMEOUT
            assert "dead" in pair.client.error

    run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_an_idle_link_costs_next_to_nothing():
    async def test():
        async with connected() as pair:
            await pair.settle()
            pair.client_channel.sent.clear()
            pair.server_channel.sent.clear()
            await trio.sleep(100)
            frames = pair.client_channel.sent + pair.server_channel.sent
            # A ping of either side shows both that the link lives.
            assert len(frames) <= 2 * (100 / PING_AFTER) + 4

    run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_stream_that_agrees_on_nothing_is_reset_in_time():
    async def test():
        async with connected() as pair:
            stream = pair.client.open_stream()
            await stream.write(HEADER)
            await trio.sleep(2 * muxer_module.SWEEP + 1)
            assert pair.server.idle
            assert stream.ended

    run(test, clock=trio.testing.MockClock(autojump_threshold=0))


def test_a_peer_that_makes_us_answer_but_does_not_read_is_left():
    async def test():
        pair = Pair()
        async with trio.open_nursery() as nursery:
            pair.nursery = nursery
            nursery.start_soon(pair.server.run)
            pings = Frame(Kind.PING, Flag.SYN, 0, 1).encode() * 5000
            with suppress(ChannelError):
                while not pair.server.ended.is_set():
                    await pair.client_channel.send(pings)
            assert "does not read" in pair.server.error

    run(test)


def test_goodbye_ends_streams_and_refuses_new_ones():
    async def test():
        async with connected() as pair:
            stream = await pair.open("/raw/1")
            pair.server.close()
            with pytest.raises(StreamEndedError):
                await stream.read()
            await pair.client.ended.wait()
            with pytest.raises(StreamEndedError):
                pair.client.open_stream()

    run(test)
