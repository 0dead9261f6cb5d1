"""Entry of ``kairos-p2p daemon``: environment in, one daemon, exit code out.

Everything comes from the environment file that the provider wrote (spec/edgevpn.md 12); nothing secret is ever on the
command line. SIGTERM and SIGINT end it in order: what waits for the disk is written first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import signal
from collections.abc import Mapping

import trio

from provider_kairos import __version__
from provider_kairos.clock import SystemClock
from provider_kairos.daemon import last_words
from provider_kairos.daemon.daemon import Daemon
from provider_kairos.daemon.edgevpn_files import take_over
from provider_kairos.daemon.logs import set_up
from provider_kairos.daemon.settings import DaemonSettings, read_settings
from provider_kairos.daemon.store import Store
from provider_kairos.daemon.supervision import known_error
from provider_kairos.errors import ExitCode, HostError, PermissionHostError, ProviderError

__all__ = ["main"]

log = logging.getLogger(__name__)


def main(environ: Mapping[str, str]) -> int:
    """Run until told to end. Returns the exit code; every refusal is one line in the log with its remedy."""
    set_up(environ.get("EDGEVPNLOGLEVEL") or "info", environ.get("EDGEVPNLIBP2PLOGLEVEL", ""))
    try:
        settings = read_settings(environ)
        # the token has been read; no child and no /proc/PID/environ reader of ours needs it any more
        os.environ.pop("EDGEVPNTOKEN", None)
        os.environ.pop("PEERGATE_AUTH", None)
        with _Lock(settings):
            trio.run(_run, settings, strict_exception_groups=True)
    except ProviderError as error:
        log.critical("%s", error)
        last_words.leave(error)
        return error.exit_code
    except BaseExceptionGroup as group:
        known = known_error(group)
        if known is None:
            raise
        log.critical("%s", known)
        last_words.leave(known)
        return known.exit_code
    return ExitCode.OK


async def _run(settings: DaemonSettings) -> None:
    log.info("Version: v%s", __version__)
    log.info("Starting EdgeVPN network")
    for name, why in settings.not_acted_on:
        log.warning("%s has no effect: %s", name, why)
    store = await trio.to_thread.run_sync(Store, settings.state_dir / "mesh.db")
    if store.damage:
        log.error("%s", store.damage)
    try:
        await trio.to_thread.run_sync(take_over, settings, store)
        daemon = Daemon(settings, store, SystemClock(), random.Random())
        log.info("Node ID: %s", daemon.mesh.peer_id)
        log.info("ledger ownership enforcement: mode=%s ttl=%gs", settings.ownership.value, settings.liveness_window)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon.run)
            with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
                async for number in signals:
                    log.info("%s: ending", signal.Signals(number).name)
                    break
            nursery.cancel_scope.cancel()
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(store.close)


class _Lock:
    """One daemon per state directory: two would write the same identity into the ledger."""

    def __init__(self, settings: DaemonSettings) -> None:
        self._path = settings.state_dir / "mesh.lock"
        self._fd = -1

    def __enter__(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise PermissionHostError(f"{self._path} may not be written", hint="run as root") from error
        except OSError as error:
            raise HostError(
                f"cannot make {self._path}: {error.strerror}", hint="check the disk and the mount"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(self._fd)
            raise HostError(
                f"another mesh daemon uses {self._path.parent}",
                hint="stop it (systemctl stop edgevpn@kairos), or set KAIROS_P2P_STATE_DIR",
            ) from error

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)
