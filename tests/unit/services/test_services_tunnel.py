"""Tunnels: what is sent arrives, ends and resets travel, a slow reader costs a window and no more."""

from __future__ import annotations

import hashlib

import pytest
import trio
import trio.testing

from provider_kairos.clock import ManualClock
from provider_kairos.mesh.muxer import HIGH_WATER
from provider_kairos.mesh.muxer_stream import MAX_WINDOW
from provider_kairos.mesh.streams import StreamEndedError
from provider_kairos.services import tunnel
from provider_kairos.services.testing import MemoryNetwork, read_all
from provider_kairos.services.tunnel import Ending, Manners, Tally, splice

PROTOCOL = "/tunnel/1"


class Bench:
    """A TCP client, a tunnel, and the far end of its stream."""

    def __init__(self, nursery, manners=Manners.OURS):
        self.network = MemoryNetwork(nursery, ManualClock())
        self.nursery = nursery
        self.manners = manners
        self.tally = Tally()
        self.ended = trio.Event()
        self.ending = None
        self.far_ready = trio.Event()
        self.hold = trio.Event()

    async def start(self):
        near, far = self.network.node("near"), self.network.node("far")

        async def keep(_peer, stream):
            self.far = stream
            self.far_ready.set()
            await self.hold.wait()

        far.set_stream_handler(PROTOCOL, keep)
        listener = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.client = await trio.open_tcp_stream("127.0.0.1", listener[0].socket.getsockname()[1])
        local = await listener[0].accept()
        await listener[0].aclose()
        self.near = await near.open_stream(far.peer_id, PROTOCOL)
        await self.far_ready.wait()

        async def run():
            self.ending = await splice(local, self.near, manners=self.manners, tally=self.tally)
            self.ended.set()

        self.nursery.start_soon(run)

    def muxers(self):
        return [muxer for pair in self.network.muxers.values() for muxer in pair]


def run(scenario, manners=Manners.OURS):
    async def main():
        async with trio.open_nursery() as nursery:
            bench = Bench(nursery, manners)
            await bench.start()
            with trio.fail_after(60):
                await scenario(bench)
            nursery.cancel_scope.cancel()
        bench.client.socket.close()

    trio.run(main)


async def read_stream(stream):
    found = bytearray()
    while data := await stream.read():
        found += data
    return bytes(found)


def test_both_directions_at_once_and_in_full():
    sent = bytes(range(256)) * 20_000  # 5 MB
    back = sent[::-1]

    async def scenario(bench):
        async with trio.open_nursery() as nursery:

            async def far():
                await bench.far.write(back)
                bench.far.close_write()

            async def client():
                await bench.client.send_all(sent)
                await bench.client.send_eof()

            results = {}

            async def collect(name, read):
                results[name] = hashlib.sha256(await read).digest()

            nursery.start_soon(far)
            nursery.start_soon(client)
            nursery.start_soon(collect, "far", read_stream(bench.far))
            nursery.start_soon(collect, "client", read_all(bench.client))
        await bench.ended.wait()
        assert results == {"far": hashlib.sha256(sent).digest(), "client": hashlib.sha256(back).digest()}
        assert bench.ending is Ending.DONE
        assert (bench.tally.out, bench.tally.into) == (len(sent), len(back))

    run(scenario)


def test_a_half_close_leaves_the_other_direction_open():
    async def scenario(bench):
        await bench.client.send_all(b"question")
        await bench.client.send_eof()
        assert await read_stream(bench.far) == b"question"
        await bench.far.write(b"answer after the end")
        bench.far.close_write()
        assert await read_all(bench.client) == b"answer after the end"
        await bench.ended.wait()
        assert bench.ending is Ending.DONE

    run(scenario)


def test_the_peers_half_close_leaves_the_clients_direction_open():
    async def scenario(bench):
        bench.far.close_write()
        assert await bench.client.receive_some(1) == b""
        await bench.client.send_all(b"still talking")
        await bench.client.send_eof()
        assert await read_stream(bench.far) == b"still talking"

    run(scenario)


def test_a_reset_of_the_client_resets_the_stream():
    async def scenario(bench):
        tunnel.abort(bench.client)
        with pytest.raises(StreamEndedError):
            await read_stream(bench.far)
        await bench.ended.wait()
        assert bench.ending is Ending.LOCAL_RESET

    run(scenario)


def test_a_reset_of_the_stream_resets_the_client():
    async def scenario(bench):
        await bench.far.reset()
        with pytest.raises(trio.BrokenResourceError):
            await read_all(bench.client)
        assert bench.ending is Ending.STREAM_RESET

    run(scenario)


def test_a_lost_connection_resets_the_client():
    async def scenario(bench):
        bench.network.cut("near", "far")
        with pytest.raises(trio.BrokenResourceError):
            await read_all(bench.client)
        assert bench.ending is Ending.STREAM_RESET

    run(scenario)


def test_a_client_that_does_not_read_stops_the_peer_within_a_window():
    async def scenario(bench):
        sent = 0

        async def pour():
            nonlocal sent
            while True:
                await bench.far.write(b"x" * 50_000)
                sent += 50_000

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            before = -1
            while sent != before:  # until nothing moves any more
                before = sent
                await trio.testing.wait_all_tasks_blocked(0.05)
            kernel = 16 << 20  # send and receive buffers of the client's TCP connection
            assert sent < MAX_WINDOW + HIGH_WATER + kernel
            assert all(muxer.buffered <= MAX_WINDOW for muxer in bench.muxers())
            # everything that was sent arrives once the client reads
            got = len(await bench.client.receive_some(10))
            while got < before:
                got += len(await bench.client.receive_some(1 << 20))
            nursery.cancel_scope.cancel()

    run(scenario)


def test_a_peer_that_does_not_read_stops_the_client_within_a_window():
    async def scenario(bench):
        sent = 0

        async def pour():
            nonlocal sent
            while True:
                sent += await bench.client.socket.send(b"x" * 50_000)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            before = -1
            while sent != before:
                before = sent
                await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        assert bench.tally.out <= MAX_WINDOW
        assert all(muxer.buffered <= MAX_WINDOW for muxer in bench.muxers())

    run(scenario)


def test_towards_an_edgevpn_server_the_end_waits_for_the_answer(monkeypatch):
    monkeypatch.setattr(tunnel, "QUIET", 3600)

    async def scenario(bench):
        await bench.client.send_all(b"request")
        await bench.client.send_eof()
        assert await bench.far.read() == b"request"
        await bench.far.write(b"answer")
        assert await bench.client.receive_some(100) == b"answer"
        # EdgeVPN's server would close both directions at our end: it has not come
        assert not bench.far._stream.fin_received
        bench.far.close_write()
        assert await read_all(bench.client) == b""
        await bench.ended.wait()
        assert bench.ending is Ending.DONE

    run(scenario, Manners.GO_SERVER)


def test_an_edgevpn_server_that_needs_the_end_gets_it(monkeypatch):
    monkeypatch.setattr(tunnel, "QUIET", 0.05)

    async def scenario(bench):
        await bench.client.send_all(b"upload")
        await bench.client.send_eof()
        assert await read_stream(bench.far) == b"upload"

    run(scenario, Manners.GO_SERVER)


def test_after_an_edgevpn_clients_end_nothing_is_written_to_it():
    async def scenario(bench):
        bench.far.close_write()  # EdgeVPN closes both: it will never open its window again
        assert await bench.client.receive_some(1) == b""
        await bench.client.send_all(b"z" * 3_000_000)  # more than any window
        await bench.client.send_eof()
        await bench.ended.wait()
        assert bench.ending is Ending.DONE
        assert await read_stream(bench.far) == b""

    run(scenario, Manners.GO_CLIENT)


def test_cancelling_resets_both_ends():
    async def main():
        async with trio.open_nursery() as outer:
            async with trio.open_nursery() as nursery:
                bench = Bench(nursery)
                bench.network._nursery = outer  # the network outlives the tunnel here
                await bench.start()
                nursery.cancel_scope.cancel()
            with trio.fail_after(60):
                with pytest.raises(trio.BrokenResourceError):
                    await read_all(bench.client)
                with pytest.raises(StreamEndedError):
                    await read_stream(bench.far)
            outer.cancel_scope.cancel()
        bench.client.socket.close()

    trio.run(main)
