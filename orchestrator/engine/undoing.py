"""What people see and do of a job's undoing: its ledger, and sending a stuck compensation back to work."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.errors import Conflict
from orchestrator.domain.events import Event, EventType
from orchestrator.domain.ids import JobId, StepPath, parent_of
from orchestrator.domain.plan import UNDO, JobRow, StepRow
from orchestrator.domain.states import JobState, StepState
from orchestrator.engine.context import Engine
from orchestrator.engine.missing import no_job
from orchestrator.store import changes, compensations, desk, history, jobs, steps, webhooks
from orchestrator.store.rows import job_values
from orchestrator.store.session import Session


def ledger(engine: Engine, job_id: JobId, tenant: str | None = None) -> list[dict[str, Any]]:
    """What the job owed or owes, in the order it was done: which step, what undoes it, and how far that is.

    Raises ``NotFound``.
    """

    def work(session: Session) -> list[dict[str, Any]]:
        job = jobs.get_many(session, [job_id]).get(job_id)
        if job is None or (tenant is not None and job.tenant != tenant):
            raise no_job(session, job_id)
        return [
            {
                "step": row["path"],
                "epoch": row["epoch"],
                "outcome": "known" if row["known"] else "unknown",
                "state": row["state"],
                "by": row["by"],
                "agent": row["agent"],
                "attempt": row["attempt"],
                "finished": row["number"],
            }
            for row in compensations.ledger(session, job_id)
        ]

    return engine.db.run(work, readonly=True)


def reopen(engine: Engine, session: Session, job: JobRow, path: StepPath) -> list[StepRow]:
    """Sends one stuck compensation of an ended job back to work; the job ends again as it had ended.

    Answers the steps that are ready. The job's row is locked.
    """
    plan = engine.plans.get(session, job.version)
    chain = [at for at, _ in plan.chain(path, _ref(session, job.id, path))]
    rows = {row.path: row for row in steps.load(session, job.id, chain)}
    before = {at: (row.state, row.fence) for at, row in rows.items()}
    now = session.now()
    stuck = rows[path]
    for row in rows.values():
        row.epoch += 1
        row.fence += 1
        row.finished_at = row.failure = row.failed_at = None
        if row is not stuck:
            row.state, row.output = StepState.WAITING, None
            kid = next(other for other in rows.values() if parent_of(other.path) == row.path)
            row.failed, row.succeeded = _without(row, kid, stuck)
    stuck.state, stuck.ready_at = StepState.READY, now
    stuck.tries = stuck.losses = stuck.losses_alone = stuck.redispatches = 0
    stuck.begun = False
    stuck.first_started_at = stuck.dispatched_at = stuck.mark = None
    job.state, job.finished_at = JobState.COMPENSATING, None
    job.events += 1
    event = Event(job.id, job.events, EventType.JOB_COMPENSATING, path, {"again": True}, job.run, now)
    written = changes.Changes(
        moved=steps.moved(rows.values(), before),
        events=history.event_rows([event]),
        jobs=[job_values(job)],
        webhooks=webhooks.owed(job, [event]),
    )
    if not changes.write(session, written):
        raise Conflict(f"job {job.id} moved while its compensation was being replayed.", mend="Try again.")
    if stuck.parent is not None and stuck.undoes is not None:
        compensations.begin_again(session, job.id, stuck.undoes)
    return [stuck]


def owe_again(session: Session, job_id: JobId) -> None:
    """A job that is replayed takes its stuck compensations along: what they would undo stands, and is owed again."""
    if compensations.owe_again(session, job_id):
        desk.close_beside(session, job_id, UNDO)


def _without(row: StepRow, kid: StepRow, stuck: StepRow) -> tuple[int, int]:
    """A composite's numbers (failed, succeeded) while ``kid`` is open again."""
    return (row.failed - 1, row.succeeded) if kid is stuck else (row.failed, row.succeeded - 1)


def _ref(session: Session, job_id: JobId, path: StepPath) -> str:
    return steps.load(session, job_id, [path])[0].ref
