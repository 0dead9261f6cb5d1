"""Fetches a file that another node offers: the receiver's side (spec/edgevpn.md 8.4; our protocol in ``services.send``).

From one of our nodes: with its length and its SHA-256, in as many attempts as it takes, each going on where the last
one ended; the file gets its name only when all of it is right. From an EdgeVPN node: whatever comes until the end of the stream, in
one attempt, because nothing tells how much it should be; a reset in the middle is an error here (EdgeVPN's own
receiver calls it success).
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TypeGuard

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import HostError, ProviderError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.streams import MeshStream, StreamEndedError
from provider_kairos.services import greeting, send
from provider_kairos.services.dialing import Dialer, DialFailedError, Opened
from provider_kairos.services.partfile import PartFile
from provider_kairos.services.reasons import FileNotOffered, PeerNotReached
from provider_kairos.services.records import FILES_BUCKET, named_peer
from provider_kairos.services.seams import LedgerAccess, MeshAccess
from provider_kairos.services.users import Users

__all__ = ["FileReceiver", "Received", "TruncatedError"]

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Seconds between two attempts."""

PIECE = 512 * 1024
"""Bytes that are written and hashed at once."""

MOST_WRONG = 2
"""Attempts whose digest may be wrong before the sender is not believed any more."""


class TruncatedError(ProviderError):
    """The file did not arrive whole, or is not what the sender has."""


@dataclass(frozen=True, slots=True)
class Received:
    """A file that is in its place. ``verified`` is False when the sender could not say what it should be."""

    path: Path
    size: int
    sha256: str
    peer: PeerId
    verified: bool
    resumed_at: int


class FileReceiver:
    """Fetches ``name`` into ``path``; :attr:`done` is set when it is there or cannot be had (:attr:`failure`)."""

    name = "file-receive"

    def __init__(self, ledger: LedgerAccess, mesh: MeshAccess, clock: Clock, name: str, path: Path) -> None:
        self.done = trio.Event()
        self.failure: ProviderError | None = None
        self.received: Received | None = None
        self.progress: tuple[int, int | None] = (0, None)
        self._ledger = ledger
        self._file = name
        self._path = path
        self._users = Users(ledger, mesh.peer_id, clock)
        self._dialer = Dialer(mesh, send.PROTOCOL, send.EDGEVPN_PROTOCOL)
        self._counts: Counter[str] = Counter()
        self._trouble: PeerNotReached | None = None
        self._wrong = 0

    @property
    def counters(self) -> Counter[str]:
        """Attempts and bytes."""
        return self._counts

    def waiting(self) -> list[Waiting]:
        """Nobody offers it, or who does was not reached the last time."""
        if self.done.is_set():
            return []
        if named_peer(self._ledger.ledger.bucket(FILES_BUCKET), self._file) is None:
            return [FileNotOffered(self._file)]
        return [self._trouble] if self._trouble is not None else []

    async def run(self) -> None:
        """Fetch it, then do nothing until cancelled."""
        self._users.announce()
        try:
            while self.received is None:
                peer = await self._find()
                self.received = await self._attempt(peer)
                if self.received is None:
                    await trio.sleep(PAUSE)
        except (HostError, TruncatedError) as error:
            self.failure = error
        self.done.set()
        await trio.sleep_forever()

    async def _find(self) -> PeerId:
        seen = self._ledger.revision
        while (peer := named_peer(self._ledger.ledger.bucket(FILES_BUCKET), self._file)) is None:
            seen = await self._ledger.wait_revision(seen, frozenset({FILES_BUCKET}))
        return peer

    async def _attempt(self, peer: PeerId) -> Received | None:
        """One try; None when another one may help. Raises HostError, TruncatedError."""
        part = await trio.to_thread.run_sync(PartFile, self._path)
        try:
            hello = {"file": self._file, "offset": part.size, "sha256": part.sha256}
            opened = await self._dialer.open(peer, hello)
            self._trouble = None
            self._counts["file_receive_attempts"] += 1
            take = self._take_ours if opened.native else self._take_edgevpns
            try:
                return await take(peer, part, opened)
            except BaseException:
                with trio.CancelScope(shield=True):
                    await opened.stream.reset()
                raise
        except (DialFailedError, greeting.RefusedError) as error:
            self._note(peer, error.message)
        except (greeting.GreetingError, StreamEndedError) as error:
            self._note(peer, f"the transfer broke off at byte {part.size}: {error.message}")
        finally:
            part.close()
        return None

    async def _take_ours(self, peer: PeerId, part: PartFile, opened: Opened) -> Received | None:
        size, offset = opened.answer.get("size"), opened.answer.get("offset", 0)
        if not _is_count(size) or not _is_count(offset) or offset not in {0, part.size} or offset > size:
            raise greeting.GreetingError("an answer without a size, or with an offset that was not asked for")
        mode = opened.answer.get("mode")
        if offset:
            log.info("file %r: going on at byte %d of %d", self._file, offset, size)
        elif part.size:
            log.info("file %r: what is in %s is not its beginning: from the start", self._file, part.part)
            await trio.to_thread.run_sync(part.start_over)
        await self._pour(part, opened.stream, size)
        trailer = await greeting.expect_ok(opened.stream)
        expected = greeting.text_of(trailer, "sha256")
        if part.sha256 != expected:
            await self._wrong_digest(peer, part, expected)
        await trio.to_thread.run_sync(part.finish, mode if _is_count(mode) else None)
        try:
            await opened.stream.write(greeting.encode({"ok": True}))
        except StreamEndedError:
            log.debug("%s does not hear that we have the file", peer)
        await opened.stream.close()
        return Received(self._path, part.size, expected, peer, verified=True, resumed_at=offset)

    async def _wrong_digest(self, peer: PeerId, part: PartFile, expected: str) -> NoReturn:
        await trio.to_thread.run_sync(part.discard)
        self._wrong += 1
        if self._wrong >= MOST_WRONG:
            raise TruncatedError(
                f"the file {self._file!r} of {peer} has SHA-256 {part.sha256}, its sender says {expected:.64}",
                hint="it was thrown away",
            )
        raise greeting.GreetingError("the SHA-256 is wrong, all of it is fetched again")

    async def _take_edgevpns(self, peer: PeerId, part: PartFile, opened: Opened) -> Received | None:
        await trio.to_thread.run_sync(part.start_over)
        await trio.to_thread.run_sync(part.write, opened.first)
        try:
            await self._pour(part, opened.stream, None)
        except StreamEndedError as error:
            if not part.size:
                self._dialer.forget(peer)
                raise
            raise TruncatedError(
                f"the transfer of {self._file!r} broke off after {part.size} bytes: {error.message}",
                hint=f"they are in {part.part}; run the command again: from an EdgeVPN sender it starts over",
            ) from error
        await opened.stream.close()
        await trio.to_thread.run_sync(part.finish, None)
        return Received(self._path, part.size, part.sha256, peer, verified=False, resumed_at=0)

    async def _pour(self, part: PartFile, stream: MeshStream, size: int | None) -> None:
        """Write what comes, up to ``size`` bytes in all or to the stream's end, in pieces that are worth a thread.

        Raises StreamEndedError, when what had come before is written; GreetingError when the stream ends before ``size``.
        """
        ended = False
        while not ended and part.size != size:
            pieces, amount = [], 0
            most = PIECE if size is None else min(PIECE, size - part.size)
            try:
                while amount < most and (data := await stream.read(most - amount)):
                    pieces.append(data)
                    amount += len(data)
                ended = amount < most
            finally:
                if pieces:
                    with trio.CancelScope(shield=True):
                        await trio.to_thread.run_sync(part.write, b"".join(pieces))
                    self._counts["file_receive_bytes_in"] += amount
                    self.progress = (part.size, size)
        if size is not None and part.size < size:
            raise greeting.GreetingError("the stream ends early")

    def _note(self, peer: PeerId, problem: str) -> None:
        self._counts["file_receive_broken_off"] += 1
        self._trouble = PeerNotReached(f"file {self._file!r}", peer, problem)


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
