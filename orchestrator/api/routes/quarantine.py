"""The quarantine: messages that no worker could take. Of the whole house, so for operators."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api import paging
from orchestrator.api.auth import Who, allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.api.schemas import NoteRequest, QuarantinedView, QuarantinePage
from orchestrator.engine import quarantine

router = APIRouter(prefix="/v1/quarantine", tags=["quarantine"], route_class=Route)


@router.get("", response_model=QuarantinePage, dependencies=[allow("operate")])
async def list_quarantine(
    request: Request, cursor: str | None = None, limit: Annotated[int, Query(ge=1, le=200)] = 50
) -> Response:
    """Newest first, without their bytes."""
    house = house_of(request)
    page, following = await house.threads.run(
        quarantine.listing, house.engine, cursor=paging.decode(cursor), limit=limit
    )
    return Json({"messages": page, "next": paging.encode(following)})


@router.get("/{message_id}", response_model=QuarantinedView, dependencies=[allow("operate")])
async def show_quarantined(request: Request, message_id: str) -> Response:
    """One message: `raw` in base64, and `text` if it is UTF-8."""
    house = house_of(request)
    return Json(await house.threads.run(quarantine.show, house.engine, message_id))


@router.post("/{message_id}/discard", response_model=QuarantinedView)
async def discard_quarantined(
    request: Request, message_id: str, who: Annotated[Who, allow("operate")], body: NoteRequest | None = None
) -> Response:
    """Removes it and answers what it was; the audit trail keeps that it was there. Again is 404."""
    house = house_of(request)
    note = body.note if body else None
    found = await house.threads.run(quarantine.discard, house.engine, message_id, by=who.caller.name, note=note)
    return Json(found)
