"""The plugin protocol: event name in argv, one JSON document on stdin, one on stdout (spec/provider.md 1).

Only the standard library is imported here, and little of it: an event without a handler is answered on every boot
from the initramfs. Handlers are imported when their event comes.

While a handler runs, file descriptors 1 and 2 go to an anonymous file, so that neither it nor its children reach the
host's stdout; what they wrote is the answer's ``log``. A handler that never returns calls ``context.detach()`` first,
so that nothing grows (13 #31).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from provider_kairos.provider.events import BOOTSTRAP

__all__ = ["Context", "EventError", "Handler", "Response", "answer", "run"]

_LOG_LIMIT = 256 * 1024
_EVENT_LIMIT = 64 * 1024 * 1024


class EventError(Exception):
    """The event cannot be read: exit code 1 with this text on stdout (spec 1.1)."""


class Response:
    """The answer; four texts, always all of them."""

    __slots__ = ("data", "error", "log", "state")

    def __init__(self, *, state: str = "", data: str = "", error: str = "", log: str = "") -> None:
        self.state = state
        self.data = data
        self.error = error
        self.log = log

    def encode(self) -> bytes:
        """The JSON document, without a newline."""
        document = {"state": self.state, "data": self.data, "error": self.error, "log": self.log}
        return json.dumps(document).encode("ascii")


class Context:
    """What a handler gets beside the payload. ``started`` is the process's start on the monotonic clock, if known."""

    __slots__ = ("environ", "event")

    def __init__(self, event: str, environ: Mapping[str, str]) -> None:
        self.event = event
        self.environ = environ

    @staticmethod
    def detach() -> None:
        """From here on what is printed is thrown away: for a handler that stays."""
        with open(os.devnull, "wb") as null:  # noqa: PTH123  # pathlib costs a tenth of the time budget
            os.dup2(null.fileno(), 1)
            os.dup2(null.fileno(), 2)


Handler = Callable[[dict[str, Any], Context], Response]


# A text in which none of these stands as a key has no block that the provider reads, in today's spelling or an old one.
_KEYS = re.compile(r"""(?:^|[\s{,"'])(?:p2p|k3s|k3s-agent|k0s|k0s-worker|kairos|c3os)["']?\s*:""")


def _bootstrap(payload: dict[str, Any], context: Context) -> Response:
    config = payload.get("config")
    if "" not in payload and not (isinstance(config, str) and _KEYS.search(config)):
        # The answer of the decision tree's first row, without a fifth of a second for reading YAML and schema.
        return Response(state="no P2P or kubernetes configured")
    from provider_kairos.provider.bootstrap import handle  # noqa: PLC0415  # heavy, and only for this event

    return handle(payload, context)


HANDLERS: dict[str, Handler] = {BOOTSTRAP: _bootstrap}


def read_event(raw: bytes) -> dict[str, Any]:
    """The payload of an event document; ``null``, empty and missing data are an empty payload.

    Raises:
        EventError: not JSON, wrong types, or a side file that cannot be read.
    """
    try:
        event = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise EventError(f"failed reading the event from stdin: {error}") from error
    if not isinstance(event, dict):
        raise EventError("failed reading the event from stdin: not a JSON object")
    data, side = event.get("data"), event.get("file")
    if side is not None and not isinstance(side, str):
        raise EventError("failed reading the event from stdin: file is not a text")
    if side:
        # The host deletes it when we exit: it is read once, now.
        try:
            with open(side, "rb") as file:  # noqa: PTH123  # pathlib costs a tenth of the time budget
                data = file.read(_EVENT_LIMIT).decode("utf-8")
        except (OSError, UnicodeDecodeError, ValueError) as error:
            raise EventError(f"failed reading the event's file {side}: {error}") from error
    if data is None or data == "":
        return {}
    if not isinstance(data, str):
        raise EventError("failed reading the event from stdin: data is not a text")
    try:
        payload = json.loads(data)
    except (ValueError, RecursionError):
        # A handler that needs a payload says so; the original leaves this to the handler too.
        return {"": data}
    return payload if isinstance(payload, dict) else {}


@contextlib.contextmanager
def _captured(collected: list[str]) -> Iterator[int]:
    """Descriptors 1 and 2 point to an anonymous file; yields the real stdout."""
    sys.stdout.flush()
    sys.stderr.flush()
    real_out, real_err = os.dup(1), os.dup(2)
    sink = os.memfd_create("plugin-log")
    try:
        os.dup2(sink, 1)
        os.dup2(sink, 2)
        yield real_out
    finally:
        with contextlib.suppress(OSError, ValueError):  # a closed stream has nothing left to say
            sys.stdout.flush()
            sys.stderr.flush()
        os.dup2(real_out, 1)
        os.dup2(real_err, 2)
        size = os.fstat(sink).st_size
        text = os.pread(sink, _LOG_LIMIT, max(0, size - _LOG_LIMIT))
        collected.append(text.decode("utf-8", "replace"))
        for descriptor in (real_out, real_err, sink):
            os.close(descriptor)


def answer(event: str, raw: bytes, environ: Mapping[str, str]) -> Response:
    """Run the handler of ``event``, if there is one. An exception becomes ``error``, never a traceback.

    Raises:
        EventError: the event cannot be read.
    """
    payload = read_event(raw)
    handler = HANDLERS.get(event)
    if handler is None:
        return Response()
    try:
        return handler(payload, Context(event, environ))
    except Exception as error:  # noqa: BLE001  # the protocol's answer to anything is a text
        # The message of an unknown exception may quote a secret: only our own errors are written for people.
        known = _is_ours(error)
        return Response(error=str(error) if known else f"internal error: {type(error).__name__}{_place(error)}")


def _is_ours(error: Exception) -> bool:
    from provider_kairos.errors import ProviderError  # noqa: PLC0415  # only after something failed

    return isinstance(error, ProviderError)


def _place(error: Exception) -> str:
    trace = error.__traceback__
    if trace is None:
        return ""
    while trace.tb_next is not None:
        trace = trace.tb_next
    return f" at {os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119  # as above


def run(event: str) -> int:
    """Serve one event on the real stdin and stdout; the process's exit code."""
    collected: list[str] = []
    code = 0
    try:
        raw = sys.stdin.buffer.read()
        with _captured(collected):
            response = answer(event, raw, os.environ)
        response.log = response.log or collected[0]
        output = response.encode()
    except EventError as error:
        output, code = str(error).encode("utf-8", "replace"), 1
    view = memoryview(output)
    try:
        while view:
            view = view[os.write(1, view) :]
    except BrokenPipeError:
        return 1
    return code
