"""The words of ``explain``: what a job may wait for, and what its steps are held against."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from orchestrator.domain.plan import JobRow, Node, Plan
from orchestrator.store.explain import Alike

#: A process is alive if it was heard of within so many seconds.
ALIVE: Final = 10.0
#: What stands first is looked at first.
ORDER: Final = (
    "failed cancelled succeeded paused compensating in_doubt decision no_worker lease_expired breaker_open agent_paused"
    " agent_limit agent_rate message_lost published held backlog ready stopping retry_timer running unknown"
).split()


@dataclass(frozen=True, slots=True)
class Cause:
    """One thing a job waits for. ``steps``: how many of its steps do, ``path`` being the one that waits longest."""

    code: str
    says: str
    #: What would move it: a command, or that it moves by itself.
    moved_by: str
    since: float | None = None
    until: float | None = None
    steps: int = 0
    path: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scene:
    """What the steps of a job are held against."""

    job: JobRow
    now: float
    plan: Plan
    processes: list[dict[str, Any]]
    queues: dict[str, dict[str, Any]]
    limits: dict[str, list[dict[str, Any]]]
    #: Ready steps of the job itself, by queue.
    own: Counter[str]

    def serving(self, queue: str) -> list[dict[str, Any]]:
        """Live processes that take steps of ``queue``."""
        return [
            row
            for row in self.processes
            if queue in row["queues"] and row["slots"] and not row["draining"] and row["age"] < ALIVE
        ]

    def node(self, alike: Alike) -> Node:
        return self.plan.nodes[alike.ref]


def steps_are(alike: Alike) -> str:
    name = alike.path or "the job's own step"
    return f"{name} is" if alike.count == 1 else f"{alike.count} steps (such as {name}) are"


def cause_of(
    alike: Alike,
    code: str,
    says: str,
    moved_by: str,
    *,
    since: float | None = None,
    until: float | None = None,
    **detail: Any,
) -> Cause:
    return Cause(code, says, moved_by, since or alike.ready_at, until, alike.count, alike.path, detail)


def span(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min``, ``2 h 5 min``, ``4 d``."""
    if seconds < 10:
        return f"{max(0.0, seconds):.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = int(seconds // 60)
    if minutes < 120:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d"
