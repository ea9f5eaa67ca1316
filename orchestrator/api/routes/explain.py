"""Why a job does not move, and how far it is."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.domain.ids import JobId
from orchestrator.domain.states import JobState, StepState
from orchestrator.engine.explain import explain

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)


class CauseView(BaseModel):
    """``code`` is stable. ``steps``: how many wait for it, ``path`` the longest. Times are seconds since the epoch."""

    code: str
    says: str
    moved_by: str
    since: float | None
    until: float | None
    steps: int
    path: str | None
    detail: dict[str, Any]


class ProgressView(BaseModel):
    """Calls that have ended, of those known so far; ``total`` grows while fan-outs open and rounds follow."""

    done: int
    total: int
    states: dict[StepState, int]


class LinkView(BaseModel):
    path: str
    state: StepState
    seconds: float


class CriticalPathView(BaseModel):
    """The longest chain of calls that had to follow each other, in their order, retries included."""

    seconds: float
    steps: list[LinkView]


class HoldView(BaseModel):
    """The call under way that keeps the most others (``calls``) from starting."""

    path: str
    state: StepState
    calls: int


class BlockedView(BaseModel):
    """A step, and those of its list it waits for."""

    path: str
    by: list[str]


class ExplainView(BaseModel):
    """``causes``: what nobody mends by itself first; ``summary`` is the first of them. ``age``: seconds from
    the submit to now, or to the end. ``blocked``: the first 50."""

    job: str
    workflow: str
    state: JobState
    run: int
    now: float
    deadline_at: float | None
    summary: str
    causes: list[CauseView]
    age: float
    progress: ProgressView
    critical_path: CriticalPathView
    holds_most: HoldView | None
    blocked: list[BlockedView]


@router.get("/{job_id}/explain", response_model=ExplainView)
async def explain_job(request: Request, job_id: str, who: Annotated[Who, allow("submit")]) -> Response:
    """What a job waits for, since when, until when, and what would move it; how far it is, and its critical path."""
    house = house_of(request)
    return Json(await house.threads.run(explain, house.engine, JobId(job_id), who.tenant))
