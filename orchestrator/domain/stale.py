"""What a step's result reaches: its transitive dependents, and nothing else. Pure.

A list runs in order (or by ``needs``), and a step may read only what has ended before it: so whatever reads a step
comes after it in its own list, or after something that encloses it. Three things follow from a stale step:

- what comes after it, in its list and in the lists around it, is done again from the beginning, whatever it had opened;
- what encloses it goes on where it stood: its other children keep their results, its body or join is done again;
- of a supervisor, the rounds after the stale one never happened.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from orchestrator.domain.ids import StepPath, child, parent_of
from orchestrator.domain.plan import Kind, Plan, StepRow


@dataclass(frozen=True, slots=True)
class Stale:
    """``again``: from the beginning. ``around``: their bodies alone. ``gone``: opened by a step that is done again."""

    again: frozenset[StepPath]
    around: frozenset[StepPath]
    gone: frozenset[StepPath]

    def and_also(self, other: Stale) -> Stale:
        """Both together."""
        again, gone = self.again | other.again, self.gone | other.gone
        return Stale(again - gone, (self.around | other.around) - again - gone, gone)


NOTHING = Stale(frozenset(), frozenset(), frozenset())


def stale_from(plan: Plan, rows: Mapping[StepPath, StepRow], starts: Iterable[StepPath]) -> Stale:
    """What must be done again when the results of ``starts`` no longer hold; ``rows`` are all of the job's."""
    again: set[StepPath] = set()
    around: set[StepPath] = set()
    rounds: dict[StepPath, int] = {}
    for start in starts:
        again.add(start)
        at = rows[start]
        while at.parent is not None:
            again |= _after(plan, at)
            around.add(at.parent)
            enclosing = rows[at.parent]
            if enclosing.kind is Kind.SUPERVISE:
                rounds[enclosing.path] = min(at.seq + 1, rounds.get(enclosing.path, at.seq + 1))
            at = enclosing
    gone = {path for path, row in rows.items() if _opened_by(again, path) or _later_round(rows, rounds, path)}
    again = {path for path in again if path in rows and path not in gone}
    return Stale(frozenset(again), frozenset(around - again - gone), frozenset(gone))


def _after(plan: Plan, row: StepRow) -> set[StepPath]:
    """The steps of its list that come after ``row``, near and far."""
    if row.parent is None:
        return set()
    around = plan.nodes[plan.nodes[row.ref].parent or ""]
    refs = dict(zip(around.names, around.body, strict=False))
    seen: set[str] = set()
    waiting = list(plan.nodes[row.ref].successors)
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting.extend(plan.nodes[refs[name]].successors)
    return {child(row.parent, name) for name in seen}


def _opened_by(again: set[StepPath], path: StepPath) -> bool:
    at = parent_of(path)
    while at is not None:
        if at in again:
            return True
        at = parent_of(at)
    return False


def _later_round(rows: Mapping[StepPath, StepRow], rounds: Mapping[StepPath, int], path: StepPath) -> bool:
    """Whether ``path`` is, or lies in, a round after the last that stands."""
    at: StepPath | None = path
    while at is not None:
        row = rows.get(at)
        if row is None or row.parent is None:
            return False
        last = rounds.get(row.parent)
        if last is not None and row.seq + 1 > last:
            return True
        at = row.parent
    return False


def begin_again(row: StepRow) -> None:
    """Takes back what a step had come to, and what a person had decided for it. Its next call is a new one."""
    row.width, row.round, row.succeeded, row.failed, row.cancelled = None, 0, 0, 0, 0
    row.output = row.given = row.chosen = None
    if row.doubt is None:  # else somebody is asked about that call first, by its key
        row.failure = None
        row.generation += 1


def take_out(rows: dict[StepPath, StepRow], stale: Stale) -> None:
    """Removes what is gone. Whatever opens it again has seen the highest epoch, fence and key that were given there."""
    gone = [rows.pop(path) for path in stale.gone]
    for row in gone:
        at = parent_of(row.path)
        while at is not None and at not in rows:
            at = parent_of(at)
        opener = rows[at if at is not None else StepPath("")]
        opener.epoch = max(opener.epoch, row.epoch)
        opener.fence = max(opener.fence, row.fence)
        opener.generation = max(opener.generation, row.generation + 1)
