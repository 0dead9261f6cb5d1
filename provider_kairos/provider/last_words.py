"""What the mesh daemon said when it ended (written by :mod:`provider_kairos.daemon.last_words`)."""

from __future__ import annotations

import contextlib
import json

from provider_kairos.errors import HostError
from provider_kairos.provider.machine import Machine

__all__ = ["LAST_WORDS", "forget_last_words", "last_words", "parse"]

LAST_WORDS = "/run/kairos-p2p/daemon-ended.json"


def parse(text: str | None) -> str:
    """Message and hint as one sentence; empty when there is none that can be read."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return ""
    message, hint = (value.get("message"), value.get("hint")) if isinstance(value, dict) else (None, None)
    if not isinstance(message, str):
        return ""
    return f"{message} ({hint})" if isinstance(hint, str) and hint else message


def last_words(machine: Machine) -> str:
    """The reason, empty when the daemon left none."""
    try:
        return parse(machine.read(LAST_WORDS))
    except HostError:
        return ""


def forget_last_words(machine: Machine) -> None:
    """A daemon answers: what an earlier one said is over."""
    with contextlib.suppress(HostError):
        machine.remove(LAST_WORDS)
