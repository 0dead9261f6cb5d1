"""Which bucket changed when, and who waits for it: the memory behind the long poll.

One small thing of its own so that the daemon and the tests use the same. The daemon calls :meth:`Revisions.changed`
whenever its ledger says that keys changed.
"""

from __future__ import annotations

from collections.abc import Iterable

import trio

__all__ = ["Revisions"]


class Revisions:
    """Last revision at which each bucket changed. Deleted buckets stay known: their going is a change."""

    def __init__(self) -> None:
        self._buckets: dict[str, int] = {}
        self._latest = 0
        self._news = trio.Event()

    @property
    def latest(self) -> int:
        """The newest revision."""
        return self._latest

    def changed(self, buckets: Iterable[str], revision: int | None = None) -> int:
        """Note a change of ``buckets`` at ``revision`` (default: the next one) and wake the waiters."""
        self._latest = self._latest + 1 if revision is None else max(revision, self._latest)
        for bucket in buckets:
            self._buckets[bucket] = self._latest
        self._news.set()
        self._news = trio.Event()
        return self._latest

    def since(self, since: int, buckets: frozenset[str]) -> bool:
        """Whether one of ``buckets`` (empty: any) changed after revision ``since``."""
        if not buckets:
            return self._latest > since
        return any(self._buckets.get(bucket, 0) > since for bucket in buckets)

    async def wait(self, since: int, buckets: frozenset[str]) -> int:
        """Return the newest revision as soon as :meth:`since` holds. May be cancelled."""
        while not self.since(since, buckets):
            await self._news.wait()
        await trio.lowlevel.checkpoint_if_cancelled()
        return self._latest
