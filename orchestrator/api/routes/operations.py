"""The desk in bulk: groups of dead letters, replays by filter with their progress, and the audit trail."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api import paging
from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.api.schemas import DeadLetterView, Note, NoteRequest
from orchestrator.api.schemas import Request as Body
from orchestrator.api.times import When, seconds
from orchestrator.domain.outcome import FailureClass
from orchestrator.engine import audit, dead_letters, replays
from orchestrator.store.operations import LetterFilter

router = APIRouter(prefix="/v1", tags=["dead letters"], route_class=Route)

Limit = Annotated[int, Query(ge=1, le=200)]
Text = Annotated[str, Field(min_length=1, max_length=255)]


class FilterBody(Body):
    """Which open letters: at least one field, or ``all: true`` alone. Times are RFC 3339 or seconds since the epoch."""

    workflow: Text | None = None
    reason: FailureClass | None = None
    fingerprint: Text | None = None
    created_after: When | None = None
    created_before: When | None = None
    all: Annotated[bool, Field(strict=True)] = False


class ReplayRequest(Body):
    """``rate``: letters a second. ``stop_on_same_error``: stops when a replayed job fails of the same again."""

    filter: FilterBody
    rate: Annotated[float, Field(strict=True, gt=0, le=replays.MAX_RATE)] = replays.DEFAULT_RATE
    dry_run: Annotated[bool, Field(strict=True)] = False
    stop_on_same_error: Annotated[bool, Field(strict=True)] = False
    note: Note | None = None


class GroupView(BaseModel):
    """Open letters that failed alike. ``letter``, ``message`` and ``path`` are the newest's."""

    fingerprint: str
    count: int
    first_seen_at: float
    last_seen_at: float
    workflows: list[str]
    reason: str
    message: str
    path: str
    letter: str
    job_id: str


class GroupList(BaseModel):
    groups: list[GroupView]


class DryRunView(BaseModel):
    dry_run: Literal[True]
    total: int
    groups: list[GroupView]


class OperationView(BaseModel):
    """``left`` counts down while it runs. ``because``: why it stopped. ``failed_again``: only in the view of one."""

    id: str
    tenant: str | None
    state: Literal["running", "done", "stopped", "cancelled"]
    filter: dict[str, Any]
    rate: float
    stop_on_same_error: bool
    total: int
    replayed: int
    skipped: int
    left: int
    failed_again: int | None
    note: str | None
    created_by: str
    created_at: float
    finished_at: float | None
    finished_by: str | None
    because: str | None


class OperationPage(BaseModel):
    operations: list[OperationView]
    next: str | None


class AuditView(BaseModel):
    id: str
    at: float
    tenant: str
    who: str
    what: str
    subject: str
    why: str | None
    data: dict[str, Any]


class AuditPage(BaseModel):
    entries: list[AuditView]
    next: str | None


@router.get("/dead-letters/groups", response_model=GroupList)
async def list_groups(
    request: Request,
    who: Annotated[Who, allow("submit")],
    workflow: str | None = None,
    reason: FailureClass | None = None,
    fingerprint: str | None = None,
    created_after: When | None = None,
    created_before: When | None = None,
) -> Response:
    """Open dead letters by what failed alike, the largest group first; at most 1,000."""
    house = house_of(request)
    wanted = LetterFilter(
        workflow, reason.value if reason else None, fingerprint, seconds(created_after), seconds(created_before)
    )
    return Json({"groups": await house.threads.run(replays.groups, house.engine, wanted, who.tenant)})


@router.post(
    "/dead-letters/replay", status_code=202, response_model=OperationView, responses={200: {"model": DryRunView}}
)
async def replay_by_filter(request: Request, body: ReplayRequest, who: Annotated[Who, allow("operate")]) -> Response:
    """Replays every open letter that matches now, at a rate; 202 with the operation. `dry_run`: 200, counts only.

    Nothing that matches is 404, a filter that says nothing 422, another bulk replay that runs here 409.
    """
    house = house_of(request)
    chosen = body.filter
    wanted = LetterFilter(
        chosen.workflow,
        chosen.reason.value if chosen.reason else None,
        chosen.fingerprint,
        seconds(chosen.created_after),
        seconds(chosen.created_before),
    )
    if body.dry_run:
        seen = await house.threads.run(replays.preview, house.engine, wanted, who.tenant, everything=chosen.all)
        return Json(seen, 200)
    operation = await house.threads.run(
        replays.start,
        house.engine,
        wanted,
        who.tenant,
        everything=chosen.all,
        rate=body.rate,
        stop_on_same_error=body.stop_on_same_error,
        by=who.caller.name,
        note=body.note,
    )
    return Json(operation, 202, {"Location": f"/v1/operations/{operation['id']}"})


@router.post("/dead-letters/{letter_id}/undiscard", response_model=DeadLetterView)
async def undiscard_dead_letter(
    request: Request, letter_id: str, who: Annotated[Who, allow("operate")], body: NoteRequest | None = None
) -> Response:
    """Opens a discarded letter again. One that is not discarded is 409."""
    house = house_of(request)
    letter = await house.threads.run(
        dead_letters.undiscard,
        house.engine,
        letter_id,
        by=who.caller.name,
        note=body.note if body else None,
        tenant=who.tenant,
    )
    return Json(letter)


@router.get("/operations", response_model=OperationPage)
async def list_operations(
    request: Request, who: Annotated[Who, allow("operate")], cursor: str | None = None, limit: Limit = 50
) -> Response:
    """Bulk replays, newest first."""
    house = house_of(request)
    page, following = await house.threads.run(
        replays.listing, house.engine, who.tenant, cursor=paging.decode(cursor), limit=limit
    )
    return Json({"operations": page, "next": paging.encode(following)})


@router.get("/operations/{operation_id}", response_model=OperationView)
async def show_operation(request: Request, operation_id: str, who: Annotated[Who, allow("operate")]) -> Response:
    """One operation with its progress."""
    house = house_of(request)
    return Json(await house.threads.run(replays.show, house.engine, operation_id, who.tenant))


@router.post("/operations/{operation_id}/cancel", response_model=OperationView)
async def cancel_operation(
    request: Request, operation_id: str, who: Annotated[Who, allow("operate")], body: NoteRequest | None = None
) -> Response:
    """Ends an operation; what it has replayed stays so. Again is no error; one that has ended otherwise is 409."""
    house = house_of(request)
    operation = await house.threads.run(
        replays.cancel,
        house.engine,
        operation_id,
        by=who.caller.name,
        note=body.note if body else None,
        tenant=who.tenant,
    )
    return Json(operation)


@router.get("/audit", response_model=AuditPage, tags=["audit"])
async def list_audit(
    request: Request,
    who: Annotated[Who, allow("operate")],
    subject: str | None = None,
    cursor: str | None = None,
    limit: Limit = 50,
) -> Response:
    """Who did what, when and why, newest first; ``subject`` is the id of a job, dead letter or operation."""
    house = house_of(request)
    page, following = await house.threads.run(
        audit.trail, house.engine, tenant=who.tenant, subject=subject, cursor=paging.decode(cursor), limit=limit
    )
    return Json({"entries": page, "next": paging.encode(following)})
