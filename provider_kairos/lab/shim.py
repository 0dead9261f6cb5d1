"""The process between the supervisor and a box: makes the namespaces, waits for the box, dies with both.

Started by the supervisor with the box's :class:`BoxSpec` on stdin. Protocol over two inherited pipes:
``status`` gets one line with the pid of the box's first process, then nothing until it closes because that process
has become the service manager, or one line that says why it could not; ``go`` is read by that process, which waits
for a byte (the cable is plugged in) before that step, and ends when the pipe closes.

The chain of death: supervisor killed, then the kernel kills the shim (parent-death signal), then the first
process, and with it every process of the pid namespace; links and mounts go with their namespaces.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import NoReturn

from provider_kairos.lab.image import INIT_PROGRAM
from provider_kairos.lab.model import BoxSpec
from provider_kairos.lab.rootfs import build_root
from provider_kairos.lab.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUTS,
    die_with_parent,
    set_host_name,
    unshare,
)

__all__ = ["main"]

_NAMESPACES = CLONE_NEWNS | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID


def _become_box(spec: BoxSpec, go: int, status: int) -> NoReturn:
    """The first process of the box, from its birth to the service manager's start."""
    try:
        die_with_parent(0)  # the parent lives outside this pid namespace and shows as 0
        os.setsid()
        os.set_inheritable(status, False)  # noqa: FBT003 -- the standard library takes it by position
        set_host_name(spec.name)
        build_root(spec)
        if os.read(go, 1) != b"g":
            os._exit(1)
        os.close(go)
        log = os.open("/var/log/lab/init.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.umask(0o022)
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "LANG": "C.UTF-8",
            "HOME": "/root",
        }
        os.execve(INIT_PROGRAM, [INIT_PROGRAM, f"{spec.lab}/{spec.name}"], environment)  # noqa: S606 -- no shell is wanted
    except OSError as error:
        os.write(status, f"cannot boot: {error}\n".encode())
    except BaseException:  # noqa: BLE001 -- a forked child must not return into its parent's code
        traceback.print_exc()
    os._exit(1)


def _join_cgroup(cgroup: str) -> None:
    """Enter the box's cgroup in every hierarchy that the supervisor has made it in."""
    for place in cgroup.split(":"):
        Path(place, "cgroup.procs").write_text(str(os.getpid()), "ascii")


def _settle_in_cgroup(cgroup: str) -> None:
    """Leave the top of a version 2 tree to its branches, now that the namespace has made it the box's root.

    Controllers can be handed on to children only by a group that holds no process itself, and k3s hands them on.
    """
    for place in cgroup.split(":"):
        top = Path(place)
        controllers = top / "cgroup.controllers"
        names = controllers.read_text("ascii").split() if controllers.exists() else []
        if names:
            (top / "init").mkdir(exist_ok=True)
            (top / "init/cgroup.procs").write_text(str(os.getpid()), "ascii")
            (top / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in names), "ascii")


def main() -> int:
    """Make one box; the exit status is that of its first process (128 + signal when it was killed)."""
    supervisor, status, go = (int(word) for word in sys.argv[1:4])
    die_with_parent(supervisor)
    spec = BoxSpec.from_json(sys.stdin.read())
    try:
        if spec.cgroup:
            _join_cgroup(spec.cgroup)
        unshare(_NAMESPACES | (CLONE_NEWCGROUP if spec.cgroup else 0))
        if spec.cgroup:
            _settle_in_cgroup(spec.cgroup)
    except OSError as error:
        os.write(status, f"cannot make namespaces: {error}\n".encode())
        return 1
    pid = os.fork()
    if pid == 0:
        _become_box(spec, go, status)
    os.close(go)
    os.write(status, f"{pid}\n".encode())
    os.close(status)
    _, raw = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(raw)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main())
