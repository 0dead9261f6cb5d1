"""``GET /debug/tasks``: what every task of the daemon is doing now, for when it does nothing. Only with ``--debug``.

EdgeVPN has Go's profiler at ``/debug/pprof`` in this place. A Python program has no such thing; what helps here is the
tree of tasks, each with the lines on which it waits. Names and lines only: never a value, which may be a secret.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path
from types import FrameType
from typing import Any

import trio

from provider_kairos.api.http import Response
from provider_kairos.api.router import Call, Route

__all__ = ["debug_routes", "task_tree"]

TEXT = "text/plain; charset=utf-8"


def debug_routes() -> list[Route]:
    """The table."""

    async def tasks(_call: Call) -> Response:
        root = trio.lowlevel.current_root_task()
        lines = [] if root is None else list(task_tree(root))
        return Response(HTTPStatus.OK, "\n".join([*lines, *_threads()]).encode() + b"\n", TEXT)

    return [Route("GET", "/debug/tasks", tasks)]


def task_tree(task: trio.lowlevel.Task, depth: int = 0) -> Iterator[str]:
    """A task, the lines on which it waits, and its children, indented."""
    indent = "  " * depth
    yield f"{indent}{task.name}"
    for frame, line in _stack(task.coro):
        if not frame.f_code.co_filename.endswith("_traps.py"):  # where every waiting task ends
            yield f"{indent}  | {_place(frame, line)}"
    for nursery in task.child_nurseries:
        for child in sorted(nursery.child_tasks, key=lambda each: each.name):
            yield from task_tree(child, depth + 1)


def _stack(awaitable: Any) -> Iterator[tuple[FrameType, int]]:
    """Frames from the outermost to the one that waits."""
    while awaitable is not None:
        frame = getattr(awaitable, "cr_frame", None) or getattr(awaitable, "gi_frame", None)
        if frame is None:
            return
        yield frame, frame.f_lineno
        awaitable = getattr(awaitable, "cr_await", None) or getattr(awaitable, "gi_yieldfrom", None)


def _place(frame: FrameType, line: int) -> str:
    """Module and line, as short as it still says where."""
    path = Path(frame.f_code.co_filename)
    return f"{path.parent.name}/{path.name}:{line} {frame.f_code.co_qualname}"


def _threads() -> Iterator[str]:
    """Where other threads stand: the disk, a child process."""
    here = sys._getframe()  # noqa: SLF001 - the only way to know which thread we are
    for number, frame in sys._current_frames().items():  # noqa: SLF001 - made for exactly this
        places = []
        current: FrameType | None = frame
        while current is not None:
            places.append(_place(current, current.f_lineno))
            if current is here:
                break
            current = current.f_back
        else:
            yield f"thread {number}"
            yield from (f"  | {place}" for place in reversed(places))
