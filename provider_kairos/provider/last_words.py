"""What the mesh daemon said when it ended (written by :mod:`provider_kairos.daemon.last_words`)."""

from __future__ import annotations

import contextlib
import json

from provider_kairos.clock import Now
from provider_kairos.errors import HostError
from provider_kairos.provider.machine import Machine

__all__ = ["LAST_WORDS", "forget_last_words", "last_words", "parse"]

LAST_WORDS = "/run/kairos-p2p/daemon-ended.json"


FRESH = 30
"""Seconds for which they count. A daemon that cannot run is started every few seconds; older words are another's."""


def parse(text: str | None, now: Now) -> str:
    """Message and hint as one sentence; empty when there is none that can be read, or it is old."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return ""
    if not isinstance(value, dict):
        return ""
    message, hint, unix = value.get("message"), value.get("hint"), value.get("unix")
    if not isinstance(message, str) or not isinstance(unix, int) or abs(now.unix - unix) > FRESH:
        return ""
    return f"{message} ({hint})" if isinstance(hint, str) and hint else message


def last_words(machine: Machine, now: Now) -> str:
    """The reason, empty when the daemon left none."""
    try:
        return parse(machine.read(LAST_WORDS), now)
    except HostError:
        return ""


def forget_last_words(machine: Machine) -> None:
    """A daemon answers: what an earlier one said is over."""
    with contextlib.suppress(HostError):
        machine.remove(LAST_WORDS)
