"""Between SQL rows and the domain's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from orchestrator.domain.ids import JobId, QueueName, StepPath
from orchestrator.domain.outcome import Doubt, Failure, Stored
from orchestrator.domain.plan import JobRow, Kind, StepRow
from orchestrator.domain.states import JobState, StepState
from orchestrator.store import tables

STEP_COLUMNS = tuple(column.name for column in tables.steps.columns)
JOB_COLUMNS = tuple(column.name for column in tables.jobs.columns)
STEP_SELECT = ", ".join(f"s.{name}" for name in STEP_COLUMNS)
JOB_SELECT = ", ".join(f"j.{name}" for name in JOB_COLUMNS)


def stored(text: str | None, ref: str | None) -> Stored | None:
    return None if text is None and ref is None else Stored(text, ref)


def inline(value: Stored | None) -> str | None:
    """What goes into the inline column: the text, unless it lives in ``payloads``."""
    return None if value is None or value.ref is not None else value.text


def ref(value: Stored | None) -> str | None:
    return None if value is None else value.ref


def failure_text(failure: Failure | None) -> str | None:
    return None if failure is None else json.dumps(failure.as_dict(), ensure_ascii=False)


def failure_of(text: str | None) -> Failure | None:
    return None if text is None else Failure.from_dict(json.loads(text))


def doubt_text(doubt: Doubt | None) -> str | None:
    return None if doubt is None else json.dumps(doubt.as_dict(), ensure_ascii=False)


def doubt_of(text: str | None) -> Doubt | None:
    return None if text is None else Doubt.from_dict(json.loads(text))


def step_row(r: Mapping[str, Any]) -> StepRow:
    return StepRow(
        job_id=JobId(r["job_id"]),
        path=StepPath(r["path"]),
        ref=r["ref"],
        kind=Kind(r["kind"]),
        parent=None if r["parent"] is None else StepPath(r["parent"]),
        seq=r["seq"],
        state=StepState(r["state"]),
        epoch=r["epoch"],
        fence=r["fence"],
        deps_left=r["deps_left"],
        held=bool(r["held"]),
        queue=QueueName(r["queue"]),
        tenant=r["tenant"],
        priority=r["priority"],
        agent=r["agent"],
        limited=bool(r["limited"]),
        vars=stored(r["vars"], r["vars_ref"]),
        undoes=r["undoes"],
        width=r["width"],
        succeeded=r["succeeded"],
        failed=r["failed"],
        cancelled=r["cancelled"],
        stopping=r["stopping"],
        round=r["round"],
        attempt=r["attempt"],
        tries=r["tries"],
        generation=r["generation"],
        losses=r["losses"],
        losses_alone=r["losses_alone"],
        fallback=r["fallback"],
        degraded=bool(r["degraded"]),
        begun=bool(r["begun"]),
        lease_owner=r["lease_owner"],
        lease_until=r["lease_until"],
        not_before=r["not_before"],
        ready_at=r["ready_at"],
        first_started_at=r["first_started_at"],
        started_at=r["started_at"],
        finished_at=r["finished_at"],
        dispatched_at=r["dispatched_at"],
        mark=r["mark"],
        redispatches=r["redispatches"],
        output=stored(r["output"], r["output_ref"]),
        failure=failure_of(r["failure"]),
        failed_at=None if r["failed_at"] is None else StepPath(r["failed_at"]),
        doubt=doubt_of(r["doubt"]),
        given=stored(r["given"], r["given_ref"]),
        chosen=r["chosen"],
    )


def step_values(row: StepRow) -> dict[str, Any]:
    return {
        "job_id": row.job_id,
        "path": row.path,
        "ref": row.ref,
        "kind": row.kind.value,
        "parent": row.parent,
        "seq": row.seq,
        "state": row.state.value,
        "epoch": row.epoch,
        "fence": row.fence,
        "deps_left": row.deps_left,
        "held": row.held,
        "queue": row.queue,
        "tenant": row.tenant,
        "priority": row.priority,
        "agent": row.agent,
        "limited": row.limited,
        "vars": inline(row.vars),
        "vars_ref": ref(row.vars),
        "undoes": row.undoes,
        "width": row.width,
        "succeeded": row.succeeded,
        "failed": row.failed,
        "cancelled": row.cancelled,
        "stopping": row.stopping,
        "round": row.round,
        "attempt": row.attempt,
        "tries": row.tries,
        "generation": row.generation,
        "losses": row.losses,
        "losses_alone": row.losses_alone,
        "fallback": row.fallback,
        "degraded": row.degraded,
        "begun": row.begun,
        "lease_owner": row.lease_owner,
        "lease_until": row.lease_until,
        "not_before": row.not_before,
        "ready_at": row.ready_at,
        "first_started_at": row.first_started_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "dispatched_at": row.dispatched_at,
        "mark": row.mark,
        "redispatches": row.redispatches,
        "output": inline(row.output),
        "output_ref": ref(row.output),
        "failure": failure_text(row.failure),
        "failed_at": row.failed_at,
        "doubt": doubt_text(row.doubt),
        "given": inline(row.given),
        "given_ref": ref(row.given),
        "chosen": row.chosen,
    }


def job_row(r: Mapping[str, Any]) -> JobRow:
    return JobRow(
        id=JobId(r["id"]),
        tenant=r["tenant"],
        workflow=r["workflow"],
        version=r["version"],
        state=JobState(r["state"]),
        run=r["run"],
        priority=r["priority"],
        events=r["events"],
        steps=r["steps"],
        input=stored(r["input"], r["input_ref"]),
        output=stored(r["output"], r["output_ref"]),
        failure=failure_of(r["failure"]),
        deadline_at=r["deadline_at"],
        created_at=r["created_at"],
        started_at=r["started_at"],
        finished_at=r["finished_at"],
        idempotency_key=r["idempotency_key"],
        body_hash=r["body_hash"],
        tags=json.loads(r["tags"]),
        cost_usd=r["cost_usd"],
        input_tokens=r["input_tokens"],
        output_tokens=r["output_tokens"],
        origin=r["origin"],
        waits=r["waits"],
        waiting_since=r["waiting_since"],
        webhook=r["webhook"],
    )


def job_values(job: JobRow) -> dict[str, Any]:
    return {
        "id": job.id,
        "tenant": job.tenant,
        "workflow": job.workflow,
        "version": job.version,
        "state": JobState(job.state).value,
        "run": job.run,
        "priority": job.priority,
        "events": job.events,
        "steps": job.steps,
        "input": inline(job.input),
        "input_ref": ref(job.input),
        "output": inline(job.output),
        "output_ref": ref(job.output),
        "failure": failure_text(job.failure),
        "deadline_at": job.deadline_at,
        "created_at": job.created_at,
        "started_at": job.started_at,
        "finished_at": job.finished_at,
        "idempotency_key": job.idempotency_key,
        "body_hash": job.body_hash,
        "tags": json.dumps(job.tags),
        "cost_usd": job.cost_usd,
        "input_tokens": job.input_tokens,
        "output_tokens": job.output_tokens,
        "origin": job.origin,
        "waits": job.waits,
        "waiting_since": job.waiting_since,
        "webhook": job.webhook,
    }
