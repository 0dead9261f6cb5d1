"""The provider's log: the systemd journal as ``kairos-provider``, else ``/var/log/kairos/provider.log`` (spec 1.9).

People and tests look for ``journalctl -t kairos-provider``. Nothing goes to the console: the plugin's wrapper would
keep every line in memory.
"""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping
from logging.handlers import WatchedFileHandler
from pathlib import Path

__all__ = ["IDENTIFIER", "JournalHandler", "level_of", "set_up"]

IDENTIFIER = "kairos-provider"
JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
LOG_FILE = Path("/var/log/kairos/provider.log")

_LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "panic": logging.CRITICAL,
}
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def level_of(text: str, environ: Mapping[str, str]) -> int:
    """``p2p.loglevel``, default debug; ``PROVIDER_DEBUG`` and ``PROVIDER_TRACE`` raise it."""
    level = _LEVELS.get(text.strip().lower(), logging.DEBUG)
    return logging.DEBUG if environ.get("PROVIDER_DEBUG") or environ.get("PROVIDER_TRACE") else level


class JournalHandler(logging.Handler):
    """Datagrams in the journal's native protocol. A full or missing socket loses the line, never blocks."""

    def __init__(self, path: Path = JOURNAL_SOCKET, identifier: str = IDENTIFIER) -> None:
        super().__init__()
        self.identifier = identifier
        self.path = str(path)
        self.lost = 0
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.setblocking(False)  # noqa: FBT003  # the standard library's signature

    def emit(self, record: logging.LogRecord) -> None:
        """Send one record."""
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), 7)
        fields = {
            "MESSAGE": self.format(record),
            "PRIORITY": str(priority),
            "SYSLOG_IDENTIFIER": self.identifier,
            "LOGGER": record.name,
        }
        try:
            self._socket.sendto(b"".join(_field(k, v) for k, v in fields.items()), self.path)
        except OSError:
            self.lost += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def _field(name: str, value: str) -> bytes:
    raw = value.encode("utf-8", "replace")
    if b"\n" not in raw:
        return name.encode() + b"=" + raw + b"\n"
    return name.encode() + b"\n" + len(raw).to_bytes(8, "little") + raw + b"\n"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class _PrivateFile(WatchedFileHandler):
    """Mode 0600: the log names addresses and peers."""

    def _open(self):  # type: ignore[no-untyped-def]  # noqa: ANN202  # the base class's stub is private
        return open(self.baseFilename, self.mode, encoding=self.encoding, opener=_private)  # opener


def set_up(level: int, *, journal: Path = JOURNAL_SOCKET, file: Path = LOG_FILE) -> None:
    """Send this program's log to the journal or the file; without either it is thrown away."""
    handler: logging.Handler
    if journal.exists():
        handler = JournalHandler(journal)
        handler.setFormatter(logging.Formatter("%(message)s"))
    else:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handler = _PrivateFile(file, encoding="utf-8")
        except OSError:
            handler = logging.NullHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("provider_kairos").setLevel(level)
