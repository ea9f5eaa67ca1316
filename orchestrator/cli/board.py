"""What a running job looks like: its top-level steps, told by its events. Pure; drawn by ``progress.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Events that end a step.
_ENDS = {"step.succeeded", "step.skipped", "step.failed", "step.cancelled"}


@dataclass(slots=True)
class Line:
    """One top-level step. ``done`` of ``width`` members, counted at its first level."""

    name: str
    needs: tuple[str, ...] = ()
    #: A loop of rounds, not a fan-out.
    loop: bool = False
    state: str = "pending"
    width: int | None = None
    done: int = 0
    attempts: int = 0
    seconds: float | None = None
    note: str = ""


@dataclass(slots=True)
class Board:
    """Fed with every event of a job, in order."""

    lines: dict[str, Line]
    attempts: int = 0
    retries: int = 0
    #: Composites: their ends are no attempts.
    _opened: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, steps: Sequence[tuple[str, tuple[str, ...], bool]]) -> Board:
        """``steps``: the names of the top level, each with the names it waits for and whether it is a loop."""
        board = cls({name: Line(name, needs, loop) for name, needs, loop in steps})
        board._start()
        return board

    def feed(self, event: Mapping[str, Any]) -> str | None:
        """Takes in one event; answers a sentence if it is worth one."""
        kind, path, data = str(event["type"]), event["path"], event["data"]
        if kind == "job.reopened":
            return self._reopen(event)
        if not path:
            return None
        top, _, below = str(path).partition("/")
        line = self.lines.get(top)
        if line is None:
            return None
        if kind in {"step.opened", "round.reviewed"}:
            self._opened.add(str(path))
        elif kind in _ENDS or kind in {"step.retrying", "step.lost"}:
            self._count(line, kind, str(path), data)
        said = self._top(line, kind, data) if not below else self._member(line, kind, str(path), below, data)
        self._start()
        return said

    def _count(self, line: Line, kind: str, path: str, data: Mapping[str, Any]) -> None:
        if data.get("attempt") and path not in self._opened:
            line.attempts += 1
            self.attempts += 1
        if kind in {"step.retrying", "step.lost"}:
            self.retries += 1

    def _top(self, line: Line, kind: str, data: Mapping[str, Any]) -> str | None:
        match kind:
            case "step.opened":
                if line.loop:
                    return None
                line.width, line.done = data.get("width"), 0
                return f"{line.name}: {line.width} branches"
            case "step.retrying" | "step.lost" | "wait.opened":
                return self._trouble(line, kind, line.name, data)
            case "step.succeeded" | "step.skipped" | "step.failed" | "step.cancelled":
                line.state, line.seconds = kind.removeprefix("step."), data.get("seconds")
                line.note = reason(data) or (rounds(data) if "rounds" in data else line.note)
                return sentence(line)
            case "round.reviewed":
                line.note = review(data)
                return f"{line.name}: {line.note}"
            case _:
                return None

    def _member(self, line: Line, kind: str, path: str, below: str, data: Mapping[str, Any]) -> str | None:
        if kind in _ENDS and "/" not in below:
            line.done += 1
        if kind == "round.reviewed":
            return f"{path}: {review(data)}"
        if kind in {"step.retrying", "step.lost", "step.failed", "wait.opened"}:
            return self._trouble(line, kind, path, data)
        return None

    def _trouble(self, line: Line, kind: str, path: str, data: Mapping[str, Any]) -> str:
        why = reason(data) or "its worker was lost"
        line.note = why
        if kind == "step.retrying":
            return f"{path}: attempt {data.get('attempt')} failed ({why}); again in {float(data.get('delay', 0)):.1f} s"
        if kind == "wait.opened":
            return f"{path}: asks a person ({why})"
        return f"{path}: {'failed' if kind == 'step.failed' else 'started again'} ({why})"

    def _reopen(self, event: Mapping[str, Any]) -> str:
        for line in self.lines.values():
            if line.state in {"failed", "cancelled"}:
                line.state, line.note, line.seconds = "pending", "", None
        self._start()
        return f"replayed: run {event['run']}"

    def _start(self) -> None:
        """A step whose needs have ended is under way; claims write no event."""
        over = {name for name, line in self.lines.items() if line.state in {"succeeded", "skipped"}}
        for line in self.lines.values():
            if line.state == "pending" and over.issuperset(line.needs):
                line.state = "running"


def sentence(line: Line) -> str:
    parts = [line.state]
    if line.width is not None and line.state == "succeeded":
        parts.append(f"{line.width} branches")
    if line.seconds is not None:
        parts.append(f"{line.seconds:.2f} s")
    if line.note and (line.state == "failed" or line.loop):
        parts.append(line.note)
    return f"{line.name}: {', '.join(parts)}"


def reason(data: Mapping[str, Any]) -> str:
    failure = data.get("failure")
    return f"{failure['class']}: {failure['message']}" if isinstance(failure, Mapping) else ""


def review(data: Mapping[str, Any]) -> str:
    """The verdict on a round that was not good enough, from its event."""
    found = data.get("review")
    score = found.get("score") if isinstance(found, Mapping) else None
    scored = f", score {score:g}" if isinstance(score, (int, float)) else ""
    return f"round {data.get('round', '?')} sent back{scored}"


def rounds(data: Mapping[str, Any]) -> str:
    """How a loop ended, from its event."""
    return f"{data['rounds']} round{'s' if data['rounds'] != 1 else ''}, {'met' if data.get('met') else 'not met'}"
