"""Replay and discard. A replay continues the job from what failed: every finished checkpoint is kept."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

from orchestrator.crashpoints import crashpoint
from orchestrator.domain.errors import Conflict, NotFound
from orchestrator.domain.events import Event, EventType
from orchestrator.domain.ids import ROOT, StepPath, child, parent_of
from orchestrator.domain.plan import JobRow, Plan, StepRow
from orchestrator.domain.saga import is_undoing
from orchestrator.domain.states import STEP_DONE, JobState, StepState
from orchestrator.engine import audit, undoing
from orchestrator.engine.context import Engine
from orchestrator.store import changes, desk, history, jobs, steps
from orchestrator.store.database import Session
from orchestrator.store.history import CounterKey


def get(engine: Engine, letter_id: str, tenant: str | None = None) -> dict[str, Any]:
    """A dead letter with its attempts and their failures. Raises ``NotFound``."""

    def work(session: Session) -> dict[str, Any]:
        letter = _own(desk.letter(session, letter_id), letter_id, tenant)
        return {**letter, "attempts": history.attempts_of(session, letter["job_id"], letter["path"])}

    return engine.db.run(work, readonly=True)


def discard(
    engine: Engine, letter_id: str, *, by: str, note: str | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """Closes a letter without replay; the job stays failed. Raises ``NotFound``, ``Conflict``."""

    def work(session: Session) -> dict[str, Any]:
        letter = _own(desk.letter(session, letter_id, lock=True), letter_id, tenant)
        _still_open(letter)
        desk.close_letter(session, letter_id, "discarded", by, note)
        audit.note(engine, session, "dead_letter.discarded", letter_id, tenant=letter["tenant"], by=by, why=note)
        return {**letter, "state": "discarded"}

    return engine.db.run(work)


def undiscard(
    engine: Engine, letter_id: str, *, by: str, note: str | None = None, tenant: str | None = None
) -> dict[str, Any]:
    """Opens a discarded letter again. Raises ``NotFound``, ``Conflict`` (it is not discarded, or its job moved on)."""

    def work(session: Session) -> dict[str, Any]:
        seen = _own(desk.letter(session, letter_id), letter_id, tenant)
        job = _locked(session, seen)
        if job.state is not JobState.FAILED or job.run != seen["run"]:
            raise Conflict(
                f"job {job.id} is {job.state.value} in run {job.run}; the letter is of a failed run {seen['run']}."
            )
        if not desk.reopen_letter(session, letter_id):
            raise Conflict(f"dead letter {letter_id} is {seen['state']}, not discarded.")
        audit.note(engine, session, "dead_letter.undiscarded", letter_id, tenant=seen["tenant"], by=by, why=note)
        return _own(desk.letter(session, letter_id), letter_id, tenant)

    return engine.db.run(work)


def replay(engine: Engine, letter_id: str, *, by: str, note: str | None = None, tenant: str | None = None) -> JobRow:
    """failed → running, with a new run number; what failed or was cancelled is done again, what finished is kept.

    Raises ``NotFound``, ``Conflict`` (the letter is closed, or the job is not failed).
    """
    ready: list[StepRow] = []

    def work(session: Session) -> JobRow:
        ready.clear()
        seen = _own(desk.letter(session, letter_id), letter_id, tenant)
        job = _locked(session, seen)
        _still_open(_own(desk.letter(session, letter_id, lock=True), letter_id, tenant))
        if not may_replay(job, seen["path"]):
            raise Conflict(f"job {job.id} is {job.state.value}; only a failed job is replayed.")
        crashpoint("dead_letter.replay")
        desk.close_letter(session, letter_id, "replayed", by, note)
        audit.note(engine, session, "dead_letter.replayed", letter_id, tenant=job.tenant, by=by, why=note)
        ready.extend(reopen(engine, session, job, seen["path"]))
        return job

    job = engine.db.run(work)
    engine.feed.committed([], ready)
    return job


def may_replay(job: JobRow, path: StepPath) -> bool:
    """Whether the letter of ``path`` can be replayed as its job is now."""
    if is_undoing(path):  # it is stuck beside a job that has ended
        return job.state in (JobState.FAILED, JobState.CANCELLED)
    return job.state is JobState.FAILED


def reopen(engine: Engine, session: Session, job: JobRow, path: StepPath = ROOT) -> list[StepRow]:
    """Reopens a failed job's unfinished steps, each in a new epoch; answers those that are ready.

    ``path``: where its letter stands; a stuck undoing (``engine/undoing.py``) is reopened alone.
    """
    if is_undoing(path):
        return undoing.reopen(engine, session, job, path)
    plan = engine.plans.get(session, job.version)
    rows = {row.path: row for row in steps.load_all(session, job.id) if not is_undoing(row.path)}
    before = {path: (row.state, row.fence) for path, row in rows.items()}
    now = session.now()
    job.state, job.run, job.failure, job.finished_at = JobState.RUNNING, job.run + 1, None, None
    if job.deadline_at is not None and job.created_at is not None:
        job.deadline_at = now + (job.deadline_at - job.created_at)
    job.events += 1
    undoing.owe_again(session, job.id)
    reopened = _reopened(rows)
    for at in reopened:
        _reset(plan, rows[at])
    _recount(plan, rows, reopened)
    ready = _let_go(plan, rows, reopened, now)
    crashpoint("epoch.change")
    moved = steps.moved([rows[path] for path in reopened], before)
    if not changes.write(session, changes.Changes(moved=moved)):
        raise Conflict(f"job {job.id} moved while it was being replayed.", mend="Try again.")
    event = Event(job.id, job.events, EventType.JOB_REOPENED, None, {"steps": len(reopened)}, job.run, now)
    history.append_events(session, [event])
    jobs.write(session, [job])
    counts: Counter[CounterKey] = Counter({("dead_letters_replayed_total", (("workflow", job.workflow),)): 1})
    history.add_counts(session, engine.process, counts)
    return ready


def _reopened(rows: dict[StepPath, StepRow]) -> list[StepPath]:
    """What failed or was cancelled, below nothing but what is itself reopened; outermost first."""
    out: list[StepPath] = []
    chosen: set[StepPath] = set()
    for path in sorted(rows, key=lambda p: (p.count("/") if p else -1, p)):
        parent = parent_of(path)
        if rows[path].state not in STEP_DONE and (parent is None or parent in chosen):
            chosen.add(path)
            out.append(path)
    return out


def _reset(plan: Plan, row: StepRow) -> None:
    own = plan.nodes[row.ref].agent
    if own is not None and row.fallback:
        row.agent, row.queue, row.limited = own, plan.queue_of(row.ref), plan.agents[own].limits is not None
    row.fallback, row.degraded = 0, False
    row.epoch += 1
    row.fence += 1
    if row.failure is not None and row.failure.outcome_known:
        row.generation += 1  # the last call's outcome is known: the next one acts anew
    row.tries = row.losses = row.losses_alone = row.redispatches = 0
    row.begun = row.held = False
    row.lease_owner = row.lease_until = row.not_before = row.dispatched_at = row.mark = row.finished_at = None
    row.first_started_at = None
    row.stopping = row.failure = row.failed_at = None
    row.state = StepState.PENDING


def _recount(plan: Plan, rows: dict[StepPath, StepRow], reopened: list[StepPath]) -> None:
    """Joins and dependencies as the finished checkpoints make them."""
    children: dict[StepPath, list[StepRow]] = defaultdict(list)
    for row in rows.values():
        if row.parent is not None:
            children[row.parent].append(row)
    for path in reopened:
        row = rows[path]
        if row.width is not None:
            row.succeeded = sum(kid.state in STEP_DONE for kid in children[path])
            row.failed = row.cancelled = 0
        scope = row.parent
        needs = plan.nodes[row.ref].needs
        row.deps_left = sum(rows[child(scope or StepPath(""), name)].state not in STEP_DONE for name in needs)


def _let_go(plan: Plan, rows: dict[StepPath, StepRow], reopened: list[StepPath], now: float) -> list[StepRow]:
    """Sets each reopened row waiting, ready or pending; members beyond ``max_concurrency`` are held."""
    ready: list[StepRow] = []
    running: Counter[StepPath] = Counter()
    for path in reopened:
        row = rows[path]
        parent = rows.get(row.parent) if row.parent is not None else None
        if row.width is not None and row.live > 0:
            row.state = StepState.WAITING
        elif row.deps_left == 0:
            row.state = StepState.READY
        if parent is not None and row.state is not StepState.PENDING:
            cap = plan.nodes[parent.ref].max_concurrency
            running[parent.path] += 1
            if cap is not None and running[parent.path] > cap:
                row.state, row.held = StepState.PENDING, True
        if row.state is StepState.READY:
            row.ready_at = now
            ready.append(row)
    return ready


def _own(letter: dict[str, Any] | None, letter_id: str, tenant: str | None) -> dict[str, Any]:
    if letter is None or (tenant is not None and letter["tenant"] != tenant):
        raise NotFound(f"no dead letter {letter_id}.")
    return letter


def _locked(session: Session, letter: dict[str, Any]) -> JobRow:
    """Its job, locked first: the lock order. Retention may have been quicker."""
    job = jobs.lock(session, [letter["job_id"]]).get(letter["job_id"])
    if job is None:
        raise NotFound(f"no dead letter {letter['id']}.")
    return job


def _still_open(letter: dict[str, Any]) -> None:
    if letter["state"] != "open":
        raise Conflict(f"dead letter {letter['id']} is {letter['state']} by {letter['closed_by']}.")
