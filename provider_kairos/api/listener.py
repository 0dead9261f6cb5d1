"""The socket of the API: how it comes to be, who may open it, and how it goes away.

Specification: spec/edgevpn.md 11.1. A unix socket is never open to others for a moment: the kernel takes the mode of
the file from the socket, which is closed to all but us before it is bound. What lies in the way is refused with a
remedy, except a socket that nobody serves any more. A socket that systemd passes on is used as it is.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from provider_kairos.api.address import Address
from provider_kairos.errors import HostError, PermissionHostError

__all__ = ["open_listener"]

log = logging.getLogger(__name__)

PROBE_SECONDS = 0.25
BACKLOG = 64


@asynccontextmanager
async def open_listener(
    address: Address, unix_mode: int = 0o600, environ: Mapping[str, str] | None = None
) -> AsyncIterator[list[trio.SocketListener]]:
    """Listeners at ``address``; on leaving they are closed and our socket file is removed.

    Raises HostError when something is in the way, PermissionHostError when the place may not be written.
    """
    if not address.path:
        if not address.loopback:
            log.warning("the API at %s has no authentication and is reachable from other machines", address)
        listeners = await _open_tcp(address)
        try:
            yield listeners
        finally:
            for listener in listeners:
                listener.socket.close()
        return
    inherited = _from_systemd(environ or {})
    if inherited is not None:
        with inherited:
            yield [trio.SocketListener(inherited)]
        return
    await _clear_the_way(address.path)
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        identity = await _bind_unix(sock, address.path, unix_mode)
        try:
            yield [trio.SocketListener(sock)]
        finally:
            _remove(address.path, identity)


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
    """The socket that systemd opened for us, if it did."""
    if environ.get("LISTEN_PID") != str(os.getpid()):
        return None
    count = environ.get("LISTEN_FDS", "")
    if count != "1":
        raise HostError(f"systemd passed on {count or 'no'} sockets", hint="the socket unit must have exactly one")
    return trio.socket.from_stdlib_socket(socket.socket(fileno=3))


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
