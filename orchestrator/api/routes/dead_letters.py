"""The dead-letter desk: failed work, and what becomes of it."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api import paging
from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.api.schemas import DeadLetterPage, DeadLetterView, JobView, NoteRequest, ReplayRequest
from orchestrator.api.times import When, seconds
from orchestrator.domain.ids import JobId
from orchestrator.domain.outcome import FailureClass
from orchestrator.engine import dead_letters, queries
from orchestrator.store import desk

router = APIRouter(prefix="/v1/dead-letters", tags=["dead letters"], route_class=Route)


@router.get("", response_model=DeadLetterPage)
async def list_dead_letters(
    request: Request,
    who: Annotated[Who, allow("submit")],
    state: Literal["open", "replayed", "discarded", "all"] = "open",
    workflow: str | None = None,
    reason: FailureClass | None = None,
    fingerprint: str | None = None,
    created_after: When | None = None,
    created_before: When | None = None,
    job: str | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> Response:
    """Newest first."""
    house = house_of(request)
    before = paging.decode(cursor)
    after, until = seconds(created_after), seconds(created_before)
    found = await house.threads.run(
        house.engine.db.run,
        lambda session: desk.letters(
            session,
            tenant=who.tenant,
            state=None if state == "all" else state,
            workflow=workflow,
            reason=reason.value if reason else None,
            fingerprint=fingerprint,
            created_after=after,
            created_before=until,
            job_id=JobId(job) if job else None,
            before=before,
            limit=limit + 1,
        ),
        readonly=True,
    )
    page = found[:limit]
    following = str(page[-1]["id"]) if len(found) > limit else None
    return Json({"dead_letters": page, "next": paging.encode(following)})


@router.get("/{letter_id}", response_model=DeadLetterView)
async def show_dead_letter(request: Request, letter_id: str, who: Annotated[Who, allow("submit")]) -> Response:
    """One dead letter with its attempts and their failures."""
    house = house_of(request)
    return Json(await house.threads.run(dead_letters.get, house.engine, letter_id, who.tenant))


@router.post("/{letter_id}/replay", status_code=202, response_model=JobView)
async def replay_dead_letter(
    request: Request, letter_id: str, who: Annotated[Who, allow("operate")], body: ReplayRequest | None = None
) -> Response:
    """Continues the job from what failed; finished steps are kept. A letter that is not open is 409.

    `changes` to the failed step: `input`, `agent`, or `output`, which ends it. What does not fit is 422, and nothing
    is written.
    """
    house = house_of(request)
    job = await house.threads.run(
        dead_letters.replay,
        house.engine,
        letter_id,
        by=who.caller.name,
        note=body.note if body else None,
        tenant=who.tenant,
        changes=body.changes.model_dump(exclude_unset=True) if body and body.changes else None,
    )
    return Json(queries.job_view(job), 202)


@router.post("/{letter_id}/discard", response_model=DeadLetterView)
async def discard_dead_letter(
    request: Request, letter_id: str, who: Annotated[Who, allow("operate")], body: NoteRequest | None = None
) -> Response:
    """Closes a letter; its job stays failed. A letter that is not open is 409."""
    house = house_of(request)
    letter = await house.threads.run(
        dead_letters.discard,
        house.engine,
        letter_id,
        by=who.caller.name,
        note=body.note if body else None,
        tenant=who.tenant,
    )
    return Json(letter)
