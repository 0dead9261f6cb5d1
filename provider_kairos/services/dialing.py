"""Opens a stream to a peer for a service, a file or egress: our own protocol where the peer has it, else EdgeVPN's.

An EdgeVPN peer resets a stream right after the protocol echo when it does not (yet) find us in ``users``, without
having read anything (spec/edgevpn.md 17 on 8.1 and 8.3). Until one stream to such a peer has lived, each is therefore watched for a
moment before it is used, and opened again while our record is on its way.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import trio

from provider_kairos.errors import PeerError, UnreachableError
from provider_kairos.ids import PeerId
from provider_kairos.mesh.streams import MeshStream, StreamEndedError
from provider_kairos.services import greeting
from provider_kairos.services.seams import MeshAccess

__all__ = ["DialFailedError", "Dialer", "NotServedError", "Opened"]

PATIENCE = 15.0
"""Seconds for everything: connecting, agreeing, being admitted, the peer's own dialling."""

SETTLE = 0.25
"""Seconds in which an EdgeVPN peer's reset comes."""

GAP = 0.5
"""Seconds between two attempts to be admitted."""

ASK_AGAIN = 60.0
"""Seconds for which a peer that does not speak ours is not asked again."""


class DialFailedError(PeerError):
    """There is no stream; the message says why, for people."""


class NotServedError(DialFailedError):
    """The peer does not know the protocol."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A stream that is ready for payload. ``native``: our own protocol, with the peer's ``answer`` to our greeting.

    ``first`` is payload that came while the stream was watched.
    """

    stream: MeshStream
    native: bool
    answer: Mapping[str, object]
    first: bytes = b""


class Dialer:
    """For one pair of protocols."""

    def __init__(self, mesh: MeshAccess, ours: str, edgevpns: str) -> None:
        self._mesh = mesh
        self._ours = ours
        self._edgevpns = edgevpns
        self._not_ours: dict[PeerId, float] = {}
        self._admitted: set[PeerId] = set()

    async def open(self, peer: PeerId, hello: Mapping[str, object], *, patience: float = PATIENCE) -> Opened:
        """A stream to ``peer``. ``hello`` says in our own protocol what is wanted.

        Raises DialFailedError, and RefusedError when a peer of ours says no.
        """

        async def either(trail: list[str]) -> Opened:
            try:
                return await self._open_ours(peer, hello)
            except NotServedError:
                return await self._open_edgevpns(peer, trail)

        return await self._in_time(peer, either, patience)

    async def open_ours(self, peer: PeerId, hello: Mapping[str, object], *, patience: float = PATIENCE) -> Opened:
        """A stream in our own protocol. Raises NotServedError where the peer has none; else as :meth:`open`."""

        async def ours(_trail: list[str]) -> Opened:
            return await self._open_ours(peer, hello)

        return await self._in_time(peer, ours, patience)

    async def open_edgevpns(self, peer: PeerId, *, patience: float = PATIENCE) -> Opened:
        """A stream in EdgeVPN's protocol. Raises DialFailedError."""

        async def edgevpns(trail: list[str]) -> Opened:
            return await self._open_edgevpns(peer, trail)

        return await self._in_time(peer, edgevpns, patience)

    async def _in_time(
        self, peer: PeerId, attempt: Callable[[list[str]], Awaitable[Opened]], patience: float
    ) -> Opened:
        if peer == self._mesh.peer_id:
            raise DialFailedError("it is this node itself")
        trail: list[str] = []
        try:
            with trio.fail_after(patience):
                return await attempt(trail)
        except trio.TooSlowError:
            raise DialFailedError(trail[-1] if trail else f"no answer within {patience:.0f} s") from None
        except UnreachableError as error:
            raise DialFailedError(error.message) from error

    def forget(self, peer: PeerId) -> None:
        """A stream to the peer was reset before anything came: it may not know us any more."""
        self._admitted.discard(peer)

    async def _open_ours(self, peer: PeerId, hello: Mapping[str, object]) -> Opened:
        if self._not_ours.get(peer, float("-inf")) > trio.current_time():
            raise NotServedError(f"it does not serve {self._ours}")
        try:
            stream = await self._open(peer, self._ours)
        except NotServedError:
            self._not_ours[peer] = trio.current_time() + ASK_AGAIN
            raise
        try:
            await stream.write(greeting.encode(hello))
            answer = await greeting.expect_ok(stream)
        except StreamEndedError as error:
            raise DialFailedError("it ended the stream without an answer") from error
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise
        return Opened(stream, native=True, answer=answer)

    async def _open_edgevpns(self, peer: PeerId, trail: list[str]) -> Opened:
        while True:
            stream = await self._open(peer, self._edgevpns)
            if (first := await self._watch(peer, stream)) is not None:
                return Opened(stream, native=False, answer={}, first=first)
            trail.append("it resets our streams: it does not find us in its users yet, or nothing listens behind it")
            await trio.sleep(GAP)

    async def _open(self, peer: PeerId, protocol: str) -> MeshStream:
        try:
            return await self._mesh.open_stream(peer, protocol)
        except StreamEndedError as error:
            raise DialFailedError("the connection ended") from error
        except UnreachableError:
            raise
        except PeerError as error:
            raise NotServedError(f"it does not serve {protocol}") from error

    async def _watch(self, peer: PeerId, stream: MeshStream) -> bytes | None:
        """What came meanwhile; None when the peer reset the stream."""
        if peer in self._admitted:
            return b""
        first = b""
        try:
            with trio.move_on_after(SETTLE):
                first = await stream.read()
        except StreamEndedError:
            return None
        except BaseException:
            with trio.CancelScope(shield=True):
                await stream.reset()
            raise
        self._admitted.add(peer)
        return first
