"""A command that is a node of its own: joins the network for as long as the command runs, then leaves it in order.

``service``, ``file``, ``egress``, ``dns`` and ``bridge`` use :func:`run`. The network comes from EDGEVPNTOKEN or
EDGEVPNCONFIG, from the file of ``--config``, or from the environment file of this machine's daemon; every other variable of EdgeVPN's
common flags is read as the daemon reads it (spec/edgevpn.md 12.3). The node has no interface and serves no API unless
the command asks for them, and a fresh identity in a private directory that is removed at the end, unless a key is
kept (EDGEVPNPRIVKEYCACHE; spec/edgevpn.md 12.3). Progress and reasons of waiting go to stderr; stdout is the command's.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import random
import shutil
import signal
import stat
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import trio

from provider_kairos.clock import SystemClock
from provider_kairos.daemon.daemon import Daemon
from provider_kairos.daemon.edgevpn_files import take_over
from provider_kairos.daemon.parts import MakeServices
from provider_kairos.daemon.settings import DaemonSettings, read_settings
from provider_kairos.daemon.store import Store
from provider_kairos.daemon.supervision import known_error
from provider_kairos.errors import ExitCode, HostError, NotFoundError, PermissionHostError
from provider_kairos.ledger.engine import HEARTBEATS
from provider_kairos.quoting import parse_env_file

__all__ = ["DAEMON_ENV_FILE", "Work", "node_environment", "node_settings", "run", "say"]

DAEMON_ENV_FILE = Path("/etc/systemd/system.conf.d/edgevpn-kairos.env")
"""Where the provider writes the daemon's environment (spec/provider.md 3.8)."""

LOOK = 0.5
"""Seconds between two looks at what the node waits for."""

PATIENCE = 2.0
"""Seconds that joining takes anyway; reasons are printed when it takes longer."""

FAREWELL = 0.4
"""Seconds for a broadcast that withdraws our records to reach the peers."""

STATE_PREFIX = "kairos-p2p-node-"

SWEEP = 60.0
"""Seconds after which a directory that nobody holds was left by a command that was killed."""

_OF_THE_DAEMON = frozenset(
    {
        "EDGEVPNLEDGERSTATE",
        "EDGEVPNLISTENMADDRS",
        "EDGEVPNLOGLEVEL",
        "EDGEVPNPRIVKEYCACHE",
        "EDGEVPNPRIVKEYCACHEDIR",
    }
)
"""Variables in a daemon's file that are not for another node beside it: identity, ports, state."""

Work = Callable[[Daemon], Awaitable[int]]
"""What a command does with its running node; returns the exit code. The node leaves when it returns."""


def say(text: str) -> None:
    """One line of progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def run(
    work: Work | None,
    *,
    services: MakeServices,
    config: str | None = None,
    vpn: bool = False,
    api: bool = False,
    adapt: Callable[[DaemonSettings], DaemonSettings] = lambda settings: settings,
    environ: Mapping[str, str] | None = None,
) -> int:
    """Run a node with ``services`` until ``work`` is done; without work until SIGINT or SIGTERM, which then give 0.

    ``config`` is what ``--config`` names, ``adapt`` has the last word on the settings (an address for the bridge, the
    place of the API). A signal during work gives 128 and its number.

    Raises ConfigError and TokenError for the environment, HostError for what the machine refuses.
    """
    environ = os.environ if environ is None else environ
    variables = node_environment(environ, config)
    _log_to_stderr(environ.get("EDGEVPNLOGLEVEL") or "warn")
    with _state_directory() as directory:
        settings = adapt(node_settings(variables, directory, vpn=vpn, api=api))
        # the token has been read; no child and no /proc/PID/environ reader of ours needs it any more
        os.environ.pop("EDGEVPNTOKEN", None)
        for name, why in settings.not_acted_on:
            if environ.get(name):
                say(f"{name} has no effect: {why}")
        with _held_key(settings):
            store = Store(directory / "mesh.db")
            try:
                take_over(settings, store)
                return trio.run(_run, settings, store, services, work, strict_exception_groups=True)
            except BaseExceptionGroup as group:
                known = known_error(group)
                if known is None:
                    raise
                raise known from group
            finally:
                store.close()


# --- settings -------------------------------------------------------------------------------------------------------


def node_environment(environ: Mapping[str, str], config: str | None) -> dict[str, str]:
    """The variables of the node: those of the environment, over those of the file that stands for the network.

    ``config`` is a network file (YAML, as EdgeVPN's ``--config``) or a daemon's environment file; without it, and
    without EDGEVPNTOKEN or EDGEVPNCONFIG, the environment file of this machine's daemon is taken where there is one.

    Raises NotFoundError, PermissionHostError, HostError or ConfigError for the file.
    """
    own = {name: value for name, value in environ.items() if value}
    if config is None:
        if own.get("EDGEVPNTOKEN") or own.get("EDGEVPNCONFIG") or not _exists(DAEMON_ENV_FILE):
            return own
        say(f"network: the one of this machine's daemon ({DAEMON_ENV_FILE})")
        return {**_of_network(_read(DAEMON_ENV_FILE)), **own}
    own.pop("EDGEVPNTOKEN", None)
    own.pop("EDGEVPNCONFIG", None)
    text = _read(Path(config))
    if "EDGEVPNTOKEN=" not in text and "EDGEVPNCONFIG=" not in text:
        return {**own, "EDGEVPNCONFIG": config}
    return {**_of_network(text), **own}


def _of_network(text: str) -> dict[str, str]:
    return {name: value for name, value in parse_env_file(text).items() if name not in _OF_THE_DAEMON}


def node_settings(variables: Mapping[str, str], directory: Path, *, vpn: bool, api: bool) -> DaemonSettings:
    """The node's settings: the daemon's, without what belongs to the machine's daemon alone.

    Raises ConfigError and TokenError.
    """
    settings = read_settings(variables)
    return dataclasses.replace(
        settings,
        vpn=vpn,
        dhcp=settings.dhcp and vpn,
        api=api,
        state_dir=directory,
        lease_dir=directory / "lease",
        ledger_state=None,
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError:  # its directory is closed to us: whoever may read it will be told when they ask for it
        return False


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise NotFoundError(f"there is no file {path}") from None
    except PermissionError:
        raise PermissionHostError(
            f"{path} may not be read by this user", hint="run as root, or set EDGEVPNTOKEN"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise HostError(f"cannot read {path}: {error}") from error


class _Lines(logging.Formatter):
    """What is done as it is, what is wrong with its level."""

    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno <= logging.INFO else f"{record.levelname.lower()}: {text}"


def _log_to_stderr(level: str) -> None:
    levels = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40}
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines("%(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.ERROR)
    wanted = levels.get(level.lower(), 40)
    logging.getLogger("provider_kairos").setLevel(wanted)
    # what the command itself does is its progress
    logging.getLogger("provider_kairos.services").setLevel(min(wanted, logging.INFO))


# --- identity -------------------------------------------------------------------------------------------------------


@contextmanager
def _state_directory() -> Iterator[Path]:
    """A directory of mode 0700 that goes with the command; what killed commands left goes first."""
    try:
        directory = Path(tempfile.mkdtemp(prefix=STATE_PREFIX))
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(
            f"cannot make a temporary directory: {error.strerror}", hint="set TMPDIR to a place that can be written"
        ) from error
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sweep(directory.parent)
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(held)


def _sweep(place: Path) -> None:
    """Remove directories of commands that were killed: ours, old enough to be held, and held by nobody."""
    for left in place.glob(f"{STATE_PREFIX}*"):
        try:
            found = left.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or time.time() - found.st_mtime < SWEEP:
                continue
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
        except OSError:  # it is in use
            continue
        finally:
            os.close(descriptor)


@contextmanager
def _held_key(settings: DaemonSettings) -> Iterator[None]:
    """While the block runs no other command is the node whose key is kept."""
    if not settings.privkey_cache:
        yield
        return
    directory = settings.privkey_cache_dir.expanduser()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except PermissionError as error:
        raise PermissionHostError(f"{directory} may not be used", hint="set EDGEVPNPRIVKEYCACHEDIR") from error
    except OSError as error:
        raise HostError(f"cannot open {directory}: {error.strerror}", hint="set EDGEVPNPRIVKEYCACHEDIR") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise HostError(
                f"another command is the node whose key is in {directory}",
                hint="give each its own EDGEVPNPRIVKEYCACHEDIR",
            ) from error
        yield
    finally:
        os.close(descriptor)


# --- life -----------------------------------------------------------------------------------------------------------


async def _run(settings: DaemonSettings, store: Store, services: MakeServices, work: Work | None) -> int:
    code: int = ExitCode.OK
    daemon = Daemon(settings, store, SystemClock(), random.Random(), services=services)
    say(f"node {daemon.mesh.peer_id}")
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def obey() -> None:
                nonlocal code
                async for number in signals:
                    code = ExitCode.OK if work is None else 128 + number
                    scope.cancel()
                    say(f"{signal.Signals(number).name}: leaving the network")
                    break

            nursery.start_soon(obey)
            with scope:
                await nursery.start(daemon.run)
                async with trio.open_nursery() as inner:
                    inner.start_soon(_tell_reasons, daemon)
                    if work is None:
                        await trio.sleep_forever()
                    else:
                        code = await work(daemon)
                    inner.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await _leave(daemon)
            nursery.cancel_scope.cancel()
    return code


async def _tell_reasons(daemon: Daemon) -> None:
    """Print what the node waits for, each reason when it begins, and when nothing is left of them."""
    await trio.sleep(PATIENCE)
    told: dict[str, str] = {}
    while True:
        reasons = {
            str(reason["code"]): str(reason["text"])
            for reason in daemon.backend.status()["waiting"]
            if reason["code"] != "setting-without-effect"
        }
        for code, text in reasons.items():
            if code not in told:
                say(f"waiting: {text}")
        if told and not reasons:
            say("nothing is missing any more")
        told = reasons
        await trio.sleep(LOOK)


async def _leave(daemon: Daemon) -> None:
    """Withdraw what the ledger says of us: a fresh identity never comes back, and its records would stay for good.

    The heartbeat goes last, because others take a record's withdrawal only from an owner that lives.
    """
    if not daemon.mesh.on_chain():
        return
    ours = list(_our_records(daemon))
    for bucket, key in ours:
        if bucket != HEARTBEATS:
            daemon.ledger.retract(bucket, key)
            daemon.ledger.delete(bucket, key)
    await trio.sleep(FAREWELL)
    for bucket, key in ours:
        if bucket == HEARTBEATS:
            daemon.ledger.delete(bucket, key)
    await trio.sleep(FAREWELL / 2)


def _our_records(daemon: Daemon) -> Iterator[tuple[str, str]]:
    us = daemon.mesh.peer_id
    for bucket, records in daemon.ledger.ledger.current().items():
        for key, text in records.items():
            if key == us or _peer_of(text) == us:
                yield bucket, key


def _peer_of(text: str) -> str | None:
    if "PeerID" not in text:
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    peer = value.get("PeerID") if isinstance(value, dict) else None
    return peer if isinstance(peer, str) else None
