"""The daemon's log: JSON lines on stdout as EdgeVPN prints them, so that people's tools go on working.

``{"level":"INFO","time":"2026-01-02T03:04:05.678Z","caller":"daemon/main.py:12","message":"..."}``
(spec/edgevpn.md 14.1). Repeated lines about one peer are counted, not repeated: see :class:`OncePer`.
"""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from datetime import UTC, datetime
from pathlib import PurePath

from provider_kairos.clock import Now

__all__ = ["JsonLines", "OncePer", "set_up"]

_LEVELS = {"debug": 10, "info": 20, "warn": 30, "warning": 30, "error": 40, "dpanic": 50, "panic": 50, "fatal": 50}


class JsonLines(logging.Formatter):
    """One JSON object per record; a traceback goes into ``stacktrace``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line."""
        path = PurePath(record.pathname)
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = {
            "level": {"WARNING": "WARN", "CRITICAL": "FATAL"}.get(record.levelname, record.levelname),
            "time": time,
            "caller": f"{path.parent.name}/{path.name}:{record.lineno}",
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["stacktrace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up(level: str, mesh: str = "") -> None:
    """Send our own log to stdout at ``level`` (EdgeVPN's words; an unknown word means error, as there).

    ``mesh`` is the level of the mesh alone, where it lets more through: EdgeVPN's ``--libp2p-log-level`` is ``fatal``
    unless somebody looks for something.
    """
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # libraries speak only when something is really wrong; ours follows the setting
    root.setLevel(logging.ERROR)
    ours = _LEVELS.get(level.strip().lower(), logging.ERROR)
    logging.getLogger("provider_kairos").setLevel(ours)
    logging.getLogger("provider_kairos.mesh").setLevel(min(ours, _LEVELS.get(mesh.strip().lower(), logging.CRITICAL)))


class OncePer:
    """Lets one message per key through in each period and counts the rest.

    A peer that floods us with bad bytes must not flood the log too, nor one that takes a new identity for each: no more
    than ``most`` messages of all keys together are let through in a period.
    """

    def __init__(self, period: float = 60.0, limit: int = 1024, most: int = 120) -> None:
        self._period = period
        self._limit = limit
        self._most = most
        self._let_through: deque[float] = deque(maxlen=most)
        self._seen: dict[object, tuple[float, int]] = {}

    def allow(self, key: object, now: Now) -> int | None:
        """The number of messages held back since the last one that was let through, or None to hold this back."""
        last = self._seen.get(key)
        if last is not None and now.mono - last[0] < self._period:
            self._seen[key] = (last[0], last[1] + 1)
            return None
        if len(self._let_through) == self._most and now.mono - self._let_through[0] < self._period:
            return None
        self._let_through.append(now.mono)
        if last is None and len(self._seen) >= self._limit:
            del self._seen[next(iter(self._seen))]
        self._seen[key] = (now.mono, 0)
        return last[1] if last else 0
