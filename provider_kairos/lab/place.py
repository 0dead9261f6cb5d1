"""Where a lab keeps its socket, lock and log on the machine, who owns it, and what a dead one left.

``/run/kairos-p2p-lab/<name>`` for root, else below ``$XDG_RUNTIME_DIR`` or ``/tmp/kairos-p2p-lab-<uid>``; always
0700. A living supervisor holds a lock on ``lock``: whoever gets that lock knows that the lab is gone and may
clean up. Namespaces, mounts and links need no cleaning: they went with the supervisor.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from provider_kairos.errors import NotFoundError, TimeoutHostError, UnreachableError
from provider_kairos.lab.model import LabError

__all__ = ["SAVED_SYSCTLS", "Place", "base_folder", "remove_cgroups", "restore_sysctls", "save_sysctls"]

# What a real k3s changes for the whole machine (spec/k3s.md 10).
SAVED_SYSCTLS: Final = ("vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops")
_DISK_STORE: Final = Path("/var/lib/kairos-p2p-lab")


def base_folder() -> Path:
    """The folder of all labs of this user."""
    uid = os.geteuid()
    if uid == 0:
        return Path("/run/kairos-p2p-lab")
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime and os.access(runtime, os.W_OK):
        return Path(runtime, "kairos-p2p-lab")
    return Path(f"/tmp/kairos-p2p-lab-{uid}")


@dataclass(frozen=True, slots=True)
class Place:
    """The files of one lab."""

    name: str
    base: Path = field(default_factory=base_folder)  # taken before a user becomes root in a namespace of his own

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,20}", self.name):
            raise LabError(f"{self.name!r} is no name for a lab", hint="use a-z, 0-9 and dashes, 21 at most")

    @property
    def folder(self) -> Path:
        """Everything of this lab."""
        return self.base / self.name

    @property
    def socket(self) -> Path:
        """Where the supervisor takes orders."""
        return self.folder / "supervisor.sock"

    @property
    def log(self) -> Path:
        """What the supervisor and the boxes' first steps had to say."""
        return self.folder / "supervisor.log"

    @property
    def store(self) -> Path:
        """Where boxes keep what outlives their reboots: a tmpfs that only the supervisor sees."""
        return self.folder / "store"

    @property
    def disk_store(self) -> Path:
        """The same on disk, for a real k3s: its snapshotter needs room and a real file system."""
        return _DISK_STORE / self.name

    def make(self) -> None:
        """Make the folder, ours alone; raises LabError when somebody else's is in the way."""
        with contextlib.suppress(FileExistsError):
            self.base.mkdir(mode=0o700)
        status = self.base.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise LabError(f"{self.base} is not a folder of this user", hint=f"remove {self.base}")
        self.base.chmod(0o700)
        self.folder.mkdir(mode=0o700, exist_ok=True)

    def lock(self) -> int | None:
        """Take the lab's lock: the descriptor to keep, or None when a supervisor lives."""
        handle = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            return None
        return handle

    def alive(self) -> bool:
        """Whether a supervisor holds this place; leftovers of a dead one are removed on the way."""
        if not self.folder.is_dir():
            return False
        handle = self.lock()
        if handle is None:
            return True
        self.clean()
        os.close(handle)
        return False

    def clean(self) -> None:
        """Remove what a supervisor that is gone has left; the caller holds the lock, or is the supervisor."""
        saved = self.folder / "sysctls.json"
        if saved.exists():
            with contextlib.suppress(ValueError):
                restore_sysctls(json.loads(saved.read_text("utf-8")))
        remove_cgroups(self.name)
        shutil.rmtree(self.disk_store, ignore_errors=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in (_DISK_STORE, self.base):
            with contextlib.suppress(OSError):  # other labs are still there
                folder.rmdir()

    def require(self) -> None:
        """Raise NotFoundError unless this lab is up."""
        if not self.alive():
            raise NotFoundError(f"no lab {self.name!r} is up", hint="start one with `kairos-p2p lab up`")

    def wait_gone(self, seconds: float) -> None:
        """Wait until the supervisor has let go; raises TimeoutHostError."""
        deadline = time.monotonic() + seconds
        while self.alive():
            if time.monotonic() > deadline:
                raise TimeoutHostError(f"the lab {self.name!r} did not end", hint=f"see {self.log}")
            time.sleep(0.02)


def other_labs() -> list[str]:
    """The names of this user's labs that are up."""
    base = base_folder()
    if not base.is_dir():
        return []
    return sorted(path.name for path in base.iterdir() if path.is_dir() and Place(path.name).alive())


def save_sysctls() -> dict[str, str]:
    """The present values of what a real k3s will change."""
    values = {}
    for name in SAVED_SYSCTLS:
        with contextlib.suppress(OSError):
            values[name] = Path("/proc/sys", name).read_text("ascii").strip()
    return values


def restore_sysctls(values: dict[str, str]) -> None:
    """Put them back; only ours, only where they differ."""
    for name in SAVED_SYSCTLS:
        if name in values:
            with contextlib.suppress(OSError):
                place = Path("/proc/sys", name)
                if place.read_text("ascii").strip() != values[name]:
                    place.write_text(values[name], "ascii")


def cgroup_roots() -> list[Path]:
    """The mounted hierarchies: one for version 2, several for version 1."""
    roots = []
    for line in Path("/proc/self/mounts").read_text("utf-8").splitlines():
        fields = line.split(" ")
        if fields[2] in {"cgroup", "cgroup2"} and fields[1].startswith("/sys/fs/cgroup"):
            roots.append(Path(fields[1]))
    return roots


def cgroup_name(lab: str, box: str = "") -> str:
    """The name of a box's part of the tree; without a box the beginning that all of a lab share."""
    return f"kairos-p2p-lab-{lab}.{box}"


def remove_cgroups(lab: str) -> None:
    """Remove every cgroup that a lab's boxes have made, deepest first."""
    for root in cgroup_roots():
        for top in root.glob(f"{cgroup_name(lab)}*"):
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)  # noqa: PTH106 -- os.walk gives text


def unreachable(place: Place, error: OSError) -> UnreachableError:
    """The error for a supervisor that lives and does not answer."""
    return UnreachableError(f"the lab {place.name!r} does not answer: {error}", hint=f"see {place.log}")
