"""Why a job does not move."""

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
from orchestrator.domain.states import JobState
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


class ExplainView(BaseModel):
    """``causes``: what nobody mends by itself first; ``summary`` is the first of them."""

    job: str
    workflow: str
    state: JobState
    run: int
    now: float
    deadline_at: float | None
    summary: str
    causes: list[CauseView]


@router.get("/{job_id}/explain", response_model=ExplainView)
async def explain_job(request: Request, job_id: str, who: Annotated[Who, allow("submit")]) -> Response:
    """What a job waits for, since when, until when, and what would move it."""
    house = house_of(request)
    return Json(await house.threads.run(explain, house.engine, JobId(job_id), who.tenant))
