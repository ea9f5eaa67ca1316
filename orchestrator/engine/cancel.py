"""Cancel: what has not begun ends at once, live calls are asked to stop, the job ends when none is left."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.domain.advance import Advance
from orchestrator.domain.errors import Conflict
from orchestrator.domain.ids import ROOT, JobId
from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.plan import JobRow, StepRow
from orchestrator.domain.states import JOB_MOVING, JobState, StepState
from orchestrator.engine import audit
from orchestrator.engine.context import Engine
from orchestrator.engine.missing import no_job
from orchestrator.engine.write import Batch, publish, run_stops, tell_of_debts, write
from orchestrator.store import jobs, steps
from orchestrator.store.session import Moved, Session


def cancel(
    engine: Engine, job_id: JobId, tenant: str | None = None, *, by: str | None = None, note: str | None = None
) -> JobRow:
    """Asks a job to stop. Again is no error. Raises ``NotFound``, or ``Conflict`` if it ended in another way.

    ``by`` and ``note`` go into the audit trail, once: with the call that stopped it.
    """

    def decide(session: Session, advance: Advance) -> None:
        advance.cancel_job()
        if by is not None:
            audit.note(engine, session, "job.cancelled", job_id, tenant=advance.job.tenant, by=by, why=note)

    job = _stop(engine, job_id, tenant, decide)
    if job.state in (JobState.CANCELLING, JobState.CANCELLED):
        return job
    if job.state is JobState.COMPENSATING and engine.db.run(lambda s: _root_of(s, job_id), readonly=True).state is (
        StepState.CANCELLED
    ):  # it undoes because it was cancelled
        return job
    raise Conflict(f"job {job_id} is {job.state.value} and cannot be cancelled.")


def expire(engine: Engine, job_id: JobId) -> JobRow:
    """Fails a job that is past its deadline."""

    def decide(_: Session, advance: Advance) -> None:
        if advance.job.waits:  # since it was found overdue it has asked a person: the deadline does not run
            return
        advance.expire_job(Failure(FailureClass.TIMEOUT, "the job's deadline has passed", outcome_known=False))

    return _stop(engine, job_id, None, decide)


def _stop(engine: Engine, job_id: JobId, tenant: str | None, decide: Callable[[Session, Advance], None]) -> JobRow:
    for attempt in range(5):
        batch = Batch()

        def work(session: Session, batch: Batch = batch) -> JobRow:
            job = jobs.lock(session, [job_id]).get(job_id)
            if job is None or (tenant is not None and job.tenant != tenant):
                raise no_job(session, job_id)
            if job.state not in JOB_MOVING:
                return job
            plan = engine.plans.get(session, job.version)
            now = session.now()
            root = _root_of(session, job_id)
            if root.stopping is not None:
                return job
            advance = Advance(plan, job, [root], now, engine.caps.steps)
            tell_of_debts(session, [advance])
            decide(session, advance)
            run_stops(session, advance)
            write(engine, session, [advance], batch, now)
            return job

        try:
            job = engine.db.run(work)
        except Moved:
            if attempt == 4:
                raise
            continue
        publish(engine, batch)
        return job
    raise AssertionError("unreachable")


def _root_of(session: Session, job_id: JobId) -> StepRow:
    return steps.load(session, job_id, [ROOT])[0]
