"""Builds the application: routes, errors, and what they share."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI

import orchestrator
from orchestrator.api import openapi, problems
from orchestrator.api.auth import Door, is_open
from orchestrator.api.house import House
from orchestrator.api.observe import Observe
from orchestrator.api.routes import (
    breakers,
    compensations,
    dead_letters,
    decisions,
    events,
    explain,
    fleet,
    jobs,
    operations,
    probes,
    quarantine,
    rework,
    workflows,
)
from orchestrator.api.schemas import Problem, WebhookMessage
from orchestrator.api.threads import Threads
from orchestrator.api.watch import Watch
from orchestrator.engine.context import Engine
from orchestrator.engine.policy import Policy
from orchestrator.settings import Settings
from orchestrator.telemetry.global_ import BrokerProbe, GlobalMetrics
from orchestrator.telemetry.metrics import Meters

_ERRORS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "Refused"},
    "5XX": {"model": Problem, "description": "Failed"},
}
_TOLD: dict[int | str, dict[str, Any]] = {
    204: {"description": "Taken; so with any 2xx"},
    "4XX": {"description": "410: send no more. Else, as anything else and no answer in time: tried again for a day"},
}
_DESCRIPTION = "Durable multi-agent workflows. Errors are RFC 9457 problems with a stable `code`."


def create_app(engine: Engine, settings: Settings, *, dev: bool = False, meters: Meters | None = None) -> FastAPI:
    """The HTTP API over ``engine``, whose life is the caller's. Before listening call ``auth.check_bind``.

    ``dev``: one process for everything, on a loopback ``settings.host`` without keys; definitions may name any target
    and address, for the worker of ``dev`` decides. ``meters``: those of a worker in the same process.
    """
    house = _house(engine, settings, meters or Meters(), dev=dev)
    app = FastAPI(
        title="Orchestrator",
        version=getattr(orchestrator, "__version__", "0.1.0"),
        description=_DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        lifespan=_lifespan,
        responses=_ERRORS,
    )
    app.state.house = house
    app.webhooks.post("event", name="event", status_code=204, responses=_TOLD)(_told)
    for part in (
        jobs,
        rework,
        events,
        explain,
        compensations,
        operations,
        dead_letters,
        decisions,
        breakers,
        workflows,
        fleet,
        quarantine,
        probes,
    ):
        app.include_router(part.router)
    problems.install(app)
    app.add_middleware(Observe, meters=house.meters, clock=engine.clock)
    app.openapi = lambda: openapi.describe(app, keys=not house.door.open)  # type: ignore[method-assign]
    return app


async def _told(body: WebhookMessage) -> None:
    """What a job's webhook is sent, with the headers webhook-id, webhook-timestamp and webhook-signature."""


def _house(engine: Engine, settings: Settings, meters: Meters, *, dev: bool) -> House:
    threads = Threads(settings.db_pool_size)
    broker = BrokerProbe(engine)
    return House(
        engine,
        settings,
        threads,
        Watch(engine, threads),
        Door(engine, threads, open=is_open(settings, settings.host, dev=dev)),
        Policy(None, None) if dev else Policy(settings.agent_packages, settings.egress),
        meters,
        GlobalMetrics(engine, broker.up),
        broker,
        dev,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    yield
    house: House = app.state.house
    await house.watch.close()
