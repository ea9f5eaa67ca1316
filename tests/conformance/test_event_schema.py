"""Events (B10): every type there is, as the engine really writes it, fits the published schema."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.domain.event_schema import DATA, event_schema, message_schema
from orchestrator.domain.events import EventType
from orchestrator.domain.json_values import loads
from orchestrator.domain.schemas import compile_schema
from orchestrator.domain.webhook import Webhook
from orchestrator.engine import cancel, dead_letters, decisions, release
from orchestrator.engine.deliver import Courier, Manners
from orchestrator.engine.policy import Policy
from orchestrator.engine.settle import claim
from orchestrator.store import desk, workers
from orchestrator.testing import ListSender
from tests.support.bench import Bench

QUICK = {"attempts": 2, "initial": "1ms", "max": "1ms"}
AGENTS: dict[str, Any] = {
    "echo": {"kind": "scripted"},
    "shaky": {"kind": "scripted", "script": [{"fail": {"class": "transient"}}, {"output": 1}]},
    "broken": {"kind": "scripted", "script": [{"fail": {"class": "permanent"}}]},
    "lead": {
        "kind": "scripted",
        "script": [{"output": {"assignments": [{"agent": "echo", "input": {"n": "${{ input.round }}"}}]}}],
    },
    "blind": {
        "kind": "scripted",
        "script": [{"fail": {"class": "timeout", "outcome_known": False}}],
        "effect": "reversible",
        "honours_key": False,
        "reconcile": [{"output": {"happened": None}}],
    },
    "frail": {
        "kind": "python",
        "target": "tests.support.breaker_agents:moody",
        "config": {"class": "transient"},
        "breaker": {"calls": 1},
    },
    "judge": {"kind": "scripted", "script": [{"output": {"score": "${{ input.round }}"}}]},
}
RULE = {"supervisor": "lead", "workers": ["echo"], "reviewer": "judge", "rounds": 3, "until": "review.score >= 2"}
#: All that a job can tell of without help from outside, then a step that fails.
STEPS = [
    {"id": "skipped", "agent": "echo", "when": "false"},
    {"id": "retried", "agent": "shaky", "retry": QUICK},
    {"id": "replaced", "agent": "broken", "on_failure": [{"agent": "echo"}]},
    {"id": "wide", "for_each": "${{ input }}", "do": {"agent": "echo"}},
    {"id": "rounds", "supervise": RULE},
    {"id": "last", "agent": "broken"},
    {"id": "never", "agent": "echo"},
]
#: What is done and undone, and what cannot be.
UNDONE = [
    {"id": "one", "agent": "echo", "compensate": {"agent": "echo"}},
    {"id": "two", "agent": "echo", "compensate": {"agent": "broken"}},
    {"id": "last", "agent": "broken"},
]
EVERYTHING = Webhook.read({"url": "https://example.com/", "events": [kind.value for kind in EventType]})


def flow(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": "all", "agents": AGENTS, "steps": list(steps)}


def lose(bench: Bench) -> None:
    """The worker of what is published dies."""
    bench.pump()
    claim(bench.engine, [bench.take()])
    release.release_lost(bench.engine, bench.db.run(lambda s: workers.held_by(s, bench.engine.process)))


def test_every_type_fits_the_schema_in_the_history_and_as_a_message(bench: Bench) -> None:
    """B10: what leaves the house has one versioned form, and a schema that is checked."""
    jobs = [bench.submit(flow(*STEPS), [1, 2], webhook=EVERYTHING)]
    bench.drive()
    (letter,) = bench.db.run(lambda s: desk.letters(s, tenant=None), readonly=True)
    dead_letters.replay(bench.engine, letter["id"], by="me")
    bench.drive()
    jobs.append(bench.submit(flow({"id": "a", "agent": "echo"}), 1, webhook=EVERYTHING))
    lose(bench)
    bench.drive()
    jobs.append(bench.submit(flow({"id": "a", "agent": "echo"}), 1, webhook=EVERYTHING))
    cancel.cancel(bench.engine, jobs[-1])
    jobs += [bench.submit(flow(*steps), 1, webhook=EVERYTHING) for steps in (UNDONE, [{"id": "a", "agent": "blind"}])]
    bench.drive()
    (wait,), _ = decisions.listing(bench.engine, tenant=None)
    decisions.decide(bench.engine, wait["id"], "fail", by="me")
    for _ in range(2):
        jobs.append(bench.submit(flow({"id": "a", "agent": "frail", "retry": {"attempts": 1}}), 1, webhook=EVERYTHING))
        bench.drive()

    written = [event for job in jobs for event in bench.events(job)]
    assert {event["type"] for event in written} == {kind.value for kind in EventType}
    schema = compile_schema(event_schema(), "event")
    assert {event["type"]: found for event in written if (found := schema.problems(event))} == {}

    sender = ListSender()
    asyncio.run(Courier(bench.engine, lambda: sender, Manners(policy=Policy(egress=None))).deliver())
    message = compile_schema(message_schema(), "message")
    sent = [loads(one.body) for one in sender.sent]
    assert {body["type"]: found for body in sent if (found := message.problems(body))} == {}
    for job in jobs:
        assert [body["data"] for body in sent if body["data"]["job"] == job] == bench.events(job)


def test_every_type_has_its_place_in_the_schema() -> None:
    assert set(DATA) == set(EventType)


def sample(kind: EventType, **data: Any) -> dict[str, Any]:
    return {"v": 1, "job": "j", "number": 1, "run": 1, "type": kind.value, "path": None, "at": 1.0, "data": data}


@pytest.mark.parametrize(
    ("event", "says"),
    [
        (sample(EventType.JOB_SUCCEEDED), None),
        (sample(EventType.JOB_SUCCEEDED, more=1), None),
        ({**sample(EventType.JOB_SUCCEEDED), "type": "job.exploded", "data": {"x": 1}}, None),
        (sample(EventType.JOB_FAILED), "failure"),
        (sample(EventType.STEP_LOST, attempt="1", losses=1), "attempt"),
        ({**sample(EventType.JOB_SUCCEEDED), "v": 2}, "v"),
        ({**sample(EventType.JOB_SUCCEEDED), "number": 0}, "number"),
    ],
)
def test_the_schema_sees_what_is_wrong(event: dict[str, Any], says: str | None) -> None:
    found = compile_schema(event_schema(), "event").problems(event)
    assert (found == []) if says is None else any(says in problem for problem in found)
