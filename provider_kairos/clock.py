"""Time as a value: engines take a :class:`Now`, only the outermost layer reads a clock.

Wall time (Unix nanoseconds) is for what others see: records, heartbeats, epochs. Monotonic time is for
our own timers, so that a stepped clock neither fires nor delays them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Protocol

__all__ = ["Clock", "ManualClock", "Now", "SystemClock"]

NANO = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Now:
    """One instant: ``unix_ns`` in nanoseconds since 1970 (an integer, exact), ``mono`` in seconds."""

    unix_ns: int
    mono: float

    @property
    def unix(self) -> int:
        """Whole Unix seconds."""
        return self.unix_ns // NANO

    @property
    def unix_float(self) -> float:
        """Unix seconds with a fraction; for display and timers, never for record versions."""
        return self.unix_ns / NANO

    def plus(self, seconds: float) -> Now:
        """The instant ``seconds`` later on both time lines."""
        return Now(self.unix_ns + round(seconds * NANO), self.mono + seconds)


class Clock(Protocol):
    """Anything that can say what time it is."""

    def now(self) -> Now:
        """The present instant."""
        ...


class SystemClock:
    """The machine's clocks."""

    def now(self) -> Now:
        """The present instant."""
        return Now(time.time_ns(), time.monotonic())


class ManualClock:
    """A clock that moves only when told to; for the simulator and for tests."""

    def __init__(self, unix: float = 1_700_000_000.0, mono: float = 1000.0) -> None:
        self._now = Now(round(unix * NANO), mono)

    def now(self) -> Now:
        """The present instant."""
        return self._now

    def advance(self, seconds: float) -> Now:
        """Move both time lines forward and return the new instant."""
        self._now = self._now.plus(seconds)
        return self._now

    def step_wall(self, seconds: float) -> Now:
        """Move wall time alone, as a clock correction does."""
        self._now = Now(self._now.unix_ns + round(seconds * NANO), self._now.mono)
        return self._now
