"""What a step does when it gives up: another agent, a default, a skip; and that none of it loses its history."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.engine import dead_letters, queries
from orchestrator.store import desk
from tests.support.bench import Bench

AGENTS: dict[str, Any] = {
    "echo": {"kind": "scripted"},
    "broken": {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "no"}}]},
    "limited": {"kind": "scripted", "script": [{"fail": {"class": "refused_by_policy", "message": "not that"}}]},
    "lite": {"kind": "scripted", "script": [{"output": "lite"}]},
}


def flow(agent: str, on_failure: list[Any]) -> dict[str, Any]:
    steps = [{"id": "a", "agent": agent, "on_failure": on_failure}, {"id": "b", "agent": "echo"}]
    return {"name": "t", "agents": AGENTS, "steps": steps}


def test_the_fallback_agent_takes_over_and_the_chain_is_recorded(bench: Bench) -> None:
    """E5: ordered candidates; the history says which was tried and why it was left."""
    job = bench.submit(flow("broken", [{"agent": "limited"}, {"agent": "lite"}]), 1)
    bench.drive()
    assert bench.job(job)["output"] == "lite"
    fell = [e["data"] for e in bench.events(job) if e["type"] == "step.fell_back"]
    assert [(e["from"], e["to"], e["failure"]["class"]) for e in fell] == [
        ("broken", "limited", "permanent"),
        ("limited", "lite", "refused_by_policy"),
    ]
    attempts = [a for a in queries.list_attempts(bench.engine, job) if a["path"] == "a"]
    assert [(a["agent"], a["outcome"], a["generation"]) for a in attempts] == [
        ("broken", "failed", 1),
        ("limited", "failed", 2),
        ("lite", "succeeded", 3),
    ]


@pytest.mark.parametrize(
    ("entry", "output", "state"), [({"value": {"n": 0}}, {"n": 0}, "succeeded"), ({"skip": True}, None, "skipped")]
)
def test_a_default_ends_the_step_and_marks_it(bench: Bench, entry: Any, output: Any, state: str) -> None:
    """E3: the job goes on with the default; the step says that it is one."""
    job = bench.submit(flow("broken", [entry]), 1)
    bench.drive()
    step = bench.steps(job)["a"]
    assert (step["state"], step["output"], step["degraded"]) == (state, output, True)
    assert bench.job(job)["output"] == output


def test_an_entry_takes_only_the_classes_it_names(bench: Bench) -> None:
    """E9: the class decides the action."""
    entries = [{"agent": "lite", "on": ["timeout"]}, {"value": "kept", "on": ["permanent"]}]
    job = bench.submit(flow("broken", entries), 1)
    bench.drive()
    assert bench.job(job)["output"] == "kept"


def test_when_nothing_is_left_the_step_fails_and_a_replay_begins_with_its_own_agent(bench: Bench) -> None:
    job = bench.submit(flow("broken", [{"agent": "limited"}]), 1)
    bench.drive()
    assert bench.job(job)["failure"]["class"] == "refused_by_policy"
    letter = bench.db.run(lambda s: desk.letters(s, tenant="default"))[0]
    dead_letters.replay(bench.engine, letter["id"], by="me")
    assert bench.steps(job)["a"]["agent"] == "broken"
    bench.drive()
    assert bench.job(job)["state"] == "failed"


def test_a_success_names_its_gaps(bench: Bench) -> None:
    """E6: a fan-out is never lost whole; what is missing, or stands in for it, has a name and a reason."""
    picky = {"kind": "python", "target": "tests.support.breaker_agents:moody", "config": {"class": "invalid_output"}}
    member = {"agent": "picky", "retry": {"attempts": 1}}
    steps = [
        {"id": "each", "for_each": "${{ input }}", "do": member, "join": {"tolerate": 1}},
        {"id": "extra", "agent": "broken", "on_failure": [{"value": "none"}]},
        {"id": "more", "agent": "broken", "on_failure": [{"skip": True}]},
    ]
    flow = {"name": "t", "agents": {**AGENTS, "picky": picky}, "steps": steps, "output": "${{ steps.each }}"}
    job = bench.submit(flow, ["ok", "bad", "ok"])
    bench.drive()
    view = bench.job(job)
    assert (view["state"], view["output"]) == ("succeeded", ["fine", "fine"])
    assert [(gap["path"], gap["kind"]) for gap in view["gaps"]] == [
        ("each/1", "failed"),
        ("extra", "default"),
        ("more", "skipped"),
    ]
    assert view["gaps"][0]["failure"]["message"] == "not today"
