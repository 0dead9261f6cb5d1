"""The commands' side of a lab: start its supervisor, send orders, wait for its end."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Final

from provider_kairos.errors import ExitCode, HostError, NotFoundError, PermissionHostError, TimeoutHostError
from provider_kairos.lab.model import MAX_BOXES, LabError, LabSettings
from provider_kairos.lab.place import Place, unreachable

__all__ = ["Leash", "check_machine", "compile_sources", "order", "start", "status", "take_down"]

_TUN: Final = "/dev/net/tun"
_START_SECONDS: Final = 60.0


def check_machine(settings: LabSettings) -> None:
    """Say in one line what this machine lacks for a lab, before anything is made; raises HostError."""
    if not 1 <= settings.boxes <= MAX_BOXES:
        raise LabError(f"a lab has 1 to {MAX_BOXES} boxes, not {settings.boxes}")
    if settings.product:
        _check_tun()
    if settings.k3s:
        if os.geteuid() != 0:
            raise PermissionHostError(
                "a real k3s needs the machine's root", hint="run the lab as root, or without --k3s and K3S_BIN"
            )
        if not (Path(settings.k3s).is_file() and os.access(settings.k3s, os.X_OK)):
            raise HostError(f"{settings.k3s} is no executable file", hint="name a k3s binary")


def _check_tun() -> None:
    try:
        os.close(os.open(_TUN, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise HostError(
            f"{_TUN} is missing", hint=f"as root: modprobe tun; mkdir -p /dev/net; mknod {_TUN} c 10 200"
        ) from None
    except PermissionError:
        raise PermissionHostError(
            f"{_TUN} cannot be opened by this user", hint=f"run the lab as root, or once: chmod 0666 {_TUN}"
        ) from None
    except OSError as error:
        raise HostError(f"{_TUN}: {error.strerror}", hint="as root: modprobe tun") from None


def compile_sources() -> None:
    """Byte-compile our package and its environment once: boxes see both read-only and would do it again and again."""
    import compileall  # noqa: PLC0415 -- only `lab up` compiles
    import sysconfig  # noqa: PLC0415

    import provider_kairos  # noqa: PLC0415

    folders = [Path(provider_kairos.__file__).parent]
    libraries = Path(sysconfig.get_paths()["purelib"])
    # The environment is compiled when its largest part is not; checking every file each time would take a second.
    part = libraries / "libp2p"
    if part.is_dir() and not (part / "__pycache__").is_dir() and os.access(part, os.W_OK):
        print("compiling the Python environment (once)", file=sys.stderr)
        folders.append(libraries)
    for folder in folders:
        if os.access(folder, os.W_OK):
            compileall.compile_dir(folder, quiet=2, workers=1)


class Leash:
    """Held by whoever must not be survived by the lab: when this process goes, the lab ends."""

    def __init__(self) -> None:
        self.read, self.write = os.pipe()

    def started(self) -> None:
        """The supervisor has its end now."""
        os.close(self.read)


def start(settings: LabSettings, leash: Leash | None = None) -> Place:
    """Start the supervisor and wait until every box has been switched on; raises HostError."""
    check_machine(settings)
    place = Place(settings.name)
    if place.alive():
        raise LabError(f"the lab {settings.name!r} is up already", hint="`kairos-p2p lab down` ends it")
    place.make()
    ready_r, ready_w = os.pipe()
    passed = (ready_w, leash.read) if leash else (ready_w,)
    log = os.open(place.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "provider_kairos.lab.supervisor",
                str(ready_w),
                str(leash.read if leash else -1),
                settings.name,  # for people who look at the process list
            ],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            pass_fds=passed,
            start_new_session=True,
            cwd="/",
        )
    finally:
        os.close(ready_w)
        os.close(log)
    if leash:
        leash.started()
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(settings.to_json().encode())
        process.stdin.close()
    # Nobody waits for a detached supervisor; a thread does, so that its end leaves no zombie while we live.
    waiter = threading.Thread(target=process.wait, daemon=True)
    waiter.start()
    answer = _read_ready(ready_r)
    if answer is None:
        process.kill()
        raise TimeoutHostError("the lab's boxes did not start", hint=f"see {place.log}")
    if "error" in answer:
        waiter.join(30)  # it is cleaning up
        if answer["error"]:
            raise LabError(str(answer["error"]))
        raise LabError("the supervisor ended at once", hint=f"see {place.log}")
    return place


def _read_ready(handle: int) -> dict[str, Any] | None:
    with os.fdopen(handle, "rb") as pipe:
        if not select.select([pipe], [], [], _START_SECONDS)[0]:
            return None
        line = pipe.readline()
    if not line:
        return {"error": ""}
    answer: dict[str, Any] = json.loads(line)
    return answer


def _connect(place: Place) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        link.connect(str(place.socket))
    except OSError as error:
        link.close()
        raise unreachable(place, error) from error
    return link


def order(place: Place, verb: str, **options: Any) -> dict[str, Any]:
    """Send one order to a lab's supervisor; raises what the supervisor refused with, or UnreachableError."""
    place.require()
    with _connect(place) as link:
        try:
            link.sendall(json.dumps({"verb": verb, **options}).encode() + b"\n")
            with link.makefile("rb") as answers:
                line = answers.readline()
        except OSError as error:
            raise unreachable(place, error) from error
    if not line:
        raise unreachable(place, ConnectionResetError("no answer"))
    answer = json.loads(line)
    if "error" in answer:
        kind = NotFoundError if answer["error"]["code"] == ExitCode.NOT_FOUND else LabError
        raise kind(answer["error"]["message"], hint=answer["error"]["hint"])
    result: dict[str, Any] = answer["ok"]
    return result


def status(place: Place) -> dict[str, Any]:
    """The supervisor's view of its lab."""
    return order(place, "status")


def take_down(place: Place) -> bool:
    """End a lab and wait until its last process is gone; False when there was none. Raises HostError."""
    if not place.alive():
        return False
    try:
        with _connect(place) as link:
            credentials = link.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid = struct.unpack("3i", credentials)[0]
            handle = os.pidfd_open(pid)
            try:
                link.sendall(b'{"verb": "down"}\n')
                if not select.select([handle], [], [], 30)[0]:
                    raise TimeoutHostError(f"the lab {place.name!r} did not end", hint=f"see {place.log}")
            finally:
                os.close(handle)
    except ProcessLookupError:  # it ended between our two looks
        return True
    place.wait_gone(5)
    return True
