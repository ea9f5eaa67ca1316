"""Circuit breakers: which agents and hosts are left alone, and how to end that."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.api.schemas import NoteRequest
from orchestrator.domain.outcome import FailureClass
from orchestrator.engine import breakers

router = APIRouter(prefix="/v1/breakers", tags=["breakers"], route_class=Route)


class TripView(BaseModel):
    """``class``: the failure class ``on_failure`` is asked with."""

    model_config = ConfigDict(populate_by_name=True)

    signal: Literal["failures", "quality", "loop", "spend", "hand"]
    kind: FailureClass = Field(alias="class")
    says: str


class BreakerView(BaseModel):
    """``opened_at``: since when it is not closed; from ``until`` on it is half-open.

    ``cooldown``: seconds. ``trips``: openings since it was last closed. ``streak``: invalid outputs in a row.
    """

    name: str
    kind: Literal["agent", "provider"]
    tenant: str
    state: Literal["closed", "open", "half_open"]
    opened_at: float | None
    until: float | None
    closed_at: float | None
    cooldown: float | None
    trips: int
    streak: int
    tripped_by: TripView | None


class BreakerList(BaseModel):
    breakers: list[BreakerView]


@router.get("", response_model=BreakerList)
async def list_breakers(request: Request, who: Annotated[Who, allow("submit")]) -> Response:
    """Breakers that were ever touched, those that are not closed first; at most 1,000."""
    house = house_of(request)
    return Json({"breakers": await house.threads.run(breakers.listing, house.engine, who.tenant)})


class OpenRequest(NoteRequest):
    seconds: Annotated[float, Field(gt=0, le=breakers.LONGEST_BY_HAND)]


@router.post("/{name}/open", response_model=BreakerList)
async def open_breaker(
    request: Request, name: str, body: OpenRequest, who: Annotated[Who, allow("operate")]
) -> Response:
    """Leaves an agent or a host alone: its work goes to the fallback, or waits. One without a breaker is 404."""
    house = house_of(request)
    done = await house.threads.run(
        breakers.open_, house.engine, name, body.seconds, by=who.caller.name, note=body.note, tenant=who.tenant
    )
    return Json({"breakers": done})


@router.post("/{name}/reset", response_model=BreakerList)
async def reset_breaker(
    request: Request, name: str, who: Annotated[Who, allow("operate")], body: NoteRequest | None = None
) -> Response:
    """Closes a breaker now; what waits for it goes on. Again is no error; one that was never touched is 404."""
    house = house_of(request)
    done = await house.threads.run(
        breakers.reset,
        house.engine,
        name,
        by=who.caller.name,
        note=body.note if body else None,
        tenant=who.tenant,
    )
    return Json({"breakers": done})
