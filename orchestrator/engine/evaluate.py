"""Composites that a settle makes ready are evaluated by it: no claim, no lease and no commit of their own.

A fan-out opens in the transaction of the step before it, a join ends in that of its last branch. The job's lock is held
(or the write refuses itself), so what is read here is what was committed, with this transaction's own changes over it.
What would keep the lock for long, or reads debts that are not yet written, stays a step that is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass

from orchestrator.domain.advance import Advance
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.plan import Kind, StepRow
from orchestrator.domain.planner import CHUNK
from orchestrator.domain.result import GaveUp, Opened, Result
from orchestrator.domain.states import JOB_MOVING, StepState
from orchestrator.engine import composites
from orchestrator.engine.context import Engine
from orchestrator.engine.gather import gather, reads_members
from orchestrator.engine.write import run_stops
from orchestrator.store import steps
from orchestrator.store.session import Moved, Session


@dataclass(slots=True)
class Became:
    """The rows that one result made ready, in order."""

    advance: Advance
    ready: list[StepRow]


def evaluate(engine: Engine, session: Session, results: Sequence[Became]) -> None:
    """Until what is ready of ``results`` is calls, or too wide. Composites may follow on each other."""
    too_wide: set[int] = set()
    while due := [
        (became, row)
        for became in results
        for row in became.ready
        if id(row) not in too_wide and _is_due(became.advance, row)
    ]:
        known = known_rows([became.advance for became, _ in due])
        # Evaluating opens the row it is given; here that is only known to hold when it is not too wide.
        claimed = gather(engine, session, [copy(row) for _, row in due], known)
        for became, row in due:
            if row.state is not StepState.READY:  # a sibling's failure has stopped it
                continue
            result = composites.result(claimed[row.job_id, row.path], engine.sizes, engine.caps)
            if isinstance(result, Opened) and len(became.advance.created) + len(result.children) > CHUNK:
                too_wide.add(id(row))
                continue
            at = next(i for i, one in enumerate(became.ready) if one is row)
            became.ready[at : at + 1] = _settle(engine, session, became.advance, row, result)


def known_rows(advances: Sequence[Advance]) -> Mapping[JobId, Mapping[StepPath, StepRow]]:
    return {advance.job.id: advance.rows for advance in advances}


def take_over(engine: Engine, row: StepRow, now: float) -> None:
    """Claims ``row`` for this process, within a transaction that writes it."""
    row.state = StepState.RUNNING
    row.attempt += 1
    row.fence += 1
    row.begun = False
    row.lease_owner, row.lease_until = engine.process, now + engine.lease
    row.started_at = now
    row.first_started_at = row.first_started_at or now


def _is_due(advance: Advance, row: StepRow) -> bool:
    if row.kind in (Kind.AGENT, Kind.UNDO) or row.state is not StepState.READY or row.losses:
        return False
    if reads_members(row) and row.kind is not Kind.SUPERVISE and (row.width or 0) > CHUNK:
        return False
    if advance.plan.compensates and advance.plan.tolerates:  # what ends the job asks what failed branches owe
        return False
    return advance.job.state in JOB_MOVING


def _settle(engine: Engine, session: Session, advance: Advance, row: StepRow, result: Result) -> list[StepRow]:
    """Moves ``row`` as its own settle would; answers what that made ready."""
    if isinstance(result, GaveUp) and advance.recalled:
        raise Moved  # what a failure stops is looked for under the job's lock
    if not isinstance(result, Opened) or not result.children:
        _load_beyond(session, advance, row)
    advance.ready = [one for one in advance.ready if one is not row]
    take_over(engine, row, advance.now)
    before = len(advance.ready)
    advance.settle(row, result, worker=engine.process)
    run_stops(session, advance)
    return advance.ready[before:]


def _load_beyond(session: Session, advance: Advance, row: StepRow) -> None:
    """What the end of ``row`` may move, where the settle that made it ready could not."""
    plan, job_id = advance.plan, row.job_id
    missing = [path for path in plan.touched(row.path, row.ref) if path not in advance.rows]
    if missing:
        advance.add(steps.load(session, job_id, missing))
    for path, ref in plan.chain(row.path, row.ref)[1:]:
        if plan.nodes[ref].max_concurrency is not None:
            here = sum(one.parent == path for one in advance.rows.values())
            advance.add(steps.load_held(session, job_id, path, here + 1))
