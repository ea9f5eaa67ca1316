"""What machines ask: is it alive, can it work, what does it count. No key is needed: nothing here names a job."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.body import Json
from orchestrator.api.house import house_of
from orchestrator.api.schemas import Health, Live
from orchestrator.store.session import Session

router = APIRouter(tags=["probes"])

_TEXT: dict[int | str, dict[str, Any]] = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}


@router.get("/livez", response_model=Live)
async def livez() -> Response:
    """The process answers. Restart it if not."""
    return Json({"status": "ok"})


@router.get("/readyz", response_model=Health)
async def readyz(request: Request) -> Response:
    """Send work here? Without the database not (503). Without the broker yes: jobs are kept until it is back."""
    house = house_of(request)
    await house.threads.run(house.engine.db.run, Session.now, readonly=True)
    up = await house.threads.run(house.broker.up)
    return Json({"status": "ok" if up else "degraded", "database": "ok", "broker": "ok" if up else "down"})


@router.get("/metrics", response_class=Response, responses=_TEXT)
async def metrics(request: Request) -> Response:
    """What this process counted; in `dev` the global series too."""
    house = house_of(request)
    page = house.meters.exposition()
    if house.dev:
        page += await house.threads.run(house.metrics.text)
    return Response(page, media_type=CONTENT_TYPE_LATEST)


@router.get("/metrics/global", response_class=Response, responses=_TEXT)
async def global_metrics(request: Request) -> Response:
    """What SQL counts, the same from every process: scrape one."""
    house = house_of(request)
    return Response(await house.threads.run(house.metrics.text), media_type=CONTENT_TYPE_LATEST)
