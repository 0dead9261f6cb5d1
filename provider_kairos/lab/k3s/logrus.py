"""Log lines in k3s' form: ``time="2026-01-02T03:04:05Z" level=info msg="..."`` on stderr."""

from __future__ import annotations

import json
import logging
import sys
import time

__all__ = ["LogrusFormatter", "setup"]

LEVELS = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warning",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}


class LogrusFormatter(logging.Formatter):
    """One line for each record; text with quotes and newlines is escaped as Go does."""

    def format(self, record: logging.LogRecord) -> str:
        """The finished line, without a newline."""
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {record.exc_info[1]}"
        level = LEVELS.get(record.levelno, "info")
        return f'time="{stamp}" level={level} msg={json.dumps(text, ensure_ascii=False)}'


def setup(*, debug: bool = False) -> None:
    """Send this package's log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogrusFormatter())
    root = logging.getLogger("provider_kairos.lab.k3s")
    root.handlers[:] = [handler]
    root.propagate = False
    root.setLevel(logging.DEBUG if debug else logging.INFO)
