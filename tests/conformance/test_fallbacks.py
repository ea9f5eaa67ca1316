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
