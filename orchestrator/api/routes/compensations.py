"""What a job owes, and what has become of it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.domain.ids import JobId
from orchestrator.engine import undoing

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)


class DebtView(BaseModel):
    """``finished``: the number of the event that ended the call; undoing goes from the greatest down.

    ``outcome`` is ``unknown`` when nobody knows whether the call took effect. ``by`` is the step that undoes it, once
    there is one; ``stuck``: it has a dead letter of its own.
    """

    step: str
    epoch: int
    outcome: Literal["known", "unknown"]
    state: Literal["owed", "undone", "stuck", "void"]
    by: str | None
    agent: str | None
    attempt: int | None
    finished: int


class DebtList(BaseModel):
    compensations: list[DebtView]


@router.get("/{job_id}/compensations", response_model=DebtList)
async def list_compensations(request: Request, job_id: str, who: Annotated[Who, allow("submit")]) -> Response:
    """What is to be undone should the job fail, or was: in the order it was done."""
    house = house_of(request)
    found = await house.threads.run(undoing.ledger, house.engine, JobId(job_id), who.tenant)
    return Json({"compensations": found})
