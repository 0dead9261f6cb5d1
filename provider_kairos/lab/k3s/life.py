"""How the program ends, and its pace: exit codes of the k3s notes (sections 1.2 and 3.6), waits that a signal cuts short.

A condition that k3s finds while it prepares is :class:`Fatal` (status 1); one that a component reports later is
:class:`Shutdown` (status 0, which is why units of k3s must restart always). SIGTERM and SIGINT are :class:`Stopped`.
"""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType

from provider_kairos.errors import ProviderError

__all__ = ["Fatal", "Life", "Shutdown", "Stopped", "speed_from"]


class Fatal(ProviderError):  # noqa: N818 - the word of the log level
    """Ends the program with status 1 and ``level=fatal msg=...``."""


class Shutdown(ProviderError):  # noqa: N818 - the word of the log
    """Ends the program with status 0 after ``Shutdown request received: <reason>``."""


class Stopped(ProviderError):  # noqa: N818 - no error
    """A signal asked the program to end; status 0."""


def speed_from(text: str | None) -> float:
    """The factor of ``K3S_STANDIN_SPEED``; anything that is no positive number is 1."""
    try:
        speed = float(text or "1")
    except ValueError:
        return 1.0
    return speed if 0 < speed < 1e6 else 1.0


class Life:
    """The end of the program as one level-triggered event that every thread may wait for.

    A pipe rather than :class:`threading.Event`, because the event is set from a signal handler, where taking a
    lock that the interrupted thread holds would be a deadlock.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self.speed = speed
        self._started = time.monotonic()
        self._reason: ProviderError | None = None
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def install_signals(self) -> None:
        """Let SIGTERM and SIGINT end the program; only from the main thread."""

        def handler(_number: int, _frame: FrameType | None) -> None:
            self.end(Stopped("signal"))

        signal.signal(signal.SIGTERM, handler)
        signal.signal(signal.SIGINT, handler)

    def end(self, reason: ProviderError) -> None:
        """Ask every waiter to give up; the first reason counts."""
        if self._reason is None:
            self._reason = reason
        try:
            os.write(self._write, b"x")
        except BlockingIOError:
            return  # the pipe is full, so it is readable

    @property
    def ended(self) -> bool:
        """Whether somebody asked for the end."""
        return self._reason is not None

    def spawn(self, name: str, target: Callable[[], None]) -> None:
        """Run ``target`` in a thread that the program needs: an exception there ends the program with status 1."""

        def body() -> None:
            try:
                target()
            except ProviderError as error:
                self.end(error)
            except Exception as error:  # the thread's last stop: without it k3s would seem to live
                self.end(Fatal(f"Error: {name}: {error!r}"))
                raise

        threading.Thread(target=body, name=name, daemon=True).start()

    def check(self) -> None:
        """Raise the reason of the end, if there is one."""
        if self._reason is not None:
            raise self._reason

    def pause(self, seconds: float) -> bool:
        """Wait ``seconds`` of the recorded pace; False as soon as the end was asked for."""
        poller = select.poll()
        poller.register(self._read, select.POLLIN)
        poller.poll(max(0.0, seconds / self.speed) * 1000)
        return not self.ended

    def sleep(self, seconds: float) -> None:
        """Like :meth:`pause`, but raises the reason of the end."""
        self.pause(seconds)
        self.check()

    def until(self, seconds: float) -> None:
        """Wait for the moment ``seconds`` (recorded pace) after the start; raises the reason of the end."""
        self.sleep(seconds - self.age())

    def age(self) -> float:
        """Seconds since the start, in the recorded pace."""
        return (time.monotonic() - self._started) * self.speed

    def forever(self) -> None:
        """Wait for the end and raise its reason."""
        while True:
            self.sleep(3600)
