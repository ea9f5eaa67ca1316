"""How far a job is: the chain of steps that makes it as long as it is, what waits for what, and who holds the most.

Pure functions of the plan and of each step's times. A step's own time is the span from its first start to its end
(or to ``now``), so it includes its retries and their waits; time in line for a worker is in nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter

from orchestrator.domain.ids import ROOT, StepPath, ancestor, child
from orchestrator.domain.plan import Kind, Plan
from orchestrator.domain.states import STEP_TERMINAL, StepState


@dataclass(frozen=True, slots=True)
class Timed:
    """A step's place and times, in seconds since the epoch."""

    path: StepPath
    ref: str
    kind: Kind
    parent: StepPath | None
    state: StepState
    #: Prepared, and in line behind ``max_concurrency``.
    held: bool
    started_at: float | None
    finished_at: float | None

    def seconds(self, now: float) -> float:
        """How long it has taken so far; 0 when it never began."""
        if self.started_at is None:
            return 0.0
        return max(0.0, (now if self.finished_at is None else self.finished_at) - self.started_at)


@dataclass(frozen=True, slots=True)
class Link:
    """A call on the critical path."""

    path: StepPath
    state: StepState
    seconds: float


def critical_path(plan: Plan, rows: Iterable[Timed], now: float) -> list[Link]:
    """The longest chain of calls that had to follow each other, in their order: to end sooner, shorten one of these.

    Of a fan-out it takes the longest member; members that ``rows`` leaves out count for nothing.
    """
    family: dict[StepPath, list[Timed]] = {}
    root: Timed | None = None
    for row in rows:
        if row.path == ROOT:
            root = row
        elif row.parent is not None:
            family.setdefault(row.parent, []).append(row)
    return [] if root is None else _Chains(plan, family, now).of(root)[1]


#: Composites whose children follow each other; those of the others run side by side.
_TURNS = frozenset({Kind.SUPERVISE})
#: What a chain takes, and its calls.
_Chain = tuple[float, list[Link]]


class _Chains:
    def __init__(self, plan: Plan, family: Mapping[StepPath, list[Timed]], now: float) -> None:
        self.plan = plan
        self.family = family
        self.now = now

    def of(self, row: Timed) -> _Chain:
        if row.kind is Kind.AGENT:
            began = row.started_at is not None
            seconds = row.seconds(self.now)
            return seconds, [Link(row.path, row.state, seconds)] if began else []
        below = {kid.path: (kid, self.of(kid)) for kid in self.family.get(row.path, ())}
        chains = [chain for _, chain in below.values()]
        if row.kind is Kind.SEQUENCE:
            return self._through(row, below)
        if row.kind in _TURNS:
            return sum(chain[0] for chain in chains), [link for chain in chains for link in chain[1]]
        return max(chains, key=lambda chain: chain[0], default=(0.0, []))

    def _through(self, row: Timed, below: Mapping[StepPath, tuple[Timed, _Chain]]) -> _Chain:
        """The longest way through a list or a graph: a step's chain comes after the longest of those it needs."""
        needs = {
            path: [need for name in self.plan.nodes[kid.ref].needs if (need := child(row.path, name)) in below]
            for path, (kid, _) in below.items()
        }
        total: dict[StepPath, float] = {}
        before: dict[StepPath, StepPath | None] = {}
        for path in TopologicalSorter(needs).static_order():
            before[path] = max(needs[path], key=total.__getitem__, default=None)
            after = before[path]
            total[path] = below[path][1][0] + (0.0 if after is None else total[after])
        at = max(total, key=total.__getitem__, default=None)
        seconds = 0.0 if at is None else total[at]
        way: list[StepPath] = []
        while at is not None:
            way.append(at)
            at = before[at]
        return seconds, [link for path in reversed(way) for link in below[path][1][1]]


def blocked_by(plan: Plan, rows: Iterable[Timed]) -> dict[StepPath, list[StepPath]]:
    """Each step that waits for others of its list, with those of them that have not ended; in order of paths."""
    known = {row.path: row for row in rows}
    found = {}
    for path, row in sorted(known.items()):
        if row.state is not StepState.PENDING or row.held:
            continue
        needs = (child(ancestor(path, 1), name) for name in plan.nodes[row.ref].needs)
        open_ = [need for need in needs if need in known and known[need].state not in STEP_TERMINAL]
        if open_:
            found[path] = open_
    return found


def behind(plan: Plan, path: StepPath, ref: str) -> int:
    """How many calls of the plan cannot begin before this step has ended; a fan-out not yet open counts as one."""
    waiting: set[str] = set()
    for _, link in plan.chain(path, ref):
        _gather(plan, link, waiting)
    return sum(plan.nodes[each].kind is Kind.AGENT for each in waiting)


def _gather(plan: Plan, ref: str, waiting: set[str]) -> None:
    """Adds all that follows ``ref`` in its list, with what it is made of."""
    scope = plan.nodes[ref].parent
    to_see = [] if scope is None else [(scope, name) for name in plan.nodes[ref].successors]
    while to_see:
        scope, name = to_see.pop()
        inside = dict(zip(plan.nodes[scope].names, plan.nodes[scope].body, strict=True))
        follower = inside[name]
        if follower not in waiting:
            waiting.update(_within(plan, follower))
            to_see += [(scope, each) for each in plan.nodes[follower].successors]


def _within(plan: Plan, ref: str) -> list[str]:
    found = [ref]
    for each in found:
        found += plan.nodes[each].body
    return found
