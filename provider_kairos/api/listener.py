"""The socket of the API: how it comes to be, who may open it, and how it goes away.

Specification: spec/edgevpn.md 11.1. A unix socket is never open to others for a moment: the kernel takes the mode of
the file from the socket, which is closed to all but us before it is bound. What lies in the way is refused with a
remedy, except a socket that nobody serves any more. A socket that systemd passes on is used as it is.

The socket file of a running daemon that somebody deletes (a cleaner of /run) is made again, because without it the
provider and the command line take the daemon for dead; one that somebody else has put in its place is left alone.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import trio

from provider_kairos.api.address import Address
from provider_kairos.errors import HostError, PermissionHostError

__all__ = ["Place", "open_listener"]

log = logging.getLogger(__name__)

PROBE_SECONDS = 0.25
LOOK_SECONDS = 1.0
"""Seconds between two looks at whether the socket file is still there."""

BACKLOG = 64
_FIRST_PASSED = 3  # systemd's first descriptor
_SOCKET_UNIT = "the socket unit needs ListenStream= with an absolute path"


Handle = Callable[[trio.SocketStream], Awaitable[None]]


class Place:
    """Where we listen. ``listeners`` are open; :meth:`serve` accepts from them."""

    def __init__(self, listeners: list[trio.SocketListener]) -> None:
        self.listeners = listeners

    async def serve(self, handle: Handle) -> None:
        """Give every connection to ``handle``, each in a task of its own, until cancelled."""
        await trio.serve_listeners(handle, self.listeners)

    def close(self) -> None:
        """Listen no longer."""
        for listener in self.listeners:
            listener.socket.close()


class _SocketFile(Place):
    """A socket file of ours."""

    def __init__(self, path: str, mode: int) -> None:
        super().__init__([])
        self._path = path
        self._mode = mode
        self._identity = (0, 0)
        self._complaint = ""

    async def open(self) -> None:
        """Make the file. Raises HostError."""
        sock = trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._identity = await _bind_unix(sock, self._path, self._mode)
        except BaseException:
            sock.close()
            raise
        self.listeners = [trio.SocketListener(sock)]

    async def serve(self, handle: Handle) -> None:
        async with trio.open_nursery() as connections:
            while True:
                async with trio.open_nursery() as nursery:
                    accept = partial(trio.serve_listeners, handle, self.listeners, handler_nursery=connections)
                    nursery.start_soon(accept)
                    await self._lost()
                    nursery.cancel_scope.cancel()
                self.close()
                await self._open_again()

    async def _lost(self) -> None:
        """Return when the file is gone."""
        while True:
            await trio.sleep(LOOK_SECONDS)
            try:
                info = os.lstat(self._path)
            except FileNotFoundError:
                return
            except OSError as error:
                self._complain(f"the socket {self._path} cannot be looked at: {error.strerror}")
                continue
            if (info.st_dev, info.st_ino) != self._identity:
                self._complain(f"something else has taken the place of the API's socket {self._path}: remove it")

    async def _open_again(self) -> None:
        while True:
            try:
                await self.open()
            except HostError as error:
                self._complain(str(error))
                await trio.sleep(LOOK_SECONDS)
            else:
                log.warning("somebody deleted the API's socket %s: it is made again", self._path)
                self._complaint = ""
                return

    def _complain(self, text: str) -> None:
        if text != self._complaint:
            log.warning("%s", text)
            self._complaint = text

    def close(self) -> None:
        super().close()
        self.listeners = []

    def remove(self) -> None:
        """Take the file away, if it is still ours."""
        _remove(self._path, self._identity)


@asynccontextmanager
async def open_listener(
    address: Address, unix_mode: int = 0o600, environ: Mapping[str, str] | None = None
) -> AsyncIterator[Place]:
    """Listen at ``address``; on leaving it is closed and our socket file is removed.

    Raises HostError when something is in the way, PermissionHostError when the place may not be written.
    """
    if not address.path:
        if not address.loopback:
            log.warning("the API at %s has no authentication and is reachable from other machines", address)
        place = Place(await _open_tcp(address))
        try:
            yield place
        finally:
            place.close()
        return
    inherited = _from_systemd(environ or {})
    if inherited is not None:
        with inherited:
            yield Place([trio.SocketListener(inherited)])
        return
    await _clear_the_way(address.path)
    file = _SocketFile(address.path, unix_mode)
    await file.open()
    try:
        yield file
    finally:
        file.close()
        file.remove()


async def _open_tcp(address: Address) -> list[trio.SocketListener]:
    try:
        return list(await trio.open_tcp_listeners(address.port, host=address.host, backlog=BACKLOG))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise HostError(
                f"the API cannot listen at {address}: the address is taken",
                hint="another daemon runs, or set APILISTEN to another port or to unix://PATH",
            ) from error
        kind = PermissionHostError if error.errno in {errno.EACCES, errno.EPERM} else HostError
        raise kind(f"the API cannot listen at {address}: {error.strerror or error}", hint="check APILISTEN") from error


def _from_systemd(environ: Mapping[str, str]) -> trio.socket.SocketType | None:
    """The socket that systemd opened for us, if it did. Raises HostError when it passed on something else."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environ.get("LISTEN_FDS", "")
    if count != "1":
        raise HostError(f"systemd passed on {count or 'no'} sockets", hint="the socket unit must have exactly one")
    try:
        os.set_inheritable(_FIRST_PASSED, False)  # noqa: FBT003 - not for programs that we start
        sock = socket.socket(fileno=_FIRST_PASSED)
        listens = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise HostError(f"what systemd passed on is no socket: {error.strerror}", hint=_SOCKET_UNIT) from error
    if sock.family != socket.AF_UNIX or sock.type != socket.SOCK_STREAM or not listens:
        sock.detach()
        raise HostError("systemd passed on a socket that is no listening unix stream socket", hint=_SOCKET_UNIT)
    return trio.socket.from_stdlib_socket(sock)


async def _clear_the_way(path: str) -> None:
    """Remove a socket that nobody serves; refuse anything else."""
    try:
        kind = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    except OSError as error:
        raise _place_error(path, error) from error
    if not stat.S_ISSOCK(kind):
        raise HostError(
            f"the API cannot listen at {path}: something that is no socket is in the way",
            hint="remove it, or set APILISTEN to another path",
        )
    alive = True
    with trio.move_on_after(PROBE_SECONDS), trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            await probe.connect(path)
        except ConnectionRefusedError:
            alive = False
        except FileNotFoundError:
            return
        except OSError as error:
            raise _place_error(path, error) from error
    if alive:
        raise HostError(
            f"the API cannot listen at {path}: already served by a running daemon",
            hint="stop the other daemon, or set APILISTEN to another path",
        )
    log.info("removing the socket %s that a daemon left behind", path)
    _remove_stale(path)


def _remove_stale(path: str) -> None:
    try:
        Path(path).unlink(missing_ok=True)
    except OSError as error:
        raise _place_error(path, error) from error


async def _bind_unix(sock: trio.socket.SocketType, path: str, mode: int) -> tuple[int, int]:
    """Bind and listen; returns device and inode, so that only our own file is removed later."""
    try:
        os.fchmod(sock.fileno(), 0o600)
        await sock.bind(path)
        return _listen_unix(sock, path, mode)
    except OSError as error:
        raise _place_error(path, error) from error


def _listen_unix(sock: trio.socket.SocketType, path: str, mode: int) -> tuple[int, int]:
    info = os.lstat(path)
    Path(path).chmod(mode)
    sock.listen(BACKLOG)
    return info.st_dev, info.st_ino


def _remove(path: str, identity: tuple[int, int]) -> None:
    try:
        info = os.lstat(path)
        if (info.st_dev, info.st_ino) == identity:
            Path(path).unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        log.warning("cannot remove the socket %s: %s", path, error.strerror)


def _place_error(path: str, error: OSError) -> HostError:
    message = f"the API cannot listen at {path}: {error.strerror}"
    if isinstance(error, PermissionError):
        return PermissionHostError(message, hint="run as root, or set APILISTEN to a path of yours")
    if isinstance(error, FileNotFoundError):
        return HostError(message, hint=f"make the directory {Path(path).parent}")
    return HostError(message, hint="set APILISTEN to another path")
