"""The framed header of our own stream protocols: what a stream is for, and the answer.

EdgeVPN's streams carry nothing but payload, so a node serves one service and one file only, and a refusal is a reset
without a reason (spec/edgevpn.md 8.3, 8.4). Our own nodes therefore open theirs with a greeting::

    0..1            2..
    length (big)    that many bytes: one JSON object in UTF-8

The dialler's comes first and names what it wants; the answer is ``{"ok": true, ...}`` or ``{"error": CODE, "text":
SENTENCE}``. Payload follows directly. Keys that a reader does not know are passed over, so that a later version may
say more. Frames of the same form may stand after the payload (files).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

from provider_kairos.errors import PeerError

__all__ = [
    "LONGEST",
    "GreetingError",
    "RefusedError",
    "encode",
    "expect_ok",
    "parse",
    "read",
    "read_exactly",
    "refusal",
    "text_of",
]

LONGEST = 8192
"""Bytes of the JSON object."""


class GreetingError(PeerError):
    """The peer does not keep to the framing, or leaves out what is needed."""


class RefusedError(PeerError):
    """The peer says no. ``code`` is a stable word."""

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text or code)
        self.code = code


class Readable(Protocol):
    """What a greeting is read from."""

    async def read(self, limit: int) -> bytes:
        """At most ``limit`` bytes; none at the end."""
        ...


def encode(message: Mapping[str, object]) -> bytes:
    """One frame. The message must fit :data:`LONGEST`."""
    body = json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")
    if len(body) > LONGEST:
        raise GreetingError(f"a header of {len(body)} bytes")
    return len(body).to_bytes(2, "big") + body


def refusal(code: str, text: str) -> bytes:
    """The answer that says no."""
    return encode({"error": code, "text": text[:1024]})


def parse(body: bytes) -> dict[str, Any]:
    """The object of a frame. Raises GreetingError."""
    try:
        message = json.loads(body.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise GreetingError("a header that is no JSON") from error
    if not isinstance(message, dict):
        raise GreetingError("a header that is no JSON object")
    return message


async def read(stream: Readable) -> dict[str, Any]:
    """Read one frame and not a byte more. Raises GreetingError, also when the stream ends before it is complete."""
    length = int.from_bytes(await read_exactly(stream, 2), "big")
    if not 0 < length <= LONGEST:
        raise GreetingError(f"a header of {length} bytes")
    return parse(await read_exactly(stream, length))


async def expect_ok(stream: Readable) -> dict[str, Any]:
    """Read an answer that says yes. Raises RefusedError for a no, GreetingError for nonsense."""
    answer = await read(stream)
    if answer.get("ok") is True:
        return answer
    raise RefusedError(text_of(answer, "error", "refused"), _printable(text_of(answer, "text", "")))


async def read_exactly(stream: Readable, count: int) -> bytes:
    """So many bytes. Raises GreetingError at an early end."""
    data = await stream.read(count)
    while len(data) < count:
        more = await stream.read(count - len(data))
        if not more:
            raise GreetingError("the stream ends inside a header")
        data += more
    return data


def text_of(message: Mapping[str, Any], key: str, default: str | None = None) -> str:
    """A text of a message. Raises GreetingError when it is missing and there is no default, or is no text."""
    value = message.get(key, default)
    if not isinstance(value, str):
        raise GreetingError(f"a header without {key}")
    return value


def _printable(text: str) -> str:
    """What a peer says goes to logs and terminals: one line, of a decent length."""
    return "".join(c if c.isprintable() else "?" for c in text[:300])
