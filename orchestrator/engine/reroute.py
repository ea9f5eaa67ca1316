"""Work that a breaker holds back: what has a fallback goes to it, the rest is told, once, that it waits.

The feed calls it with the agents it may publish nothing for. Rows are found, then moved under their jobs' locks like in
a settle: a step that was claimed meanwhile, or whose breaker closed, is left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.plan import StepRow
from orchestrator.domain.reroute import Reroute
from orchestrator.domain.states import JOB_MOVING, StepState
from orchestrator.engine.context import Engine
from orchestrator.engine.write import Batch, publish, run_stops, tell_of_debts, write
from orchestrator.store import breakers, jobs, steps
from orchestrator.store.feed import Limited
from orchestrator.store.session import Moved, Session

#: Steps moved in one transaction, and transactions in one go: the feed has other work, and comes back.
BATCH = 200
GOES = 10

Found = tuple[JobId, StepPath, str]


def reroute(engine: Engine, held: Iterable[Limited]) -> int:
    """Answers how many steps were looked at."""
    count = 0
    for tenant, agent in sorted(held):
        for _ in range(GOES):
            found = engine.db.run(
                lambda s, t=tenant, a=agent: breakers.held_back(s, t, a, BATCH),  # type: ignore[misc]
                readonly=True,
            )
            if found:
                _move(engine, tenant, agent, found)
            count += len(found)
            if len(found) < BATCH:
                break
    return count


def _move(engine: Engine, tenant: str, agent: str, found: Sequence[Found]) -> None:
    for attempt in range(5):
        batch = Batch()
        try:
            engine.db.run(lambda session: _move_in(engine, session, tenant, agent, found, batch))  # noqa: B023
            break
        except Moved:
            if attempt == 4:
                raise
    publish(engine, batch)


def _move_in(engine: Engine, session: Session, tenant: str, agent: str, found: Sequence[Found], batch: Batch) -> None:
    by_job: dict[JobId, list[Found]] = defaultdict(list)
    for one in found:
        by_job[one[0]].append(one)
    locked, now = jobs.lock_at(session, by_job)
    holding = breakers.holding(session, tenant, agent)
    if holding is None:
        return
    plans = {
        job_id: engine.plans.get(session, job.version) for job_id, job in locked.items() if job.state in JOB_MOVING
    }
    advances = []
    for job_id, plan in plans.items():
        keys = {path for _, place, ref in by_job[job_id] for path in plan.touched(place, ref)}
        advances.append(Reroute(plan, locked[job_id], steps.load(session, job_id, keys), now, engine.caps.steps))
    tell_of_debts(session, advances)
    for advance in advances:
        for _, path, _ in by_job[advance.job.id]:
            row = advance.rows.get(path)
            if row is not None and _waits(row, agent):
                advance.past(row, *holding)
                run_stops(session, advance)
    write(engine, session, advances, batch, now)


def _waits(row: StepRow, agent: str) -> bool:
    return row.state is StepState.READY and row.dispatched_at is None and row.not_before is None and row.agent == agent
