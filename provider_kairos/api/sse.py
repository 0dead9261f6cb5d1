"""Server-sent events read from bytes (HTML's EventSource format): no socket, no waiting.

Only what a daemon sends: UTF-8, the fields ``event``, ``id``, ``data`` and ``retry``, comments. A line that never ends
is refused, because what answers may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from provider_kairos.errors import PeerError

__all__ = ["EventReader", "ServerEvent"]

MAX_EVENT = 16 << 20
"""Bytes of one event that are waited for; a record has at most a few."""


@dataclass(frozen=True, slots=True)
class ServerEvent:
    """One event. ``id`` is the last one that was named, up to and including this event."""

    kind: str
    data: str
    id: str


class EventReader:
    """Takes bytes, gives events."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._kind = ""
        self._data: list[str] = []
        self._size = 0
        self.last_id = ""

    def feed(self, data: bytes) -> list[ServerEvent]:
        """The events that end within ``data``. Raises PeerError for an event without end."""
        self._rest += data
        self._size += len(data)
        events: list[ServerEvent] = []
        if b"\n" in data:
            *lines, self._rest = self._rest.split(b"\n")
            found = (self._line(line.removesuffix(b"\r").decode("utf-8", "replace")) for line in lines)
            events = [event for event in found if event is not None]
        if self._size > MAX_EVENT:
            raise PeerError("a stream of events holds one that does not end")
        return events

    def _line(self, line: str) -> ServerEvent | None:
        if not line:
            self._size = len(self._rest)
            event = ServerEvent(self._kind or "message", "\n".join(self._data), self.last_id) if self._data else None
            self._kind, self._data = "", []
            return event
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._kind = value
            case "data":
                self._data.append(value)
            case "id":
                self.last_id = value
        return None
