"""A job's history: pages, or a stream that goes on until the job has ended."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api import sse
from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.api.schemas import EventPage
from orchestrator.domain.ids import JobId
from orchestrator.engine import queries

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=Route)


@router.get(
    "/{job_id}/events",
    response_model=EventPage,
    responses={
        200: {"content": {sse.MEDIA_TYPE: {"schema": {"type": "string"}}}},
        204: {"description": "The stream of a job that has ended, and nothing follows `Last-Event-ID`."},
    },
)
async def list_events(
    request: Request,
    job_id: str,
    who: Annotated[Who, allow("submit")],
    after: Annotated[int, Query(ge=0, le=2**31 - 1)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
    accept: Annotated[str, Header()] = "application/json",
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The events after a number; with `Accept: text/event-stream` as a stream, gap-free from `Last-Event-ID`."""
    house = house_of(request)
    streams = sse.wanted(accept)
    start = sse.position(last_event_id, after) if streams else after
    page, complete = await house.threads.run(
        queries.list_events, house.engine, JobId(job_id), who.tenant, after=start, limit=1 if streams else limit
    )
    if not streams:
        return Json({"events": page, "next": page[-1]["number"] if page else start, "complete": complete})
    if complete and not page:
        return Response(status_code=204)  # tells a browser not to connect again
    return sse.stream(house.watch, JobId(job_id), start)
