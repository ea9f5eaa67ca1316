"""Jobs: submit, look, cancel."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api import paging, times
from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import House, house_of
from orchestrator.api.schemas import (
    AttemptList,
    BatchRequest,
    BatchView,
    JobPage,
    JobRequest,
    JobView,
    NoteRequest,
    StepPage,
    WebhookRequest,
)
from orchestrator.domain.errors import DefinitionError, OrchestratorError
from orchestrator.domain.ids import JobId
from orchestrator.domain.json_values import dumps
from orchestrator.domain.parse import parse_workflow
from orchestrator.domain.states import JOB_TERMINAL, JobState
from orchestrator.domain.webhook import Webhook
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import cancel, queries, submit, webhooks
from orchestrator.engine.policy import enforce, enforce_address
from orchestrator.engine.submit import Accepted, Submission

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)

#: Seconds a request may wait for the end of its job.
MAX_WAIT = 60.0
_WAIT = re.compile(r"(?:^|[,;\s])wait\s*=\s*\"?(\d{1,9})\"?(?=$|[,;\s])", re.IGNORECASE)

Prefer = Annotated[
    str | None, Header(description="`wait=10`: answer once the job has ended, or after so many seconds (at most 60).")
]
Limit = Annotated[int, Query(ge=1, le=200)]


@router.post("", status_code=202, response_model=JobView, responses={200: {"model": JobView}})
async def submit_job(
    request: Request,
    body: JobRequest,
    who: Annotated[Who, allow("submit")],
    idempotency_key: Annotated[str | None, Header()] = None,
    prefer: Prefer = None,
) -> Response:
    """Accepts a job: 202 once its row is committed, whether or not the broker is up; 200 if `Prefer: wait` saw its end.

    The same `Idempotency-Key` with the same body is the same job (`Idempotent-Replayed: true`); with another, 422.
    """
    house = house_of(request)
    tenant = who.one_tenant

    def work() -> Accepted:
        return submit.submit(house.engine, submission(house, body, tenant, idempotency_key))

    accepted = await house.threads.run(work)
    headers = {"Location": f"/v1/jobs/{accepted.job.id}"}
    if not accepted.created:
        headers["Idempotent-Replayed"] = "true"
    seconds = wait_seconds(prefer)
    if seconds is not None:
        headers["Preference-Applied"] = f"wait={seconds:g}"
        if await house.watch.ended(accepted.job.id, seconds):
            try:
                view = await house.threads.run(queries.show_job, house.engine, accepted.job.id, tenant)
                return Json(queries.with_secret(view, accepted), 200, headers)
            except OrchestratorError:  # the job is accepted, whatever the database says now
                pass
    return Json(queries.accepted_view(accepted), 202, headers)


@router.post("/batch", status_code=202, response_model=BatchView)
async def submit_batch(request: Request, body: BatchRequest, who: Annotated[Who, allow("submit")]) -> Response:
    """Accepts up to 1,000 jobs in one transaction, answered in order: all, or none."""
    house = house_of(request)
    tenant = who.one_tenant

    def work() -> list[Accepted]:
        return submit.submit_many(house.engine, [submission(house, job, tenant, job.key) for job in body.jobs])

    accepted = await house.threads.run(work)
    return Json({"jobs": [queries.accepted_view(one) for one in accepted]}, 202)


def submission(house: House, job: JobRequest, tenant: str, key: str | None) -> Submission:
    workflow = job.workflow if job.definition is None else definition(house, job.definition)
    assert workflow is not None
    hook = webhook(house, job.webhook)
    return Submission(workflow, job.input, tenant, key, job.priority, job.tags, job.deadline, hook)


def webhook(house: House, given: str | WebhookRequest | None) -> Webhook | None:
    """Raises ``InvalidInput``, and ``RefusedByPolicy`` for an address that may not be called from here."""
    if given is None:
        return None
    found = Webhook.read(given if isinstance(given, str) else given.model_dump(mode="json"))
    enforce_address(found.url, house.policy, "webhook.url")
    return found


def definition(house: House, value: dict[str, Any]) -> Workflow:
    """A workflow that came as JSON. Raises ``DefinitionError``, also for what may not run here."""
    try:
        workflow = Workflow.model_validate(value)
    except ValidationError:
        workflow = _explained(value)
    enforce(workflow, house.policy)
    return workflow


def _explained(value: dict[str, Any]) -> Workflow:
    """Says what is wrong in the words of the language; by path alone, for the lines would not be the sender's."""
    try:
        return parse_workflow(dumps(value))
    except DefinitionError as error:
        raise DefinitionError([replace(found, line=None, column=None) for found in error.problems]) from None


def wait_seconds(prefer: str | None) -> float | None:
    """The ``wait`` of a Prefer header (RFC 7240), at most ``MAX_WAIT``; what cannot be read is no preference."""
    match = _WAIT.search(prefer or "")
    return min(float(match[1]), MAX_WAIT) if match else None


@router.get("", response_model=JobPage)
async def list_jobs(
    request: Request,
    who: Annotated[Who, allow("submit")],
    state: Annotated[list[JobState], Query()] = [],  # noqa: B006 - FastAPI copies it
    workflow: str | None = None,
    tag: Annotated[str | None, Query(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}:", description="name:value")] = None,
    created_after: times.When | None = None,
    created_before: times.When | None = None,
    cursor: str | None = None,
    limit: Limit = 50,
) -> Response:
    """Newest first."""
    house = house_of(request)
    name, _, value = (tag or "").partition(":")
    page, following = await house.threads.run(
        queries.list_jobs,
        house.engine,
        tenant=who.tenant,
        states=state,
        workflow=workflow,
        tag=(name, value) if tag else None,
        created_after=times.seconds(created_after),
        created_before=times.seconds(created_before),
        cursor=paging.decode(cursor),
        limit=limit,
    )
    return Json({"jobs": page, "next": paging.encode(following)})


@router.get("/{job_id}", response_model=JobView)
async def show_job(
    request: Request, job_id: str, who: Annotated[Who, allow("submit")], prefer: Prefer = None
) -> Response:
    """One job with its input and output."""
    house = house_of(request)
    view = await house.threads.run(queries.show_job, house.engine, JobId(job_id), who.tenant)
    seconds = wait_seconds(prefer)
    if seconds is None:
        return Json(view)
    if JobState(view["state"]) not in JOB_TERMINAL and await house.watch.ended(JobId(job_id), seconds):
        view = await house.threads.run(queries.show_job, house.engine, JobId(job_id), who.tenant)
    return Json(view, headers={"Preference-Applied": f"wait={seconds:g}"})


@router.get("/{job_id}/steps", response_model=StepPage)
async def list_steps(
    request: Request,
    job_id: str,
    who: Annotated[Who, allow("submit")],
    cursor: str | None = None,
    limit: Limit = 200,
) -> Response:
    """By path."""
    house = house_of(request)
    page, following = await house.threads.run(
        queries.list_steps, house.engine, JobId(job_id), who.tenant, cursor=paging.decode(cursor), limit=limit
    )
    return Json({"steps": page, "next": paging.encode(following)})


@router.get("/{job_id}/attempts", response_model=AttemptList)
async def list_attempts(request: Request, job_id: str, who: Annotated[Who, allow("submit")]) -> Response:
    """Every try of every step, with what it cost."""
    house = house_of(request)
    return Json({"attempts": await house.threads.run(queries.list_attempts, house.engine, JobId(job_id), who.tenant)})


@router.post("/{job_id}/cancel", status_code=202, response_model=JobView)
async def cancel_job(request: Request, job_id: str, who: Annotated[Who, allow("submit")]) -> Response:
    """Asks a job to stop: what has not begun ends at once, live calls finish. Again is no error; a job that has ended
    in another way is 409."""
    house = house_of(request)
    job = await house.threads.run(cancel.cancel, house.engine, JobId(job_id), who.tenant, by=who.caller.name)
    return Json(queries.job_view(job), 202)


@router.post("/{job_id}/webhook/resume", status_code=202, response_model=JobView)
async def resume_webhook(
    request: Request, job_id: str, who: Annotated[Who, allow("submit")], body: NoteRequest | None = None
) -> Response:
    """Sends again, at once, what a stopped or failing webhook is owed. Again is no error; a job without one is 404."""
    house = house_of(request)
    note = body.note if body else None
    await house.threads.run(webhooks.resume, house.engine, JobId(job_id), who.tenant, by=who.caller.name, note=note)
    return Json(await house.threads.run(queries.show_job, house.engine, JobId(job_id), who.tenant), 202)
