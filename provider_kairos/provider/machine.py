"""The provider's one door to the machine: files, stages, hooks, services (spec/provider.md 3.8, 3.9).

All methods block; the loop calls them in a worker thread. :class:`FakeMachine` is the same in memory, records what was
done and can fail at any point: a product of the package, for tests of everything above it.
"""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from provider_kairos.errors import HostError
from provider_kairos.system import files
from provider_kairos.system.init import InitSystem, detect

__all__ = ["Crash", "FakeMachine", "Machine", "RealMachine"]

log = logging.getLogger(__name__)

_STAGE_TIMEOUT = 1800.0


class Machine(Protocol):
    """What the provider may do to a machine. Raises HostError when it refuses."""

    def run_stage(self, name: str) -> None:
        """``kairos-agent run-stage NAME``; a missing program and the exit status are ignored."""
        ...

    def run_hook(self, path: str) -> None:
        """Run an executable file if it exists; its failure is ignored."""
        ...

    def read(self, path: str) -> str | None:
        """A file's text; None when there is none."""
        ...

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        ...

    def write(self, path: str, text: str, mode: int = 0o600) -> bool:
        """Replace a file, durably; True when that changed anything."""
        ...

    def remove(self, path: str) -> bool:
        """Delete a file, durably; True when there was one."""
        ...

    def daemon_reload(self) -> None:
        """Make changed unit files count."""
        ...

    def start(self, service: str) -> None:
        """Ask for a start."""
        ...

    def restart(self, service: str) -> None:
        """Ask for a restart."""
        ...

    def stop(self, service: str) -> None:
        """Stop and wait."""
        ...

    def enable(self, service: str) -> None:
        """Start it at every boot."""
        ...

    def disable(self, service: str) -> None:
        """No longer start it at boot."""
        ...

    def is_active(self, service: str) -> bool:
        """Whether it runs."""
        ...

    def write_unit(self, service: str, text: str) -> bool:
        """Install a unit or service script; True when that changed anything."""
        ...

    @property
    def openrc(self) -> bool:
        """Whether services are OpenRC's."""
        ...


class RealMachine:
    """This machine, or what lies below ``root``."""

    def __init__(self, root: Path = Path("/"), init: InitSystem | None = None) -> None:
        self.root = root
        self._init = init

    @property
    def init(self) -> InitSystem:
        """The init system, looked for when first needed: nothing-to-do must work without one."""
        if self._init is None:
            self._init = detect(self.root)
        return self._init

    @property
    def openrc(self) -> bool:
        """See :class:`Machine`."""
        return self.init.name == "openrc"

    def _path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def _quietly(self, argv: list[str], what: str) -> None:
        try:
            done = subprocess.run(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_STAGE_TIMEOUT,
            )
        except FileNotFoundError:
            log.debug("%s: %s is not on this machine", what, argv[0])
        except (OSError, subprocess.TimeoutExpired) as error:
            log.warning("%s: %s", what, error)
        else:
            if done.returncode:
                log.info("%s ended with status %d", what, done.returncode)

    def run_stage(self, name: str) -> None:
        """See :class:`Machine`."""
        self._quietly(["kairos-agent", "run-stage", name], f"stage {name}")

    def run_hook(self, path: str) -> None:
        """See :class:`Machine`."""
        hook = self._path(path)
        if hook.exists():
            self._quietly([str(hook)], f"hook {path}")

    def read(self, path: str) -> str | None:
        """See :class:`Machine`."""
        return files.read_text(self._path(path))

    def exists(self, path: str) -> bool:
        """See :class:`Machine`."""
        return self._path(path).exists()

    def write(self, path: str, text: str, mode: int = 0o600) -> bool:
        """See :class:`Machine`."""
        target = self._path(path)
        try:
            status = os.stat(target)  # noqa: PTH116  # one call for presence and mode
            if status.st_mode & 0o777 == mode and status.st_size < 4 << 20 and target.read_bytes() == text.encode():
                return False
        except OSError:
            log.debug("%s is new", path)
        files.write_atomic(target, text, mode)
        return True

    def remove(self, path: str) -> bool:
        """See :class:`Machine`."""
        return files.remove(self._path(path))

    def daemon_reload(self) -> None:
        """See :class:`Machine`."""
        self.init.daemon_reload()

    def start(self, service: str) -> None:
        """See :class:`Machine`."""
        self.init.start(service)

    def restart(self, service: str) -> None:
        """See :class:`Machine`."""
        self.init.restart(service)

    def stop(self, service: str) -> None:
        """See :class:`Machine`."""
        self.init.stop(service)

    def enable(self, service: str) -> None:
        """See :class:`Machine`."""
        self.init.enable(service)

    def disable(self, service: str) -> None:
        """See :class:`Machine`."""
        self.init.disable(service)

    def is_active(self, service: str) -> bool:
        """See :class:`Machine`."""
        return self.init.is_active(service)

    def write_unit(self, service: str, text: str) -> bool:
        """See :class:`Machine`."""
        return self.init.write_unit(service, text)


class Crash(BaseException):  # no error: the power went
    """The fake machine's power cut."""


class FakeMachine:
    """A machine in memory.

    ``done`` lists every change in order; ``crash_after`` is the number of changes after which every further one
    raises :class:`Crash` (before it happens); ``refuse`` maps an action's text to the HostError that it raises.
    """

    def __init__(self, tree: Mapping[str, str] | None = None) -> None:
        self.files: dict[str, str] = dict(tree or {})
        self.modes: dict[str, int] = {}
        self.done: list[str] = []
        self.active: set[str] = set()
        self.enabled: set[str] = set()
        self.crash_after: int | None = None
        self.refuse: dict[str, HostError] = {}
        self.openrc = False

    def _do(self, action: str) -> None:
        if self.crash_after is not None and len(self.done) >= self.crash_after:
            raise Crash(action)
        if action in self.refuse:
            raise self.refuse[action]
        self.done.append(action)

    def run_stage(self, name: str) -> None:
        """See :class:`Machine`."""
        self._do(f"stage {name}")

    def run_hook(self, path: str) -> None:
        """See :class:`Machine`."""
        if path in self.files:
            self._do(f"hook {path}")

    def read(self, path: str) -> str | None:
        """See :class:`Machine`."""
        return self.files.get(path)

    def exists(self, path: str) -> bool:
        """See :class:`Machine`."""
        return path in self.files

    def write(self, path: str, text: str, mode: int = 0o600) -> bool:
        """See :class:`Machine`."""
        if self.files.get(path) == text and self.modes.get(path) == mode:
            return False
        self._do(f"write {path}")
        self.files[path] = text
        self.modes[path] = mode
        return True

    def remove(self, path: str) -> bool:
        """See :class:`Machine`."""
        if path not in self.files:
            return False
        self._do(f"remove {path}")
        del self.files[path]
        return True

    def daemon_reload(self) -> None:
        """See :class:`Machine`."""
        self._do("daemon-reload")

    def start(self, service: str) -> None:
        """See :class:`Machine`."""
        self._do(f"start {service}")
        self.active.add(service)

    def restart(self, service: str) -> None:
        """See :class:`Machine`."""
        self._do(f"restart {service}")
        self.active.add(service)

    def stop(self, service: str) -> None:
        """See :class:`Machine`."""
        self._do(f"stop {service}")
        self.active.discard(service)

    def enable(self, service: str) -> None:
        """See :class:`Machine`."""
        self._do(f"enable {service}")
        self.enabled.add(service)

    def disable(self, service: str) -> None:
        """See :class:`Machine`."""
        self._do(f"disable {service}")
        self.enabled.discard(service)

    def is_active(self, service: str) -> bool:
        """See :class:`Machine`."""
        return service in self.active

    def write_unit(self, service: str, text: str) -> bool:
        """See :class:`Machine`."""
        folder = "/etc/init.d/" if self.openrc else "/etc/systemd/system/"
        suffix = "" if self.openrc else ".service"
        return self.write(f"{folder}{service}{suffix}", text, 0o644)
