"""Init systems: systemd and OpenRC behind one face (spec/provider.md 3.4, 3.8.2).

Commands are argument lists, never a shell's text. What is written is escaped for the reader at hand: systemd expands
``%`` and ``$`` in ``ExecStart=`` and splits at white space; OpenRC passes ``command_args`` through ``eval``.

All calls block (a daemon reload takes tens of milliseconds): from trio code use ``trio.to_thread.run_sync``.
What goes into a unit or an argument list is decided elsewhere.
"""

from __future__ import annotations

import logging
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Protocol

from provider_kairos.errors import HostError, LocalError, PermissionHostError, TimeoutHostError
from provider_kairos.system.files import host_error, render_env, write_atomic, write_env

__all__ = ["InitSystem", "OpenRC", "Systemd", "detect", "quote_exec"]

log = logging.getLogger(__name__)

_SYSTEMD_SIGNS = ("run/systemd/system", "sbin/systemctl", "usr/bin/systemctl", "usr/sbin/systemctl")
_OPENRC_SIGNS = ("sbin/openrc", "usr/sbin/openrc", "bin/openrc", "usr/bin/openrc")
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@:,./=+-]+\Z")
_PLAIN_PATH = re.compile(r"/[A-Za-z0-9_@:,./=+-]*\Z")
_UNIT_NAME = re.compile(r"[A-Za-z0-9:_.\\@-]+\Z")
_C_ESCAPES = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "%": "%%", "$": "$$"}


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

    def env_file(self, service: str) -> Path:
        """Where this service's environment file belongs."""
        ...

    def write_unit(self, service: str, text: str) -> bool:
        """Install a unit (or service script); True when that changed anything. No reload."""
        ...

    def write_override(
        self,
        service: str,
        argv: Sequence[str],
        env_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> bool:
        """Make an installed service run ``argv`` with ``environment`` (written to ``env_file``, mode 0600).

        True when anything on disk changed; then ``daemon_reload`` and a restart are due.
        """
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


def quote_exec(argv: Sequence[str]) -> str:
    """One ``ExecStart=`` command line whose words reach the program unchanged.

    Raises:
        LocalError: No words, or a program that is not a plain absolute path (systemd refuses relative ones, and does
            not expand ``$`` there, so no spelling of such a path is right).
    """
    if not argv:
        raise LocalError("an empty command line")
    if not _PLAIN_PATH.match(argv[0]):
        raise LocalError(f"not a plain absolute path: {argv[0]!r}")
    words = [argv[0]]
    for word in argv[1:]:
        if "\0" in word:
            raise LocalError("a NUL byte in an argument")
        words.append(word if _PLAIN_WORD.match(word) else f'"{"".join(_C_ESCAPES.get(char, char) for char in word)}"')
    return " ".join(words)


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

    def env_file(self, service: str) -> Path:
        """``/etc/sysconfig/<service>``."""
        return self.root / "etc/sysconfig" / _unit(service).removesuffix(".service")

    def unit_path(self, service: str) -> Path:
        """``/etc/systemd/system/<service>.service``."""
        return self.root / "etc/systemd/system" / _unit(service)

    def write_unit(self, service: str, text: str) -> bool:
        """Install a unit file, mode 0644; True when that changed anything. No reload."""
        return self._write(self.unit_path(service), text, 0o644)

    def write_override(
        self,
        service: str,
        argv: Sequence[str],
        env_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> bool:
        """The drop-in ``<service>.service.d/override.conf``, mode 0600: arguments may hold secrets."""
        environment_path = env_file or self.env_file(service)
        changed = False
        if environment is not None:
            changed = self._write(environment_path, render_env(environment), 0o600)
        lines = [
            "[Service]",
            # k3s ends with status 0 on many fatal errors (spec/k3s.md 0.3).
            "Restart=always",
            f"EnvironmentFile=-{str(environment_path).replace('%', '%%')}",
            # The empty one clears the unit's own command; without it systemd would see two.
            "ExecStart=",
            f"ExecStart={quote_exec(argv)}",
        ]
        path = self.unit_path(service).with_name(f"{_unit(service)}.d") / "override.conf"
        return self._write(path, "\n".join(lines) + "\n", 0o600) or changed


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

    def env_file(self, service: str) -> Path:
        """``/etc/rancher/k3s/<service>.env`` or ``/etc/k0s/<service>.env``."""
        name = self._service(service)
        return self.root / ("etc/k0s" if name.startswith("k0s") else "etc/rancher/k3s") / f"{name}.env"

    def write_unit(self, service: str, text: str) -> bool:
        """Install a service script, mode 0755; True when that changed anything."""
        return self._write(self._script(service), text, 0o755)

    def write_override(
        self,
        service: str,
        argv: Sequence[str],
        env_file: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> bool:
        """``command_args`` in the environment file that the service script sources, mode 0600.

        The script names the program itself, so ``argv[0]`` is left out, as in the original.
        """
        if not argv:
            raise LocalError("an empty command line")
        name = self._service(service)
        # The script evals command_args: quoted for a shell once, then once more for the file.
        arguments = f"{shlex.join(argv[1:])} >>/var/log/{name}.log 2>&1"
        values = {**(environment or {}), "command_args": arguments}
        path = env_file or self.env_file(service)
        try:
            if path.read_text(encoding="utf-8") == render_env(values):
                return False
        except (OSError, UnicodeDecodeError) as error:
            log.debug("%s is written anew: %s", path, error)
        write_env(path, values)
        return True
