"""Receive windows: a stream that is read quickly gets more, all streams together only so much, and give it back."""

from __future__ import annotations

from typing import Any

import trio

from provider_kairos.mesh.multistream import select
from provider_kairos.mesh.muxer import MAX_GROWN
from provider_kairos.mesh.muxer_stream import MAX_WINDOW
from provider_kairos.mesh.testing import muxer_pair
from provider_kairos.mesh.yamux_frames import INITIAL_WINDOW


def run(scenario, rtt):
    async def main():
        accepted: list[Any] = []
        client, server, *_ = muxer_pair(serves=lambda _protocol: True, on_stream=accepted.append)
        server.rtt = rtt
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.run)
            nursery.start_soon(server.run)
            with trio.fail_after(60):
                await scenario(client, server, accepted)
            nursery.cancel_scope.cancel()

    trio.run(main)


async def pour(client, accepted, size):
    """One stream more, and so many bytes through it, read as they come; returns the reader's end."""
    stream = client.open_stream()
    stream.protocol = await select(("/pour/1",), stream.read, stream.write)
    reader = accepted[-1]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.write, bytes(size))
        while size:
            size -= len(await reader.read())
    return stream, reader


def test_a_stream_that_is_read_quickly_grows_to_the_limit():
    async def scenario(client, server, accepted):
        _, reader = await pour(client, accepted, 4 * MAX_WINDOW)
        assert server.grown == reader.grown == MAX_WINDOW - INITIAL_WINDOW

    run(scenario, rtt=60.0)


def test_a_slow_link_or_reader_gets_no_more():
    async def scenario(client, server, accepted):
        await pour(client, accepted, 4 * MAX_WINDOW)
        assert server.grown == 0

    run(scenario, rtt=0.0)


def test_all_streams_together_are_bounded_and_give_back():
    async def scenario(client, server, accepted):
        pairs = [await pour(client, accepted, 4 * MAX_WINDOW) for _ in range(8)]
        assert MAX_GROWN - MAX_WINDOW < server.grown <= MAX_GROWN
        for stream, reader in pairs:
            await stream.close()
            assert await reader.read() == b""
            await reader.close()
        assert server.grown == 0

    run(scenario, rtt=60.0)
