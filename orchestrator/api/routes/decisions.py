"""The inbox: what people are asked, and their decisions."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api import paging
from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.api.schemas import AttemptView, Note
from orchestrator.api.schemas import Request as Body
from orchestrator.domain.waits import Decision, Reason, WaitKind
from orchestrator.engine import decisions

router = APIRouter(prefix="/v1/decisions", tags=["decisions"], route_class=Route)


class DecisionRequest(Body):
    """``decision``: one of the question's ``decisions``; ``output``: the step's, where that ends it with one."""

    decision: Decision
    output: Any = None
    note: Note | None = None


class DecisionView(BaseModel):
    """A question about a step. ``decisions``: what may be answered, empty once it is closed."""

    id: str
    job_id: str
    path: str
    tenant: str
    workflow: str
    kind: WaitKind
    reason: Reason
    assignees: list[str]
    question: dict[str, Any]
    state: Literal["open", "decided", "cancelled"]
    created_at: float
    deadline_at: float | None
    closed_at: float | None
    decided_by: str | None
    decision: Decision | None
    note: str | None
    decisions: list[Decision]
    attempts: list[AttemptView] | None = None


class DecisionPage(BaseModel):
    decisions: list[DecisionView]
    next: str | None


@router.get("", response_model=DecisionPage)
async def list_decisions(
    request: Request,
    who: Annotated[Who, allow("submit")],
    state: Literal["open", "decided", "cancelled", "all"] = "open",
    job: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Newest first."""
    house = house_of(request)
    before = paging.decode(cursor)
    found, following = await house.threads.run(
        decisions.listing, house.engine, tenant=who.tenant, state=state, job=job, cursor=before, limit=limit
    )
    return Json({"decisions": found, "next": paging.encode(following)})


@router.get("/{wait_id}", response_model=DecisionView)
async def show_decision(request: Request, wait_id: str, who: Annotated[Who, allow("submit")]) -> Response:
    """One question with the step's attempts and their failures."""
    house = house_of(request)
    return Json(await house.threads.run(decisions.get, house.engine, wait_id, who.tenant))


@router.post("/{wait_id}", response_model=DecisionView)
async def decide(
    request: Request, wait_id: str, who: Annotated[Who, allow("operate")], body: DecisionRequest
) -> Response:
    """The first decision counts and moves the step; a later one is 409 and says who decided what."""
    house = house_of(request)
    closed = await house.threads.run(
        decisions.decide,
        house.engine,
        wait_id,
        body.decision.value,
        by=who.caller.name,
        output=body.output,
        note=body.note,
        tenant=who.tenant,
    )
    return Json(closed)
