"""Fakes for tests of the daemon's parts: a mesh without network, a device and links without kernel."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Sequence
from itertools import takewhile
from types import TracebackType
from typing import Any, Self

import trio

from provider_kairos.errors import HostError, NotFoundError, PeerError, UnreachableError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.streams import StreamEndedError
from provider_kairos.system.links import IFF_UP, Address, Link

__all__ = ["FakeLinks", "FakeMesh", "FakeStream", "FakeTun", "ipv4"]


def ipv4(source: str, destination: str, payload: bytes = b"") -> bytes:
    """An IPv4 packet; its checksum is not right, nobody here looks."""
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, 17, 0)
    return head + ipaddress.ip_address(source).packed + ipaddress.ip_address(destination).packed + payload


class FakeStream:
    """A stream to a peer. ``room`` is how many bytes :meth:`try_write_packet` takes; ``ended`` makes writes fail."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.room = room
        self.ended = False
        self.closed = False
        self.written: list[bytes] = []
        self.wrote = trio.Event()
        self.hold: trio.Event | None = None

    def _take(self, data: bytes) -> None:
        self.written.append(data)
        self.wrote.set()
        self.wrote = trio.Event()

    async def write(self, data: bytes) -> None:
        """Waits while ``hold`` is an unset event."""
        await trio.lowlevel.checkpoint()
        if self.hold is not None:
            await self.hold.wait()
        if self.ended:
            raise StreamEndedError("the stream was reset")
        self._take(data)

    write_packet = write

    def try_write_packet(self, packet: bytes) -> bool:
        """Takes what there is room for."""
        if self.ended or self.hold is not None or len(packet) > self.room:
            return False
        self._take(packet)
        return True

    def try_write_packets(self, packets: Sequence[bytes]) -> int:
        """As :meth:`try_write_packet`, until one finds no room."""
        return sum(1 for _ in takewhile(self.try_write_packet, packets))

    def close_write(self) -> None:
        """Half-closed."""
        self.closed = True


class FakeMesh:
    """``paths`` maps (peer, protocol) to a stream, or to the error that opening raises; what is missing is refused."""

    def __init__(self, peer_id: str = "us") -> None:
        self.peer_id = PeerId(peer_id)
        self.paths: dict[tuple[str, str], FakeStream | Exception] = {}
        self.opened: list[tuple[str, str]] = []
        self.handlers: dict[str, Callable[..., Any]] = {}
        self.room: set[PeerId] = set()
        self.stuck = False

    def on_chain(self) -> set[PeerId]:
        """Peers in the ledger room: ``room``."""
        return self.room

    async def open_stream(self, peer: PeerId, protocol: str) -> Any:
        """As the mesh's."""
        await trio.lowlevel.checkpoint()
        self.opened.append((peer, protocol))
        if self.stuck:
            await trio.sleep_forever()
        found = self.paths.get((peer, protocol))
        if isinstance(found, Exception):
            raise found
        if found is None:
            raise PeerError("na")
        return found

    def unreachable(self, peer: str, *protocols: str) -> None:
        """Nobody is there."""
        for protocol in protocols:
            self.paths[peer, protocol] = UnreachableError(f"peer {peer} is not connected")

    def set_stream_handler(self, protocol: str, handler: Callable[..., Any]) -> None:
        """Remembered."""
        self.handlers[protocol] = handler

    set_packet_handler = set_stream_handler

    def remove_handler(self, protocol: str) -> None:
        """Forgotten."""
        self.handlers.pop(protocol, None)


class FakeTun:
    """A device: :meth:`arrives` gives the daemon packets to read, ``written`` is what it wrote."""

    def __init__(self) -> None:
        self._sender, self._receiver = trio.open_memory_channel[list[bytes]](64)
        self.written: list[bytes] = []
        self.wrote = trio.Event()
        self.closed = False
        self.gone = False

    def arrives(self, *packets: bytes) -> None:
        """The kernel routed packets into the device."""
        self._sender.send_nowait(list(packets))

    def delete(self) -> None:
        """Somebody deleted the interface."""
        self.gone = True
        self._sender.close()

    async def read(self) -> list[bytes]:
        """As the device's."""
        try:
            return await self._receiver.receive()
        except trio.EndOfChannel:
            raise HostError("interface edgevpn0 is gone") from None

    def write(self, packet: bytes) -> bool:
        """As the device's."""
        if self.closed:
            raise trio.ClosedResourceError
        if self.gone:
            raise HostError("interface edgevpn0 is gone")
        self.written.append(packet)
        self.wrote.set()
        self.wrote = trio.Event()
        return True

    def close(self) -> None:
        """Detached."""
        self.closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class FakeWatch:
    """Wakes when :meth:`FakeLinks.change` is called."""

    def __init__(self, links: FakeLinks) -> None:
        self._links = links

    async def wait(self) -> None:
        """As the real one."""
        await self._links.changed.wait()
        self._links.changed = trio.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FakeLinks:
    """This machine's links: name to flags and MTU, and addresses. ``refuse`` is raised by every change."""

    def __init__(self, **links: int) -> None:
        self.mtu = dict(links)
        self.up: set[str] = set()
        self.held: list[tuple[str, str]] = []
        self.refuse: HostError | None = None
        self.changes: list[str] = []
        self.changed = trio.Event()

    def change(self) -> None:
        """Tell the watchers."""
        self.changed.set()

    def link(self, name: str) -> Link | None:
        """As the real one."""
        if name not in self.mtu:
            return None
        return Link(7, name, IFF_UP if name in self.up else 0, self.mtu[name], "tun")

    def addresses(self, interface: str | None = None) -> list[Address]:
        """As the real one."""
        found = [Address(1, name, ipaddress.ip_interface(text)) for name, text in self.held]
        return [each for each in found if interface in {None, each.interface}]

    def _do(self, interface: str, words: str) -> None:
        if self.refuse is not None:
            raise self.refuse
        if interface not in self.mtu:
            raise NotFoundError(f"interface {interface} does not exist")
        self.changes.append(words)

    def add_address(self, interface: str, address: str) -> bool:
        """As the real one."""
        self._do(interface, f"add {address}")
        self.held.append((interface, address))
        return True

    def delete_address(self, interface: str, address: str) -> bool:
        """As the real one."""
        self._do(interface, f"delete {address}")
        self.held.remove((interface, address))
        return True

    def set_up(self, interface: str) -> None:
        """As the real one."""
        self._do(interface, "up")
        self.up.add(interface)

    def set_mtu(self, interface: str, mtu: int) -> None:
        """As the real one."""
        self._do(interface, f"mtu {mtu}")
        self.mtu[interface] = mtu

    def watch(self) -> Any:
        """As the real one."""
        return FakeWatch(self)
