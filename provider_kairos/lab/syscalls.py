"""The few Linux calls that Python 3.11 does not have: namespaces, mounts, ``pivot_root``, parent-death signals.

Thin wrappers around the C library that raise OSError with the name of what failed; no policy here. Namespaces
are held by processes and pidfds, never by names, so that they vanish with the processes (design.md 7).
"""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Final

__all__ = [
    "CLONE_NEWCGROUP",
    "CLONE_NEWIPC",
    "CLONE_NEWNET",
    "CLONE_NEWNS",
    "CLONE_NEWPID",
    "CLONE_NEWUSER",
    "CLONE_NEWUTS",
    "MNT_DETACH",
    "MS_BIND",
    "MS_MOVE",
    "MS_NODEV",
    "MS_NOEXEC",
    "MS_NOSUID",
    "MS_PRIVATE",
    "MS_RDONLY",
    "MS_REC",
    "MS_REMOUNT",
    "become_subreaper",
    "bind",
    "die_with_parent",
    "mount",
    "pivot_into",
    "set_host_name",
    "setns",
    "umount",
    "unshare",
]

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_MOVE: Final = 8192
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

MNT_DETACH: Final = 2

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
# pivot_root has no wrapper in the C library; the numbers are those of the two families that Kairos runs on.
_SYS_PIVOT_ROOT: Final = 155 if os.uname().machine == "x86_64" else 41

# PyDLL keeps the interpreter lock: these calls must not let another thread run between them and a fork.
_libc = ctypes.PyDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def unshare(flags: int) -> None:
    """Leave the namespaces named by ``flags`` for new ones."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare({flags:#x})")


def setns(fd: int, flags: int) -> None:
    """Enter namespaces: ``fd`` is a namespace file with its flag, or a pidfd with several (Linux 5.8)."""
    _check(_libc.setns(ctypes.c_int(fd), ctypes.c_int(flags)), f"setns({flags:#x})")


def mount(source: str, target: str | Path, kind: str = "", flags: int = 0, options: str = "") -> None:
    """``mount(2)``; ``kind`` and ``options`` may be empty."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            os.fsencode(kind) if kind else None,
            ctypes.c_ulong(flags),
            os.fsencode(options) if options else None,
        ),
        f"mount {kind or source} on {target}",
    )


def umount(target: str | Path, flags: int = 0) -> None:
    """``umount2(2)``."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), f"umount {target}")


def bind(source: str | Path, target: str | Path, *, recursive: bool = False, read_only: bool = False) -> None:
    """Show ``source`` at ``target`` too; both must exist and be of the same kind."""
    mount(os.fspath(source), target, flags=MS_BIND | (MS_REC if recursive else 0))
    if read_only:
        # A bind mount takes its flags only from a second call; in a user namespace the flags that the
        # original carries are locked and have to be named again.
        locked = 0
        status = os.statvfs(target)
        for ours, flag in ((os.ST_NOSUID, MS_NOSUID), (os.ST_NODEV, MS_NODEV), (os.ST_NOEXEC, MS_NOEXEC)):
            locked |= flag if status.f_flag & ours else 0
        mount("none", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY | locked)


def pivot_into(new_root: str | Path) -> None:
    """Make ``new_root``, a mount point, the root of this mount namespace; the old root is detached."""
    os.chdir(new_root)
    # Pivoting "." onto "." stacks the old root on the new one, so no folder for it is needed.
    _check(_libc.syscall(ctypes.c_long(_SYS_PIVOT_ROOT), b".", b"."), f"pivot_root {new_root}")
    umount(".", MNT_DETACH)
    os.chdir("/")


def set_host_name(name: str) -> None:
    """Set the host name of this uts namespace."""
    raw = name.encode()
    _check(_libc.sethostname(raw, ctypes.c_size_t(len(raw))), "sethostname")


def die_with_parent(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies; ends it at once when that has happened already.

    ``parent`` is the pid that :func:`os.getppid` must show; 0 for the first process of a pid namespace.
    """
    _check(_libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:
        os._exit(1)


def become_subreaper() -> None:
    """Orphans below this process become its children."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0), "prctl(PR_SET_CHILD_SUBREAPER)")
