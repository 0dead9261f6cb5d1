"""Fakes for tests of the mesh and of what is built on it: byte channels in memory, muxers that talk to each other.

No socket and no libp2p. With trio's mock clock, minutes of silence pass at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import trio

from provider_kairos.ids import PeerId
from provider_kairos.mesh.channels import ChannelError
from provider_kairos.mesh.muxer import Muxer
from provider_kairos.mesh.muxer_stream import PacketHandler, Stream

__all__ = ["MemoryChannel", "memory_channels", "muxer_pair"]


class MemoryChannel:
    """One end of a byte channel. Set ``silent`` to lose everything that is sent, as a dead link does."""

    def __init__(
        self, sender: trio.MemorySendChannel[bytes], receiver: trio.MemoryReceiveChannel[bytes], piece: int
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._piece = piece
        self.silent = False
        self.idle = False
        self.sent: list[bytes] = []

    async def receive(self) -> bytes:
        """Some bytes; none at the end."""
        try:
            return await self._receiver.receive()
        except (trio.EndOfChannel, trio.ClosedResourceError):
            return b""

    async def send(self, data: bytes) -> None:
        """Send, in pieces of the size given to :func:`memory_channels`."""
        self.sent.append(data)
        if self.silent:
            await trio.lowlevel.checkpoint()
            return
        try:
            for start in range(0, len(data), self._piece):
                await self._sender.send(data[start : start + self._piece])
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            raise ChannelError("the other end is closed") from error

    def send_nowait(self, data: bytes) -> bool:
        """Never: it is never idle."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close both directions."""
        await self._sender.aclose()
        await self._receiver.aclose()


def memory_channels(piece: int = 1 << 20) -> tuple[MemoryChannel, MemoryChannel]:
    """Two connected ends. ``piece`` is the longest piece that one receive returns."""
    one_sender, one_receiver = trio.open_memory_channel[bytes](0)
    two_sender, two_receiver = trio.open_memory_channel[bytes](0)
    return MemoryChannel(one_sender, two_receiver, piece), MemoryChannel(two_sender, one_receiver, piece)


def muxer_pair(
    *,
    serves: Callable[[str], bool],
    on_stream: Callable[[Stream], None],
    packet_handlers: Mapping[str, PacketHandler] | None = None,
    piece: int = 1 << 20,
) -> tuple[Muxer, Muxer, MemoryChannel, MemoryChannel]:
    """A client that serves nothing, a server with the given handlers, and their channels. Start both ``run``."""
    client_channel, server_channel = memory_channels(piece)
    client = Muxer(
        client_channel,
        PeerId("server"),
        initiator=True,
        serves=lambda _protocol: False,
        on_stream=lambda stream: stream.reset(),
        packet_handlers={},
    )
    server = Muxer(
        server_channel,
        PeerId("client"),
        initiator=False,
        serves=serves,
        on_stream=on_stream,
        packet_handlers=packet_handlers or {},
    )
    return client, server, client_channel, server_channel
