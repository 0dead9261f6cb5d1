"""What happened lately, in order and bounded: the memory behind ``GET /v1/events``.

The daemon adds, each stream reads on from where it was. Of a record only its place is kept: what it holds is read when
the event is sent, so a slow reader costs no memory, and reads the newest state. When a reader has fallen behind what is
kept, it is told so and begins again.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import Final

import trio

__all__ = ["KINDS", "Event", "EventLog", "TooManyReadersError"]

KINDS: Final = ("ledger", "peer", "address", "phase", "waiting", "role")
"""What a stream can tell, beside its own ``hello``, ``lost`` and ``synced``."""


class TooManyReadersError(Exception):
    """As many streams are open as may be."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. ``data`` is JSON text; for a record it is empty, and ``bucket`` and ``key`` say which."""

    sequence: int
    kind: str
    data: str = ""
    bucket: str = ""
    key: str = ""

    @property
    def size(self) -> int:
        """About how much memory it holds."""
        return 100 + len(self.data) + len(self.bucket) + len(self.key)


class EventLog:
    """The last events. Sequence numbers count from 1 without gaps."""

    def __init__(self, entries: int = 4096, size: int = 1 << 20, readers: int = 16) -> None:
        """``entries`` and ``size`` (bytes) bound what is kept, ``readers`` the open streams."""
        self.entries = entries
        self._size = size
        self.max_readers = readers
        self._kept: deque[Event] = deque()
        self._held = 0
        self._news = trio.Event()
        self._wanted: Counter[str] = Counter()
        self._somebody = trio.Event()
        self.last = 0
        self.readers = 0

    # -- writing

    def add(self, kind: str, data: str) -> None:
        """An event with its data."""
        self._append(Event(self.last + 1, kind, data))
        self._tell()

    def records(self, places: Collection[tuple[str, str]]) -> None:
        """Records (bucket, key) that look different now."""
        if len(places) > self.entries // 2:  # so many at once that nobody could read on
            self.last += len(places)
            self._kept.clear()
            self._held = 0
        else:
            for bucket, key in sorted(places):
                self._append(Event(self.last + 1, "ledger", "", bucket, key))
        self._tell()

    def _append(self, event: Event) -> None:
        self.last = event.sequence
        self._kept.append(event)
        self._held += event.size
        while len(self._kept) > self.entries or self._held > self._size:
            self._held -= self._kept.popleft().size

    def _tell(self) -> None:
        self._news.set()
        self._news = trio.Event()

    # -- reading

    def knows(self, sequence: int) -> bool:
        """Whether everything after ``sequence`` is still kept."""
        return self.last - len(self._kept) <= sequence <= self.last

    def after(self, sequence: int, limit: int = 256) -> list[Event]:
        """The next events after ``sequence``, at most ``limit``. Ask :meth:`knows` first."""
        start = len(self._kept) - (self.last - sequence)
        return list(islice(self._kept, start, start + limit))

    async def wait(self, sequence: int) -> None:
        """Return as soon as there is something after ``sequence``."""
        while self.last <= sequence:
            await self._news.wait()
        await trio.lowlevel.checkpoint_if_cancelled()

    # -- who reads

    def admit(self, kinds: Collection[str]) -> Callable[[], None]:
        """One more stream of these kinds. Call what is returned when it has ended. Raises TooManyReadersError."""
        if self.readers >= self.max_readers:
            raise TooManyReadersError
        self.readers += 1
        self._wanted.update(kinds)
        self._somebody.set()
        self._somebody = trio.Event()

        def leave() -> None:
            self.readers -= 1
            self._wanted.subtract(kinds)

        return leave

    def wanted(self, kinds: Collection[str]) -> bool:
        """Whether a stream tells one of these kinds."""
        return any(self._wanted[kind] > 0 for kind in kinds)

    async def wait_wanted(self, kinds: Collection[str]) -> None:
        """Return as soon as :meth:`wanted`."""
        while not self.wanted(kinds):
            await self._somebody.wait()
