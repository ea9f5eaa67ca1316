"""Reads text/event-stream (the WHATWG's) from bytes as they come. No I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from orchestrator.client.words import Event
from orchestrator.domain.json_values import loads

#: Seconds of silence after which a stream counts as cut: the server says something each 15 s.
SILENCE = 45.0
#: Tries in a row that bring no event before the iterator gives up.
TRIES = 8
#: Seconds between two of them, at most.
MAX_DELAY = 5.0

_BREAK = re.compile(rb"\r\n|\n|\r")
#: More than any event has.
_MOST = 64 * 1024 * 1024


@dataclass(slots=True)
class Frames:
    """``feed`` bytes in any pieces; it answers the events that are complete."""

    _rest: bytes = b""
    _data: list[bytes] = field(default_factory=list)

    def feed(self, piece: bytes) -> list[Event]:
        self._rest += piece
        if len(self._rest) > _MOST:
            raise ValueError("an event of more than 64 MiB")
        found: list[Event] = []
        # A CR at the very end may be half of a CRLF: it waits for the next piece.
        end = len(self._rest) - 1 if self._rest.endswith(b"\r") else len(self._rest)
        start = 0
        for match in _BREAK.finditer(self._rest, 0, end):
            event = self._line(self._rest[start : match.start()])
            start = match.end()
            if event is not None:
                found.append(event)
        self._rest = self._rest[start:]
        return found

    def _line(self, line: bytes) -> Event | None:
        if line:
            name, _, value = line.partition(b":")
            if name == b"data":
                self._data.append(value.removeprefix(b" "))
            return None
        data, self._data = b"\n".join(self._data), []
        return Event.read(loads(data)) if data else None


@dataclass(slots=True)
class Position:
    """Where a reader stands over any number of connections."""

    last: int
    failures: int = 0
    #: The server has said that nothing follows.
    complete: bool = False

    def take(self, event: Event) -> bool:
        """Whether ``event`` is new; a repeated one is dropped."""
        if event.number <= self.last:
            return False
        self.last, self.failures = event.number, 0
        return True

    def failed(self, uniform: float) -> float | None:
        """Seconds to wait before connecting again; None: give up."""
        self.failures += 1
        if self.failures > TRIES:
            return None
        return float(min(MAX_DELAY, 0.1 * 2**self.failures) * (0.5 + uniform / 2))

    def headers(self) -> dict[str, Any]:
        return {"Accept": "text/event-stream", "Last-Event-ID": str(self.last)}
