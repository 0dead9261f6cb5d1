"""What a service's start looks at outside of its own state: sd_notify, conditions, folders.

Follows sd_notify(3), systemd.unit(5) ``Condition...=`` and systemd.exec(5) ``RuntimeDirectory=`` as far as
Kairos, k3s and our own units use them. Used by :mod:`.services` alone.
"""

from __future__ import annotations

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from provider_kairos.lab.units import Service

__all__ = ["NotifySocket", "condition_met", "make_folders", "read_or_empty"]


class Notified(Protocol):
    """Whom a notification is for."""

    main_pid: int
    ready: asyncio.Event
    text: str


class NotifySocket:
    """The datagram socket of one unit for sd_notify(3); only the main process is listened to."""

    def __init__(self, name: str, unit: Notified, changed: Callable[[], None]) -> None:
        self._unit = unit
        self._changed = changed
        self._path = f"/run/systemd/notify-{name}"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def __enter__(self) -> str:
        Path(self._path).unlink(missing_ok=True)
        self._socket.bind(self._path)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
        return self._path

    def __exit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        try:
            data, control, _, _ = self._socket.recvmsg(4096, socket.CMSG_SPACE(12))
        except OSError:
            return
        sender = 0
        for level, kind, raw in control:
            if level == socket.SOL_SOCKET and kind == socket.SCM_CREDENTIALS:
                sender = struct.unpack("=iII", raw[:12])[0]
        if sender != self._unit.main_pid:
            return
        for line in data.decode("utf-8", errors="replace").splitlines():
            key, _, value = line.partition("=")
            if key == "READY" and value == "1":
                self._unit.ready.set()
            elif key == "STATUS":
                self._unit.text = value
                self._changed()


def make_folders(service: Service) -> None:
    """``RuntimeDirectory=`` and its like."""
    for base, name in service.folders:
        Path(base, name).mkdir(parents=True, exist_ok=True)


def read_or_empty(path: str) -> str:
    """A file's text, or nothing."""
    try:
        return Path(path).read_text("utf-8")
    except OSError:
        return ""


def condition_met(key: str, value: str) -> bool:
    """``ConditionPathExists=`` and its like; conditions that a box cannot judge are met."""
    negated = value.startswith("!")
    path = Path(value.lstrip("!|"))
    tests: dict[str, Callable[[], bool]] = {
        "ConditionPathExists": path.exists,
        "ConditionPathIsDirectory": path.is_dir,
        "ConditionFileIsExecutable": lambda: path.is_file() and os.access(path, os.X_OK),
        "ConditionFileNotEmpty": lambda: path.is_file() and path.stat().st_size > 0,
    }
    test = tests.get(key)
    return True if test is None else test() != negated
