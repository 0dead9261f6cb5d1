"""What peers send is fed at once or waits within bounds, and is counted once."""

from __future__ import annotations

import random
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from provider_kairos.clock import ManualClock
from provider_kairos.errors import PeerError
from provider_kairos.ids import PeerId
from provider_kairos.mesh import node
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.multistream import select
from provider_kairos.mesh.muxer_stream import Stream, StreamEndedError
from provider_kairos.mesh.node import Mesh
from provider_kairos.mesh.settings import MeshSettings
from provider_kairos.mesh.testing import muxer_pair
from provider_kairos.mesh.views import Message
from provider_kairos.token.codec import generate


@asynccontextmanager
async def fed(take):
    """A client's stream, and the outcome of feeding its other end to ``take``."""
    accepted: list[Stream] = []
    client, server, *_ = muxer_pair(serves=lambda _protocol: True, on_stream=accepted.append)
    outcome: list[object] = []

    async def feed(stream):
        try:
            await stream.feed(take)
            outcome.append("end")
        except PeerError as error:
            outcome.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.run)
        nursery.start_soon(server.run)
        stream = client.open_stream()
        await select(("/x/1",), stream.read, stream.write)
        await stream.write(b"early")
        await wait_all_tasks_blocked()
        nursery.start_soon(feed, accepted[0])
        await wait_all_tasks_blocked()
        yield stream, outcome
        nursery.cancel_scope.cancel()


def test_a_stream_is_fed_in_order_what_came_before_included():
    async def main():
        got: list[bytes] = []
        async with fed(got.append) as (stream, outcome):
            for number in range(2000):
                await stream.write(b"%d" % number * 300)  # more than a window: it is credited
            stream.close_write()
            await wait_all_tasks_blocked()
            assert b"".join(got) == b"early" + b"".join(b"%d" % number * 300 for number in range(2000))
            assert outcome == ["end"]

    trio.run(main)


def test_what_the_taker_raises_ends_the_feeding_and_not_the_connection():
    async def main():
        got: list[bytes] = []

        def take(data):
            if data == b"bad":
                raise PeerError("bad frame")
            got.append(data)

        async with fed(take) as (stream, outcome):
            await stream.write(b"bad")
            await wait_all_tasks_blocked()
            await stream.write(b"later")
            await wait_all_tasks_blocked()
            assert [str(each) for each in outcome] == ["bad frame"]
            assert got == [b"early"]
            other = stream._muxer.open_stream()
            assert await select(("/x/1",), other.read, other.write) == "/x/1"

    trio.run(main)


def test_a_reset_ends_the_feeding():
    async def main():
        async with fed(lambda _data: None) as (stream, outcome):
            stream.reset()
            await wait_all_tasks_blocked()
            assert isinstance(outcome[0], StreamEndedError)

    trio.run(main)


def test_messages_that_wait_for_the_ledger_are_bounded_in_bytes(monkeypatch):
    monkeypatch.setattr(node, "MESSAGE_BYTES", 1000)
    settings = MeshSettings(seed=b"s" * 32, token=generate(), mdns=False)
    mesh = Mesh(settings, ManualClock(), random.Random(1))

    def deliver(size):
        mesh.deliver(Message(PeerId("author"), PeerId("via"), bytes(size), None))

    async def main():
        deliver(5000)  # alone it passes, whatever its size
        deliver(1)
        assert mesh.messages.statistics().current_buffer_used == 1
        await mesh.messages.receive()
        for _ in range(20):
            deliver(100)
        assert mesh.messages.statistics().current_buffer_used == 10
        for _ in range(5):
            await mesh.messages.receive()
        for _ in range(20):
            deliver(100)
        assert mesh.messages.statistics().current_buffer_used == 10
        assert mesh.counters["messages_over_limit"] == 1 + 10 + 15

    trio.run(main)


@pytest.mark.parametrize("counted", [True, False])
def test_a_complaint_is_logged_once_per_peer_and_minute_and_counted_where_it_is_to_be(caplog, counted):
    async def main():
        complaints = Complaints()
        for _ in range(10):
            (complaints.complain if counted else complaints.say)(PeerId("peer"), "replayed", "dropped a message")
        assert complaints.counters["replayed"] == (10 if counted else 0)

    trio.run(main)
    assert len(caplog.records) == 1
