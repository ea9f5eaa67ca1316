"""Queues and workers: where work waits, and who does it. Of the whole house, so for operators."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from orchestrator.api.auth import allow
from orchestrator.api.body import Json, Route
from orchestrator.api.house import house_of
from orchestrator.api.schemas import QueueList, WorkerList
from orchestrator.store import feed, workers
from orchestrator.store.session import Session

router = APIRouter(prefix="/v1", tags=["fleet"], route_class=Route)

_SHOWN = ("incarnation name role queues slots busy lost_slots draining version started_at heartbeat_at").split()


@router.get("/queues", response_model=QueueList, dependencies=[allow("operate")])
async def list_queues(request: Request) -> Response:
    """Every queue that holds steps or has workers."""
    house = house_of(request)
    return Json({"queues": await house.threads.run(house.engine.db.run, _queues, readonly=True)})


def _queues(session: Session) -> list[dict[str, Any]]:
    slots: Counter[str] = Counter()
    for worker in workers.live(session):
        for queue in worker["queues"]:
            slots[queue] += 0 if worker["draining"] else max(0, worker["slots"] - worker["lost_slots"])
    found = {row["queue"]: row for row in feed.gauges(session)}
    return [
        {
            "queue": name,
            "ready": found[name]["ready"] if name in found else 0,
            "running": found[name]["running"] if name in found else 0,
            "slots": slots[name],
            "oldest_seconds": found[name]["oldest"] if name in found else None,
        }
        for name in sorted({*found, *slots})
    ]


@router.get("/workers", response_model=WorkerList, dependencies=[allow("operate")])
async def list_workers(request: Request) -> Response:
    """Processes heard of in the last ten seconds."""
    house = house_of(request)
    rows = await house.threads.run(house.engine.db.run, workers.live, readonly=True)
    return Json({"workers": [{name: _plain(name, row[name]) for name in _SHOWN} for row in rows]})


def _plain(name: str, value: Any) -> Any:
    return bool(value) if name == "draining" else value
