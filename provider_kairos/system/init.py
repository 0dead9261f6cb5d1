"""Init systems: systemd and OpenRC behind one face (spec/provider.md 3.4, 3.8.2).

Commands are argument lists, never a shell's text.

All calls block (a daemon reload takes tens of milliseconds): from trio code use ``trio.to_thread.run_sync``.
What goes into a unit is decided elsewhere; ``provider_kairos.quoting`` escapes it for its reader.
"""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
from pathlib import Path
from typing import ClassVar, Protocol

from provider_kairos.errors import HostError, LocalError, PermissionHostError, TimeoutHostError
from provider_kairos.system.files import host_error, write_atomic

__all__ = ["InitSystem", "OpenRC", "Systemd", "detect"]

log = logging.getLogger(__name__)

_SYSTEMD_SIGNS = ("run/systemd/system", "sbin/systemctl", "usr/bin/systemctl", "usr/sbin/systemctl")
_OPENRC_SIGNS = ("sbin/openrc", "usr/sbin/openrc", "bin/openrc", "usr/bin/openrc")
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]+\Z")


class InitSystem(Protocol):
    """What the provider needs of an init system. Every method raises HostError when the machine refuses."""

    name: ClassVar[str]

    def daemon_reload(self) -> None:
        """Make changed unit files count."""
        ...

    def start(self, service: str) -> None:
        """Ask for a start and return without waiting for it."""
        ...

    def restart(self, service: str) -> None:
        """Ask for a restart (a start when it does not run) and return without waiting for it."""
        ...

    def stop(self, service: str) -> None:
        """Stop it and wait until it has ended."""
        ...

    def enable(self, service: str) -> None:
        """Start it at every boot."""
        ...

    def disable(self, service: str) -> None:
        """No longer start it at boot."""
        ...

    def is_active(self, service: str) -> bool:
        """Whether it runs now."""
        ...

    def write_unit(self, service: str, text: str) -> bool:
        """Install a unit (or service script); True when that changed anything. No reload."""
        ...


def detect(root: Path = Path("/")) -> Systemd | OpenRC:
    """The machine's init system by the same signs, in the same order, as the original.

    Raises:
        HostError: Neither.
    """
    if any((root / sign).exists() for sign in _SYSTEMD_SIGNS):
        return Systemd(root)
    if any((root / sign).exists() for sign in _OPENRC_SIGNS):
        return OpenRC(root)
    raise HostError("neither systemd nor OpenRC is on this machine", hint="install one, or start the daemon by hand")


class _Commands:
    """Shared by both: running a program, writing only what differs."""

    timeout: ClassVar[float] = 90.0

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def _run(self, *argv: str, check: bool = True) -> int:
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=self.timeout)
        except FileNotFoundError as error:
            raise HostError(f"{argv[0]} is not on this machine", hint="install the init system's tools") from error
        except PermissionError as error:
            raise PermissionHostError(f"{argv[0]} may not be run", hint="run as root") from error
        except subprocess.TimeoutExpired as error:
            raise TimeoutHostError(f"{shlex.join(argv)} did not end within {self.timeout:.0f} s") from error
        if check and done.returncode:
            lines = (done.stderr or done.stdout).decode("utf-8", "replace").strip().splitlines()
            raise HostError(
                f"{shlex.join(argv)} ended with status {done.returncode}: {lines[-1] if lines else 'no message'}"
            )
        return done.returncode

    @staticmethod
    def _write(path: Path, text: str, mode: int) -> bool:
        try:
            if path.read_text(encoding="utf-8") == text and path.stat().st_mode & 0o777 == mode:
                return False
        except FileNotFoundError:
            log.debug("%s is new", path)
        except (OSError, UnicodeDecodeError) as error:
            log.debug("%s is replaced: %s", path, error)
        write_atomic(path, text, mode)
        return True


def _unit(service: str) -> str:
    """``k3s`` → ``k3s.service``; names that could leave the directory are our own bug."""
    name = service.removesuffix(".service")
    if not _UNIT_NAME.match(name) or name.startswith("."):
        raise LocalError(f"not a service name: {service!r}")
    return f"{name}.service"


class Systemd(_Commands):
    """systemd through ``systemctl``."""

    name: ClassVar[str] = "systemd"

    def daemon_reload(self) -> None:
        """Make changed unit files count."""
        self._run("systemctl", "daemon-reload")

    def start(self, service: str) -> None:
        """Ask for a start and return without waiting: units ordered after us would wait for us."""
        self._run("systemctl", "start", "--no-block", _unit(service))

    def restart(self, service: str) -> None:
        """Ask for a restart and return without waiting."""
        self._run("systemctl", "restart", "--no-block", _unit(service))

    def stop(self, service: str) -> None:
        """Stop it and wait until it has ended."""
        self._run("systemctl", "stop", _unit(service))

    def enable(self, service: str) -> None:
        """Start it at every boot."""
        self._run("systemctl", "enable", "--no-block", _unit(service))

    def disable(self, service: str) -> None:
        """No longer start it at boot."""
        self._run("systemctl", "disable", "--no-block", _unit(service))

    def is_active(self, service: str) -> bool:
        """Whether it runs now (``activating`` is not yet)."""
        return self._run("systemctl", "is-active", "--quiet", _unit(service), check=False) == 0

    def unit_path(self, service: str) -> Path:
        """``/etc/systemd/system/<service>.service``."""
        return self.root / "etc/systemd/system" / _unit(service)

    def write_unit(self, service: str, text: str) -> bool:
        """Install a unit file, mode 0644; True when that changed anything. No reload."""
        return self._write(self.unit_path(service), text, 0o644)


class OpenRC(_Commands):
    """OpenRC through the service scripts. Instances (``edgevpn@kairos``) are plain services there (``edgevpn``)."""

    name: ClassVar[str] = "openrc"

    @staticmethod
    def _service(service: str) -> str:
        return _unit(service).removesuffix(".service").partition("@")[0]

    def _script(self, service: str) -> Path:
        return self.root / "etc/init.d" / self._service(service)

    def daemon_reload(self) -> None:
        """Nothing to do: scripts are read at every call."""

    def start(self, service: str) -> None:
        """Start it; OpenRC's supervisor returns at once."""
        self._run(str(self._script(service)), "start")

    def restart(self, service: str) -> None:
        """Restart it."""
        self._run(str(self._script(service)), "restart")

    def stop(self, service: str) -> None:
        """Stop it and wait until it has ended."""
        self._run(str(self._script(service)), "stop")

    def enable(self, service: str) -> None:
        """Link it into the default run level."""
        link = self.root / "etc/runlevels/default" / self._service(service)
        target = Path("/etc/init.d") / self._service(service)
        try:
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.is_symlink() and link.readlink() == target:
                return
            link.unlink(missing_ok=True)
            link.symlink_to(target)
        except OSError as error:
            raise host_error("enable service", link, error) from error

    def disable(self, service: str) -> None:
        """Remove it from the default run level."""
        link = self.root / "etc/runlevels/default" / self._service(service)
        try:
            link.unlink(missing_ok=True)
        except OSError as error:
            raise host_error("disable service", link, error) from error

    def is_active(self, service: str) -> bool:
        """Whether it runs now."""
        script = self._script(service)
        return script.exists() and self._run(str(script), "status", check=False) == 0

    def write_unit(self, service: str, text: str) -> bool:
        """Install a service script, mode 0755; True when that changed anything."""
        return self._write(self._script(service), text, 0o755)
