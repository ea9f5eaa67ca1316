"""Doing a part of a job again: invalidate a finished step, or fork a new job from an old one's checkpoints."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header
from pydantic import BaseModel, Field, StringConstraints
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.api.schemas import JobView, NoteRequest, Request, WorkflowName
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.engine import fork, invalidate, queries

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)


class InvalidateRequest(NoteRequest):
    """``repeat_effects``: steps with an effect may act again. ``dry_run``: only say what would be done again."""

    repeat_effects: bool = False
    dry_run: bool = False


class StaleView(BaseModel):
    """Paths: done ``again`` from the beginning, whose join or body is (``around``), what they had opened (``gone``).

    ``effects``: those that acted outside and would act again.
    """

    dry_run: Literal[True]
    again: list[str]
    around: list[str]
    gone: list[str]
    effects: list[str]


class ForkChanges(Request):
    """``input`` and ``agent`` of the step it is forked from; another version of the same ``workflow``."""

    input: Any = None
    agent: str | None = None
    workflow: WorkflowName | None = None


class ForkRequest(NoteRequest):
    """``reuse``: steps whose definition or input changed with the version and whose results are kept all the same."""

    from_step: Annotated[str, StringConstraints(min_length=1)]
    changes: ForkChanges | None = None
    reuse: list[str] = Field(default_factory=list)
    dry_run: bool = False


class DriftView(BaseModel):
    """A step of the job's list that is ``changed``, ``new`` or ``removed`` in the other version; ``input``: its
    definition is the same, and what it is called with is not."""

    step: str
    why: Literal["changed", "input", "new", "removed"]
    choice: Literal["rerun", "reuse", "dropped"]


class ForkView(BaseModel):
    """What a fork would do: steps done again (a path stands for what is in it), how many are kept, what drifted."""

    dry_run: Literal[True]
    workflow: str
    version: str
    again: list[str]
    kept: int
    drift: list[DriftView]


@router.post(
    "/{job_id}/steps/{path:path}/invalidate",
    status_code=202,
    response_model=JobView,
    responses={200: {"model": StaleView}},
)
async def invalidate_step(
    request: HttpRequest,
    job_id: str,
    path: str,
    who: Annotated[Who, allow("operate")],
    body: InvalidateRequest | None = None,
) -> Response:
    """Does a finished step and its transitive dependents again; the rest keeps its results.

    A job that has not succeeded or failed, a step that has not finished, and effects that nobody said to repeat are
    409. With `dry_run`, 200 and the paths.
    """
    house, asked, job, step = house_of(request), body or InvalidateRequest(), JobId(job_id), StepPath(path)
    if asked.dry_run:
        return Json(await house.threads.run(invalidate.preview, house.engine, job, step, tenant=who.tenant))
    reopened = await house.threads.run(
        invalidate.invalidate,
        house.engine,
        job,
        step,
        by=who.caller.name,
        note=asked.note,
        repeat_effects=asked.repeat_effects,
        tenant=who.tenant,
    )
    return Json(queries.job_view(reopened), 202)


@router.post("/{job_id}/fork", status_code=202, response_model=JobView, responses={200: {"model": ForkView}})
async def fork_job(
    request: HttpRequest,
    job_id: str,
    body: ForkRequest,
    who: Annotated[Who, allow("operate")],
    idempotency_key: Annotated[str | None, Header()] = None,
) -> Response:
    """A new job from an old one's checkpoints: what `from_step` does not reach is taken over, the rest is done.

    `changes`: `input` and `agent` of that step, or another version of the `workflow`; steps that changed with it are
    done again unless `reuse` names them. A step that has not ended is 409. With `dry_run`, 200 and what it would do.
    """
    house = house_of(request)
    changes = body.changes.model_dump(exclude_unset=True) if body.changes else {}
    wanted = fork.Wanted(
        JobId(job_id),
        StepPath(body.from_step),
        changes,
        tuple(body.reuse),
        idempotency_key,
        who.caller.name,
        body.note,
        who.tenant,
    )
    if body.dry_run:
        return Json(await house.threads.run(fork.preview, house.engine, wanted))
    accepted = await house.threads.run(fork.fork, house.engine, wanted)
    headers = {"Location": f"/v1/jobs/{accepted.job.id}"}
    if not accepted.created:
        headers["Idempotent-Replayed"] = "true"
    return Json(queries.job_view(accepted.job), 202, headers)
