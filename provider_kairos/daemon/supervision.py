"""Keeping a part alive: run it, say what ended it, run it again after a pause that grows.

Parts run nurseries of their own, so what they raise may come wrapped in exception groups; what counts is inside.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

import trio

from provider_kairos.errors import ConfigError, HostError, NotFoundError, ProviderError

__all__ = ["Supervisor", "known_error"]

log = logging.getLogger(__name__)

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 30.0


def known_error(error: BaseException) -> ProviderError | None:
    """The error of ours that ``error`` is, or holds when it is a group of nothing else; None when there is a bug."""
    if isinstance(error, BaseExceptionGroup):
        inside = [known_error(each) for each in error.exceptions]
        return next(iter(inside), None) if all(each is not None for each in inside) else None
    return error if isinstance(error, ProviderError) else None


class Supervisor:
    """Runs parts for ever. ``broken`` names those that wait to be started again."""

    def __init__(self) -> None:
        self.broken: set[str] = set()
        self.restarts = 0

    async def keep(self, name: str, part: Callable[[], Awaitable[None]]) -> None:
        """Run ``part`` until cancelled; whatever breaks it is one line in the log, a bug of ours with a traceback."""
        pause = FIRST_PAUSE
        while True:
            began = trio.current_time()
            try:
                await part()
                log.error("%s ended by itself and is started again", name)
            except Exception as error:  # whatever broke in one part: the others go on, this one begins anew
                known = known_error(error)
                if isinstance(known, HostError | ConfigError | NotFoundError):
                    log.error("%s: %s", name, known)  # noqa: TRY400 - the message is the whole story
                else:
                    log.exception("%s broke and is started again in %.0f s", name, pause)
            self.restarts += 1
            self.broken.add(name)
            if trio.current_time() - began > 2 * LONGEST_PAUSE:
                pause = FIRST_PAUSE
            await trio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            self.broken.discard(name)
