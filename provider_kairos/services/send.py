"""Offers files to the network: the sender's side (spec/edgevpn.md 8.4).

Our own nodes ask in a greeting for a file and for the part that they lack::

    asks      {"file": NAME, "offset": N, "sha256": digest of the N bytes that are there}
    answer    {"ok": true, "size": S, "mode": MODE, "offset": N or 0}
    payload   the bytes from that offset to S
    trailer   {"ok": true, "sha256": digest of all S bytes}, or {"error": CODE, "text": SENTENCE}
    thanks    {"ok": true} when the receiver has verified what it has

An offset whose digest does not fit is answered with 0: the whole file. A file that changes while it is read is an error
in the trailer. To EdgeVPN nodes: the raw bytes of one file, and a reset when they cannot all be read.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import trio

from provider_kairos.clock import Clock
from provider_kairos.errors import HostError, LocalError, NotFoundError, PeerError, PermissionHostError, Waiting
from provider_kairos.ids import PeerId
from provider_kairos.mesh.complaints import Complaints
from provider_kairos.mesh.streams import MeshStream, StreamEndedError
from provider_kairos.services import greeting
from provider_kairos.services.limits import Gate, GateFullError
from provider_kairos.services.reasons import NameTaken
from provider_kairos.services.records import FILES_BUCKET, named_peer, named_value
from provider_kairos.services.seams import LedgerAccess, MeshAccess
from provider_kairos.services.users import NotAUserError, Users

__all__ = ["EDGEVPN_PROTOCOL", "PROTOCOL", "FileSender", "open_offered"]

log = logging.getLogger(__name__)

PROTOCOL = "/kairos-p2p/file/1"
EDGEVPN_PROTOCOL = "/edgevpn/file/0.1"

MAX_STREAMS = 64
MAX_STREAMS_PER_PEER = 8

HEADER_PATIENCE = 10.0
"""Seconds for a peer's greeting."""

THANKS_PATIENCE = 120.0
"""Seconds in which a receiver writes what it has to its disk and thanks."""

PIECE = 512 * 1024
"""Bytes read at once."""


class FileSender:
    """``files`` maps names to paths, ``for_edgevpn`` names the one that Go nodes get (the only one by itself).

    Raises NotFoundError and PermissionHostError for a file that cannot be read now.
    """

    name = "files"

    def __init__(
        self,
        ledger: LedgerAccess,
        mesh: MeshAccess,
        clock: Clock,
        files: Mapping[str, Path],
        *,
        for_edgevpn: str | None = None,
    ) -> None:
        if for_edgevpn is not None and for_edgevpn not in files:
            raise LocalError(f"{for_edgevpn!r} is none of the files")
        for path in files.values():
            os.close(open_offered(path))
        self._ledger = ledger
        self._mesh = mesh
        self._files = dict(files)
        self._for_edgevpn = for_edgevpn or (next(iter(files)) if len(files) == 1 else None)
        self._users = Users(ledger, mesh.peer_id, clock)
        self._gate = Gate(MAX_STREAMS, MAX_STREAMS_PER_PEER)
        self._counts: Counter[str] = Counter()
        self._complaints = Complaints()

    @property
    def counters(self) -> Counter[str]:
        """Transfers and bytes; what was refused, by kind."""
        total = self._counts + Counter({f"files_{kind}": n for kind, n in self._complaints.counters.items()})
        return total + Counter({"files_open": self._gate.open})

    def waiting(self) -> list[Waiting]:
        """Names that others have."""
        records = self._ledger.ledger.bucket(FILES_BUCKET)
        owners = {name: named_peer(records, name) for name in self._files}
        return [
            NameTaken("file", name, owner)
            for name, owner in owners.items()
            if owner is not None and owner != self._mesh.peer_id
        ]

    async def run(self) -> None:
        """Announce and serve until cancelled."""
        for name, path in self._files.items():
            log.info("offering file %r: %s", name, path)
            self._ledger.announce(FILES_BUCKET, name, named_value(self._mesh.peer_id, name))
        if self._for_edgevpn is None:
            log.info("EdgeVPN nodes get none of them: their protocol tells no name. --edgevpn NAME chooses one")
        self._mesh.set_stream_handler(PROTOCOL, self._serve_ours)
        if self._for_edgevpn is not None:
            self._mesh.set_stream_handler(EDGEVPN_PROTOCOL, self._serve_edgevpns)
        try:
            await trio.sleep_forever()
        finally:
            self._mesh.remove_handler(PROTOCOL)
            self._mesh.remove_handler(EDGEVPN_PROTOCOL)

    async def _serve_ours(self, peer: PeerId, stream: MeshStream) -> None:
        name = ""
        try:
            with self._gate.pass_through(peer):
                with trio.fail_after(HEADER_PATIENCE):
                    asked = await greeting.read(stream)
                name = greeting.text_of(asked, "file")
                await self._users.admit(peer)
                path = self._files.get(name)
                if path is None:
                    await self._refuse(peer, stream, "unknown", f"this node offers no file {name[:80]!r}")
                    return
                transfer = await trio.to_thread.run_sync(_Transfer, path)
                try:
                    await self._send(peer, name, stream, transfer, asked)
                finally:
                    transfer.close()
        except (GateFullError, NotAUserError) as error:
            await self._refuse(peer, stream, "full" if isinstance(error, GateFullError) else "not_a_user", str(error))
        except (HostError, NotFoundError) as error:
            log.warning("file %r: %s", name, error)
            await self._refuse(peer, stream, "unreadable", "the file cannot be read")
        except trio.TooSlowError:
            await self._refuse(peer, stream, "no_greeting", f"no greeting within {HEADER_PATIENCE:.0f} s")

    async def _send(
        self, peer: PeerId, name: str, stream: MeshStream, transfer: _Transfer, asked: Mapping[str, object]
    ) -> None:
        offset, digest = asked.get("offset", 0), asked.get("sha256", "")
        start = 0
        if isinstance(offset, int) and 0 < offset <= transfer.size:
            start = offset if await trio.to_thread.run_sync(transfer.skip, offset) == digest else 0
            if not start:
                await trio.to_thread.run_sync(transfer.rewind)
        await stream.write(greeting.encode({"ok": True, "size": transfer.size, "mode": transfer.mode, "offset": start}))
        log.info("file %r goes to %s%s", name, peer, f" from byte {start} on" if start else "")
        problem = await self._pour(name, stream, transfer)
        if transfer.sent < transfer.size:
            await stream.reset()  # the receiver waits for bytes: only a reset ends that
            return
        if problem:
            await stream.write(greeting.refusal("changed", problem))
        else:
            await stream.write(greeting.encode({"ok": True, "sha256": transfer.sha256}))
        stream.close_write()
        with trio.move_on_after(THANKS_PATIENCE):
            with suppress(greeting.GreetingError, greeting.RefusedError, StreamEndedError):
                await greeting.expect_ok(stream)
                self._counts["files_verified"] += 1
                log.info("file %r is complete at %s", name, peer)
                return
            log.warning("file %r: %s did not say that it has it", name, peer)

    async def _serve_edgevpns(self, peer: PeerId, stream: MeshStream) -> None:
        """No greeting and no words: a refusal is a reset."""
        assert self._for_edgevpn is not None
        name = self._for_edgevpn
        try:
            with self._gate.pass_through(peer):
                await self._users.admit(peer)
                transfer = await trio.to_thread.run_sync(_Transfer, self._files[name])
                try:
                    log.info("file %r goes to %s (EdgeVPN: nothing tells whether it arrives)", name, peer)
                    if await self._pour(name, stream, transfer):
                        await stream.reset()
                finally:
                    transfer.close()
        except GateFullError as error:
            self._complaints.complain(peer, "full", str(error))
            await stream.reset()
        except NotAUserError as error:
            self._complaints.complain(peer, "not_a_user", str(error))
            await stream.reset()
        except (HostError, NotFoundError) as error:
            log.warning("file %r: %s", name, error)
            await stream.reset()

    async def _pour(self, name: str, stream: MeshStream, transfer: _Transfer) -> str:
        """Send what is left of a file. Returns what is wrong with what was sent; empty when it is right."""
        self._counts["files_transfers"] += 1
        try:
            while piece := await trio.to_thread.run_sync(transfer.read):
                await stream.write(piece)
                self._counts["files_bytes_out"] += len(piece)
            problem = transfer.problem()
        except HostError as error:
            problem = str(error)
        if problem:
            log.warning("file %r: %s", name, problem)
            self._complaints.counters["changed"] += 1
        return problem

    async def _refuse(self, peer: PeerId, stream: MeshStream, kind: str, text: str) -> None:
        self._complaints.complain(peer, kind, text)
        with suppress(StreamEndedError, PeerError):
            await stream.write(greeting.refusal(kind, text))
        await stream.close()


class _Transfer:
    """One reading of a file, hashed on the way. Its size is the one that it has when it is opened."""

    def __init__(self, path: Path) -> None:
        self._fd = open_offered(path)
        self._path = path
        self._before = os.fstat(self._fd)
        self.size = self._before.st_size
        self.mode = stat.S_IMODE(self._before.st_mode) & 0o777
        self.sent = 0
        self._digest = hashlib.sha256()

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def skip(self, count: int) -> str:
        """Read over the first bytes; returns their digest."""
        while self.sent < count and self._take(min(PIECE, count - self.sent)):
            pass
        return self.sha256

    def rewind(self) -> None:
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.sent = 0
        self._digest = hashlib.sha256()

    def read(self) -> bytes:
        """The next piece; nothing at the end."""
        return self._take(min(PIECE, self.size - self.sent))

    def _take(self, count: int) -> bytes:
        try:
            piece = os.read(self._fd, count) if count else b""
        except OSError as error:
            raise HostError(f"cannot read {self._path}: {error.strerror}", hint="check the disk") from error
        self._digest.update(piece)
        self.sent += len(piece)
        return piece

    def problem(self) -> str:
        """Why what was read is not the file that was offered; empty when it is."""
        now = os.fstat(self._fd)
        if self.sent < self.size or now.st_size != self.size or now.st_mtime_ns != self._before.st_mtime_ns:
            return "the file was changed while it was sent"
        return ""

    def close(self) -> None:
        os.close(self._fd)


def open_offered(path: Path) -> int:
    """A descriptor of a file to send. Raises NotFoundError, PermissionHostError, HostError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except PermissionError:
        raise PermissionHostError(f"{path} may not be read by this user", hint="run as its owner") from None
    except OSError as error:
        raise HostError(f"cannot read {path}: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise HostError(f"{path} is no ordinary file", hint="pack a directory with tar first")
    return descriptor
