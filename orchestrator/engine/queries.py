"""What people ask: jobs, steps, history. Read-only, one snapshot each; the values of API, CLI and client alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.domain.errors import Gone
from orchestrator.domain.events import ENVELOPE_VERSION, Event
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.json_values import loads
from orchestrator.domain.outcome import Stored
from orchestrator.domain.plan import JobRow, Plan, StepRow
from orchestrator.domain.states import JobState, StepState
from orchestrator.engine import webhooks
from orchestrator.engine.context import Engine
from orchestrator.engine.missing import no_job
from orchestrator.engine.submit import Accepted
from orchestrator.store import feed, history, jobs, payloads, steps
from orchestrator.store.rows import stored
from orchestrator.store.session import Session


def job_view(job: JobRow, texts: dict[str, str] | None = None, *, values: bool = False) -> dict[str, Any]:
    """A job as the outside sees it; ``values`` adds input and output."""
    view: dict[str, Any] = {
        "id": job.id,
        "workflow": job.workflow,
        "version": job.version,
        "state": job.state.value,
        "run": job.run,
        "tenant": job.tenant,
        "priority": job.priority,
        "tags": job.tags,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "deadline_at": job.deadline_at,
        "steps": job.steps,
        "cost_usd": job.cost_usd,
        "input_tokens": job.input_tokens,
        "output_tokens": job.output_tokens,
        "failure": job.failure.as_dict() if job.failure else None,
        "origin": job.origin,
    }
    if values:
        view["input"] = _value(job.input, texts or {})
        view["output"] = _value(job.output, texts or {})
    return view


def accepted_view(accepted: Accepted) -> dict[str, Any]:
    """The answer to a submit: the only one that holds the webhook's secret, and only if it was made here."""
    return with_secret(job_view(accepted.job), accepted)


def with_secret(view: dict[str, Any], accepted: Accepted) -> dict[str, Any]:
    if accepted.secret is None:
        return view
    return {**view, "webhook": {**view.get("webhook", {}), "secret": accepted.secret}}


def provenance(plan: Plan) -> dict[str, list[str]]:
    """Which steps each field of the job's output is put together from; ``""`` is an output that is no object."""
    template = plan.root.input
    if template is None:
        return {"": [plan.root.names[-1]]}
    return {name: sorted(steps) for name, steps in template.parts().items()}


def _value(value: Stored | None, texts: dict[str, str]) -> Any:
    text = payloads.text_of(value, texts)
    return None if text is None else loads(text)


def step_view(row: StepRow, texts: dict[str, str]) -> dict[str, Any]:
    return {
        "path": row.path,
        "kind": row.kind.value,
        "state": row.state.value,
        "agent": row.agent,
        "queue": row.queue,
        "epoch": row.epoch,
        "attempt": row.attempt,
        "losses": row.losses,
        "degraded": row.degraded,
        "width": row.width,
        "succeeded": row.succeeded if row.width is not None else None,
        "failed": row.failed if row.width is not None else None,
        "worker": row.lease_owner,
        "lease_until": row.lease_until,
        "not_before": row.not_before,
        "ready_at": row.ready_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "failure": row.failure.as_dict() if row.failure else None,
        "failed_at": row.failed_at,
        "output": _value(row.output, texts),
    }


def event_view(event: Event) -> dict[str, Any]:
    """The versioned envelope of an event."""
    return {
        "v": ENVELOPE_VERSION,
        "job": event.job_id,
        "number": event.number,
        "run": event.run,
        "type": event.type.value,
        "path": event.path,
        "at": event.at,
        "data": event.data,
    }


def _job(session: Session, job_id: JobId, tenant: str | None) -> JobRow:
    job = jobs.get(session, job_id)
    if job is None or (tenant is not None and job.tenant != tenant):
        raise no_job(session, job_id)
    return job


#: Gaps shown at most.
GAPS = 100


def gap_view(row: StepRow) -> dict[str, Any]:
    """What is missing from a result, or stands in for it: a failed branch, a default, a skip."""
    kind = "failed" if row.state is StepState.FAILED else "skipped" if row.state is StepState.SKIPPED else "default"
    return {"path": row.path, "kind": kind, "failure": row.failure.as_dict() if row.failure is not None else None}


def show_job(engine: Engine, job_id: JobId, tenant: str | None = None) -> dict[str, Any]:
    """One job with input and output. Raises ``NotFound``, or ``Gone`` when retention may have removed it."""

    def work(session: Session) -> dict[str, Any]:
        job = _job(session, job_id, tenant)
        view = job_view(job, payloads.read(session, [job.input, job.output]), values=True)
        if job.webhook is not None:
            view["webhook"] = webhooks.view(session, job)
        if job.state is JobState.SUCCEEDED:
            view["gaps"] = [gap_view(row) for row in steps.gaps(session, job_id, GAPS)]
        return {**view, "provenance": provenance(engine.plans.get(session, job.version))}

    return engine.db.run(work, readonly=True)


def list_jobs(
    engine: Engine,
    *,
    tenant: str | None,
    states: Sequence[JobState] = (),
    workflow: str | None = None,
    tag: tuple[str, str] | None = None,
    created_after: float | None = None,
    created_before: float | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> tuple[list[dict[str, Any]], str | None]:
    """A page, newest first, and the next page's cursor."""

    def work(session: Session) -> list[JobRow]:
        return jobs.listing(
            session,
            tenant=tenant,
            states=states,
            workflow=workflow,
            tag=tag,
            created_after=created_after,
            created_before=created_before,
            before=JobId(cursor) if cursor else None,
            limit=limit + 1,
        )

    found = engine.db.run(work, readonly=True)
    page = found[:limit]
    return [job_view(job) for job in page], page[-1].id if len(found) > limit else None


def list_steps(
    engine: Engine, job_id: JobId, tenant: str | None = None, *, cursor: str | None = None, limit: int = 200
) -> tuple[list[dict[str, Any]], str | None]:
    """A page of a job's steps by path (the root is not shown), and the next page's cursor."""

    def work(session: Session) -> tuple[list[dict[str, Any]], str | None]:
        _job(session, job_id, tenant)
        rows = steps.page(session, job_id, StepPath(cursor) if cursor else None, limit + 1)
        texts = payloads.read(session, (row.output for row in rows[:limit]))
        page = [step_view(row, texts) for row in rows[:limit]]
        return page, rows[limit - 1].path if len(rows) > limit else None

    return engine.db.run(work, readonly=True)


def list_attempts(engine: Engine, job_id: JobId, tenant: str | None = None) -> list[dict[str, Any]]:
    def work(session: Session) -> list[dict[str, Any]]:
        _job(session, job_id, tenant)
        return attempts(session, job_id)

    return engine.db.run(work, readonly=True)


def attempts(session: Session, job_id: JobId, path: StepPath | None = None) -> list[dict[str, Any]]:
    """Each with ``output`` where the step was done again since: what it answered then."""
    rows = history.attempts_of(session, job_id, path)
    values = [stored(row["output"], row.pop("output_ref")) for row in rows]
    texts = payloads.read(session, values)
    return [{**row, "output": _value(value, texts)} for row, value in zip(rows, values, strict=True)]


def list_events(
    engine: Engine, job_id: JobId, tenant: str | None = None, *, after: int = 0, limit: int = 500
) -> tuple[list[dict[str, Any]], bool]:
    """Events after number ``after``, and whether the history is complete with them (the job ended, nothing follows).

    Raises ``NotFound``, or ``Gone`` when ``after`` is beyond what the job ever had.
    """

    def work(session: Session) -> tuple[list[dict[str, Any]], bool]:
        job = _job(session, job_id, tenant)
        if after > job.events:
            raise Gone(f"job {job_id} has no event {after}; its newest is {job.events}.")
        found = history.events_after(session, job_id, after, limit)
        last = found[-1].number if found else after
        ended = job.state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)
        return [event_view(event) for event in found], ended and last >= job.events

    return engine.db.run(work, readonly=True)


def list_queues(engine: Engine) -> list[dict[str, Any]]:
    return engine.db.run(feed.gauges, readonly=True)
