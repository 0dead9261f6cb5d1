"""Starting and finding the processes of a service: fork, limits, output, who belongs to which invocation.

What systemd gets from a cgroup the lab gets from ``INVOCATION_ID``, which every service has in its environment
(systemd.exec(5)) and its children inherit, together with sessions and parents. Standard library only; used by
the first process of a box, which is single-threaded, so plain forks are safe.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NoReturn

from provider_kairos.lab.unitwords import parse_duration

__all__ = ["DEFAULT_PATH", "EXIT_EXEC", "Launch", "find_program", "members_of", "program_exists", "spawn"]

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EXIT_EXEC: Final = 203
"""systemd's exit status for a program that could not be started."""

_SIZES: Final = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True)
class Launch:
    """One process to start: argument vector, whole environment, and how it is set up."""

    argv: tuple[str, ...]
    environment: dict[str, str] = field(repr=False)
    log: str = ""
    working_directory: str = "/"
    umask: int = 0o022
    limits: dict[str, str] = field(default_factory=dict)


def find_program(path: str) -> str:
    """The absolute path of a program; a bare name is searched as systemd does, not by the service's PATH."""
    if "/" in path:
        return path
    for folder in DEFAULT_PATH.split(":"):
        candidate = Path(folder, path)
        if os.access(candidate, os.X_OK):
            return str(candidate)
    return path


def program_exists(path: str) -> bool:
    """Whether there is a program of this name."""
    return Path(find_program(path)).exists()


def _limit_value(text: str) -> int:
    if text == "infinity":
        return resource.RLIM_INFINITY
    if text and text[-1] in _SIZES:
        return int(text[:-1]) * _SIZES[text[-1]]
    return int(text) if text.isdigit() else round(parse_duration(text))


def _apply_limits(limits: dict[str, str]) -> None:
    for key, value in limits.items():
        which = getattr(resource, "RLIMIT_" + key.removeprefix("Limit"), None)
        if which is None:
            continue
        soft_text, _, hard_text = value.partition(":")
        soft, hard = _limit_value(soft_text), _limit_value(hard_text or soft_text)
        try:
            resource.setrlimit(which, (soft, hard))
        except (OSError, ValueError):
            # Only the machine's root may go above the hard limit; take what there is, as a container does.
            ceiling = resource.getrlimit(which)[1]
            if ceiling != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > ceiling):
                soft = ceiling
            resource.setrlimit(which, (soft, ceiling))


def _become(launch: Launch) -> NoReturn:
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in signal.valid_signals():
            if number not in {signal.SIGKILL, signal.SIGSTOP}:
                try:
                    signal.signal(number, signal.SIG_DFL)
                except (OSError, ValueError):
                    continue
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        if launch.log:
            log = os.open(launch.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
            os.dup2(log, 1)
            os.dup2(log, 2)
        _apply_limits(launch.limits)
        os.umask(launch.umask)
        os.chdir(launch.working_directory)
        os.closerange(3, 256)
        os.execve(find_program(launch.argv[0]), list(launch.argv), launch.environment)  # noqa: S606
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cannot run {launch.argv[0]}: {error}\n")
        sys.stderr.flush()
    finally:
        os._exit(EXIT_EXEC)


def spawn(launch: Launch) -> int:
    """Start a process in a session of its own and return its pid; a failed exec ends it with :data:`EXIT_EXEC`."""
    pid = os.fork()
    if pid == 0:
        _become(launch)
    return pid


def _parents() -> dict[int, tuple[int, int]]:
    """Every process: its parent and its session."""
    table: dict[int, tuple[int, int]] = {}
    for entry in os.listdir("/proc"):  # noqa: PTH208 -- names are what is wanted, many times a second
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_bytes()
            except OSError:
                continue
            fields = stat[stat.rindex(b")") + 2 :].split()
            if fields[0] != b"Z":
                table[int(entry)] = (int(fields[1]), int(fields[3]))
    return table


def members_of(invocation: str, roots: set[int]) -> set[int]:
    """The living processes of one invocation: below a root, in its session, or carrying its id."""
    table = _parents()
    mark = f"INVOCATION_ID={invocation}".encode()
    members = {pid for pid in roots if pid in table}
    for pid, (_, session) in table.items():
        if pid == 1 or pid in members:
            continue
        if session in roots:
            members.add(pid)
            continue
        try:
            if mark in Path("/proc", str(pid), "environ").read_bytes().split(b"\0"):
                members.add(pid)
        except OSError:
            continue
    grown = True
    while grown:
        below = {pid for pid, (parent, _) in table.items() if parent in members} - members
        members |= below
        grown = bool(below)
    members.discard(1)
    return members
