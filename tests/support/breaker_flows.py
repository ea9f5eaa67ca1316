"""Workflows whose agent has a breaker, and what the tests of breakers ask of a bench."""

from __future__ import annotations

from typing import Any

from orchestrator.domain.ids import JobId
from orchestrator.engine import breakers
from tests.support.bench import Bench

#: Opens at the second failure of two calls, and stays open for a minute: no test waits for that.
QUICK: dict[str, Any] = {"calls": 2, "cooldown": "1m"}
LITE: dict[str, Any] = {"kind": "scripted", "script": [{"output": "lite"}]}


def fails(kind: str = "transient", **more: Any) -> dict[str, Any]:
    """An agent that fails each call; which of its calls, its input says (``ok``: it answers)."""
    return {"kind": "python", "target": "tests.support.breaker_agents:moody", "config": {"class": kind, **more}}


def flow(breaker: Any = QUICK, agent: dict[str, Any] | None = None, **step: Any) -> dict[str, Any]:
    agents = {"shaky": {**(agent or fails()), "breaker": breaker}, "lite": LITE}
    retry = {"attempts": 1}
    return {"name": "t", "agents": agents, "steps": [{"id": "a", "agent": "shaky", "retry": retry, **step}]}


def submit(bench: Bench, what: dict[str, Any], input: Any = "fail") -> JobId:
    return bench.submit(what, input)


def run(bench: Bench, what: dict[str, Any], input: Any = "fail") -> JobId:
    job = submit(bench, what, input)
    bench.drive()
    return job


def state(bench: Bench, name: str = "shaky") -> dict[str, Any]:
    return next(row for row in breakers.listing(bench.engine, "default") if row["name"] == name)


def phase(bench: Bench, name: str = "shaky") -> str:
    return str(state(bench, name)["state"])


def cool_down(bench: Bench) -> None:
    """As if every wait were over."""
    with bench.db.connect() as session:
        session.execute("UPDATE breakers SET until = {now} - 0.001 WHERE until IS NOT NULL")


def events(bench: Bench, job: JobId, kind: str) -> list[dict[str, Any]]:
    return [event["data"] for event in bench.events(job) if event["type"] == kind]


def phase_or_none(bench: Bench) -> str | None:
    return next((row["state"] for row in breakers.listing(bench.engine, None) if row["name"] == "shaky"), None)
