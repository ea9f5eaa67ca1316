"""What a route needs, built once per process and found on the application."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request

from orchestrator.api.auth import Door
from orchestrator.api.threads import Threads
from orchestrator.api.watch import Watch
from orchestrator.engine.context import Engine
from orchestrator.engine.policy import Policy
from orchestrator.settings import Settings
from orchestrator.telemetry.global_ import BrokerProbe, GlobalMetrics
from orchestrator.telemetry.metrics import Meters


@dataclass(frozen=True, slots=True)
class House:
    engine: Engine
    settings: Settings
    threads: Threads
    watch: Watch
    door: Door
    policy: Policy
    meters: Meters
    metrics: GlobalMetrics
    broker: BrokerProbe
    #: ``dev``: one process for everything, so ``/metrics`` holds the global series as well.
    dev: bool


def house_of(request: Request) -> House:
    house: House = request.app.state.house
    return house
