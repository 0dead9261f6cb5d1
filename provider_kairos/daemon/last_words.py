"""Why the daemon ended, left in ``/run`` for those who find its API silent (``kairos-p2p status``, the provider).

A log says it too, but where a daemon's log is differs from machine to machine. The provider removes the file once a
daemon answers. No secret is in it: only our own errors, which are written for people.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from provider_kairos.clock import SystemClock
from provider_kairos.errors import HostError, ProviderError
from provider_kairos.system.files import write_atomic

__all__ = ["leave"]

log = logging.getLogger(__name__)

LAST_WORDS = Path("/run/kairos-p2p/daemon-ended.json")


def leave(error: ProviderError, path: Path = LAST_WORDS) -> None:
    """Write the error's message and hint; a machine that refuses even that is logged."""
    words = {"schema": 1, "unix": SystemClock().now().unix, "message": error.message, "hint": error.hint}
    try:
        write_atomic(path, json.dumps(words) + "\n", 0o600)
    except HostError as refusal:
        log.debug("%s", refusal)
