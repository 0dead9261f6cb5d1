"""Entering a box: run a program in all its namespaces, with our terminal, and get its exit status.

The way in is a pidfd of the box's first process, so nothing has to be named anywhere. The program runs in the
box's pid namespace and dies with it. An ordinary user first enters the user namespace of his lab, where he is root.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn

from provider_kairos.lab.model import LabError
from provider_kairos.lab.processes import DEFAULT_PATH, find_program
from provider_kairos.lab.syscalls import (
    CLONE_NEWCGROUP,
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    CLONE_NEWUTS,
    setns,
)

__all__ = ["box_environment", "enter", "run_in_box"]

_ALL: Final = {
    "user": CLONE_NEWUSER,
    "mnt": CLONE_NEWNS,
    "pid": CLONE_NEWPID,
    "net": CLONE_NEWNET,
    "uts": CLONE_NEWUTS,
    "ipc": CLONE_NEWIPC,
    "cgroup": CLONE_NEWCGROUP,
}


def box_environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a root shell in a box; of ours only what describes the terminal."""
    environment = {
        "PATH": DEFAULT_PATH,
        "HOME": "/root",
        "USER": "root",
        "LANG": "C.UTF-8",
        "SHELL": "/bin/sh",
        "KUBECONFIG": "/etc/rancher/k3s/k3s.yaml",
    }
    for name in ("TERM", "COLORTERM", "COLUMNS", "LINES"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment | dict(extra or {})


def enter(pid: int) -> None:
    """Move this process into the namespaces of a box; children belong to its pid namespace from now on."""
    flags = 0
    for name, flag in _ALL.items():
        # The ones that we share already must not be named: entering one's own user namespace is refused.
        if os.stat(f"/proc/{pid}/ns/{name}").st_ino != os.stat(f"/proc/self/ns/{name}").st_ino:  # noqa: PTH116
            flags |= flag
    handle = os.pidfd_open(pid)
    try:
        setns(handle, flags)
    finally:
        os.close(handle)
    os.chdir("/")


def _become(argv: Sequence[str], environment: Mapping[str, str]) -> NoReturn:
    code = 126
    try:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.execve(find_program(argv[0]), list(argv), dict(environment))  # noqa: S606
    except FileNotFoundError:
        code = 127
        sys.stderr.write(f"{argv[0]}: not found in the box\n")
    except OSError as error:
        sys.stderr.write(f"{argv[0]}: {error.strerror}\n")
    finally:
        sys.stderr.flush()
        os._exit(code)


def run_in_box(pid: int, argv: Sequence[str], environment: Mapping[str, str] | None = None) -> int:
    """Enter the box whose first process is ``pid``, run a program, return its exit status (128 + signal).

    This process stays in the box's namespaces: call it last, or in a child. Raises LabError when there is no way in.
    """
    try:
        enter(pid)
    except OSError as error:
        raise LabError(f"cannot enter the box: {error}", hint="is it running? see `kairos-p2p lab status`") from error
    child = os.fork()
    if child == 0:
        _become(argv, environment if environment is not None else box_environment())
    # The terminal sends its signals to the program too; we only wait for what it makes of them.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)

    def forward(number: int, _frame: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    signal.signal(signal.SIGTERM, forward)
    signal.signal(signal.SIGHUP, forward)
    _, raw = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(raw)
    return code if code >= 0 else 128 - code
