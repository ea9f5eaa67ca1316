"""What a settle begins with: its jobs and the steps it may move, recalled or read under the jobs' locks."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

from orchestrator.domain.advance import Advance
from orchestrator.domain.ids import JobId, StepPath, ancestor
from orchestrator.domain.plan import Plan, StepRow
from orchestrator.domain.result import Opened, Succeeded
from orchestrator.domain.saga import Debt
from orchestrator.domain.states import JobState, StepState
from orchestrator.engine.context import Engine
from orchestrator.engine.intent import Settle
from orchestrator.engine.recent import Remembered
from orchestrator.engine.write import Batch, tell_one
from orchestrator.store import compensations, feed, jobs, steps
from orchestrator.store.rows import step_row
from orchestrator.store.session import Session

#: So many of the steps that come after one are read with it.
AHEAD = 64
#: Steps of a job that is remembered, at most.
WHOLE = 128


def load(
    engine: Engine, session: Session, plans: Mapping[JobId, Plan], intents: Sequence[Settle], batch: Batch
) -> list[Advance]:
    """Where each job of ``intents`` stands; those that are recalled are not locked, their write finds out."""
    advances = _recalled(engine, plans, intents)
    remembered = {advance.job.id for advance in advances}
    if left := [intent for intent in intents if intent.job_id not in remembered]:
        advances += _loaded(engine, session, plans, left, batch)
    return advances


def _recalled(engine: Engine, plans: Mapping[JobId, Plan], intents: Sequence[Settle]) -> list[Advance]:
    """The jobs that this process remembers, from memory alone. The write finds out whether it is true."""
    at = engine.clock.monotonic()
    by_job: dict[JobId, list[Settle]] = defaultdict(list)
    for intent in intents:
        by_job[intent.job_id].append(intent)
    out = []
    for job_id, mine in by_job.items():
        plan, recent = plans.get(job_id), engine.recent.take(job_id, at)
        if plan is None or recent is None or not all(_knows(plan, recent, intent) for intent in mine):
            continue
        advance = Advance(plan, recent.job, recent.rows.values(), engine.recent.now(at), engine.caps.steps)
        advance.recalled = True
        out.append(advance)
    return out


def _knows(plan: Plan, recent: Remembered, intent: Settle) -> bool:
    """Whether all that a success moves is remembered, and its step as this attempt knows it, not an older one."""
    row = recent.rows.get(intent.path)
    return (
        isinstance(intent.result, Succeeded)
        and row is not None
        and (row.state, row.fence) == (StepState.RUNNING, intent.fence)
        and recent.rows.keys() >= set(plan.touched(intent.path, intent.ref))
    )


def _loaded(
    engine: Engine, session: Session, plans: Mapping[JobId, Plan], intents: Sequence[Settle], batch: Batch
) -> list[Advance]:
    """Under the jobs' locks."""
    known = [intent for intent in intents if intent.job_id in plans]
    debts = _debts(session, known)
    keys = [(one.job_id, path) for one in known for path in _concerned(plans[one.job_id], one)]
    keys += [(job_id, debt.path) for job_id, found in debts.items() for debt in found.values()]
    held = _held(plans, known)
    owers = [job_id for job_id, plan in plans.items() if plan.compensates]
    publishes = any(_publishes(plans[intent.job_id], intent) for intent in known)
    jobs_found, steps_found, *more = session.together(
        jobs.locking(session, {intent.job_id for intent in intents}),
        steps.loading(session, keys),
        *(steps.loading_held(job_id, path, count) for (job_id, path), count in held.items()),
        *([compensations.asking_who_owes(session, owers)] if owers else []),
        *([feed.ASKING_FOR_MARKERS] if publishes else []),
    )
    if publishes:
        batch.marks = feed.markers(more.pop())
    locked, now = jobs.locked(jobs_found)
    rows: dict[JobId, dict[StepPath, StepRow]] = defaultdict(dict)
    for row in map(step_row, chain(steps_found, *more[: len(held)])):
        rows[row.job_id].setdefault(row.path, row)
    owing = {JobId(row["id"]) for row in more[-1]} if owers else set()
    advances = [
        Advance(plans[job_id], job, rows[job_id].values(), now, engine.caps.steps)
        for job_id, job in locked.items()
        if job_id in plans
    ]
    if advances:
        engine.recent.learn(now, engine.clock.monotonic())
    for advance in advances:
        advance.debts = debts.get(advance.job.id, {})
        tell_one(session, advance, owing)
    return advances


def _concerned(plan: Plan, intent: Settle) -> list[StepPath]:
    """What the settle may move; and all that comes after it in its line, if this process is likely to go on with it."""
    paths = plan.touched(intent.path, intent.ref)
    if intent.continue_on and isinstance(intent.result, Succeeded):
        paths += (line(plan, intent.path, intent.ref) or [])[:AHEAD]
    return paths


def _publishes(plan: Plan, intent: Settle) -> bool:
    """Whether it is likely to make more ready than its worker goes on with."""
    after = plan.successors(intent.ref)
    if isinstance(intent.result, Opened) or len(after) > 1:
        return True
    return any(node.composite for node in after) or bool(after and not intent.continue_on)


def line(plan: Plan, path: StepPath, ref: str) -> list[StepPath] | None:
    """What comes after a step that its job may be remembered with; a job that can owe is read each time."""
    return None if plan.compensates else plan.line(path, ref)


def is_alone(advance: Advance, mine: Iterable[StepRow]) -> bool:
    """Whether nothing of the job can move by itself but the steps that this process executes, ``mine`` the newest."""
    job, plan = advance.job, advance.plan
    if plan.compensates or job.state is not JobState.RUNNING or len(advance.rows) > WHOLE:
        return False
    if any(row.state is StepState.READY for row in advance.ready):
        return False
    if advance.recalled:  # then it was before, and nothing was left to others
        return True
    below: dict[StepPath, set[StepPath]] = defaultdict(set)
    for row in mine:
        for path, ref in plan.chain(row.path, row.ref):
            parent = plan.nodes[ref].parent
            if parent is not None and not plan.nodes[parent].line:
                below[ancestor(path, 1)].add(path)
    return bool(mine) and all(
        path in advance.rows and advance.rows[path].live == len(kids) for path, kids in below.items()
    )


def _debts(session: Session, intents: Sequence[Settle]) -> dict[JobId, dict[int, Debt]]:
    """What the undoing steps among ``intents`` pay."""
    numbers: dict[JobId, list[int]] = defaultdict(list)
    for intent in intents:
        if intent.undoes is not None:
            numbers[intent.job_id].append(intent.undoes)
    return {job_id: compensations.by_number(session, job_id, wanted) for job_id, wanted in numbers.items()}


def _held(plans: Mapping[JobId, Plan], intents: Iterable[Settle]) -> Counter[tuple[JobId, StepPath]]:
    """How many of the members in line behind each ``max_concurrency`` this batch may let go."""
    wanted: Counter[tuple[JobId, StepPath]] = Counter()
    for intent in intents:
        plan = plans[intent.job_id]
        for path, ref in plan.chain(intent.path, intent.ref)[1:]:
            if plan.nodes[ref].max_concurrency is not None:
                wanted[intent.job_id, path] += 1
    return wanted
