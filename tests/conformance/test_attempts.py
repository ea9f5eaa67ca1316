"""What an attempt may answer and how long it may take: nothing unchecked is passed on, every time holds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.engine import cancel, dead_letters, queries
from orchestrator.engine.context import Caps
from orchestrator.store import desk
from tests.support import attempt_agents
from tests.support.bench import Bench

HERE = "tests.support.attempt_agents"
SPENDER = {"it": {"kind": "python", "target": f"{HERE}:spender"}}
GOOD = {"type": "object", "required": ["score"], "properties": {"score": {"type": "number"}}}


def run(bench: Bench, agent: dict[str, Any], step: dict[str, Any], input: Any = None) -> dict[str, Any]:
    flow = {
        "name": "t",
        "agents": {"it": agent, "echo": {"kind": "scripted"}},
        "steps": [{"id": "a", "agent": "it", **step}, {"id": "b", "agent": "echo"}],
    }
    job = bench.submit(flow, input)
    while bench.job(job)["state"] not in ("succeeded", "failed"):
        bench.drive()
    return {**bench.job(job), "steps": bench.steps(job), "attempts": queries.list_attempts(bench.engine, job)}


BAD: list[tuple[Any, dict[str, Any]]] = [
    ({"score": "high"}, {"output_schema": GOOD}),
    ({}, {"output_schema": GOOD}),
    ({"score": 0.2}, {"checks": ["output.score > 0.5"]}),
    ({"score": 0.2}, {"checks": ["output.missing > 0.5"]}),
    ("\x00", {}),
    ("\ud800", {}),
]


@pytest.mark.parametrize(("answer", "rule"), BAD)
def test_a_bad_output_never_reaches_the_next_step(bench: Bench, answer: Any, rule: dict[str, Any]) -> None:
    """D1: schema, rule or not even JSON: the step is ``invalid_output`` and nothing after it runs."""
    if answer in ("\x00", "\ud800"):
        # What no definition can say, a Python agent can answer.
        agent = {"kind": "python", "target": f"{HERE}:{'nul' if answer == chr(0) else 'surrogate'}"}
    else:
        agent = {"kind": "scripted", "script": [{"output": answer}]}
    done = run(bench, agent, rule)
    assert (done["state"], done["failure"]["class"]) == ("failed", "invalid_output")
    assert done["steps"]["b"]["attempt"] == 0


def test_what_was_refused_can_be_looked_at(bench: Bench) -> None:
    """E8: the desk shows what the agent answered, as far as 2 KiB go."""
    done = run(bench, {"kind": "scripted", "script": [{"output": {"score": "high"}}]}, {"output_schema": GOOD})
    assert done["failure"]["detail"]["answer"] == '{"score":"high"}'


@pytest.mark.parametrize(
    ("agent", "step", "says"),
    [
        ("flood", {"with": {"bytes": 3000}}, "larger than 2000 bytes"),
        ("well", {"with": {"deep": 1000}}, "deeper than 100"),
    ],
)
def test_an_over_long_output_is_refused_before_more_is_spent(
    bench: Bench, agent: str, step: dict[str, Any], says: str
) -> None:
    """D4: what an agent answered is paid for; nothing of it is kept, passed on, or asked for again."""
    bench.engine.caps = Caps(output_bytes=2000)
    done = run(bench, {"kind": "python", "target": f"{HERE}:{agent}"}, step)
    assert (done["state"], done["failure"]["class"]) == ("failed", "invalid_output")
    assert says in done["failure"]["message"]
    assert done["steps"]["a"]["output"] is None
    assert [(a["path"], a["outcome"]) for a in done["attempts"]] == [("a", "failed")]


@pytest.mark.parametrize(
    ("agent", "value", "says"),
    [("flood", {"bytes": 900}, "bytes; the limit is 2000"), ("well", {"deep": 100}, "deeper than 100")],
)
def test_outputs_that_are_too_much_together_are_refused(bench: Bench, agent: str, value: Any, says: str) -> None:
    """D4: each member fits, their list does not: the fan-out fails where it is, and says what to do."""
    bench.engine.caps = Caps(output_bytes=2000)
    flow = {
        "name": "t",
        "agents": {"it": {"kind": "python", "target": f"{HERE}:{agent}"}, "echo": {"kind": "scripted"}},
        "steps": [
            {"id": "f", "for_each": "[1, 2, 3]", "do": {"agent": "it", "with": value}},
            {"id": "b", "agent": "echo"},
        ],
    }
    job = bench.submit(flow, None)
    bench.drive()
    shown = bench.job(job)
    assert (shown["state"], shown["failure"]["class"]) == ("failed", "invalid_output")
    assert says in shown["failure"]["message"]
    assert bench.steps(job)["b"]["attempt"] == 0


def test_a_rejected_answer_is_tried_again_with_the_complaint(bench: Bench) -> None:
    """D2: the agent is told what was wrong; attempts are bounded, and each is paid for."""
    retry = {"attempts": 2, "initial": "1ms", "max": "1ms", "on": ["invalid_output"]}
    agent = {"kind": "python", "target": f"{HERE}:second_thoughts"}
    done = run(bench, agent, {"output_schema": GOOD, "retry": retry})
    assert done["state"] == "succeeded"
    assert "score" in done["output"]["told"]
    tries = [(a["outcome"], a["cost_usd"], a["input_tokens"]) for a in done["attempts"] if a["path"] == "a"]
    assert tries == [("failed", 0.01, 10), ("succeeded", 0.01, 10)]
    assert (done["cost_usd"], done["input_tokens"]) == (0.02, 20)


def test_what_an_attempt_was_told_is_kept(bench: Bench) -> None:
    """E2: each attempt records how its input differed from the one before, and the dead letter shows it."""
    retry = {"attempts": 2, "initial": "1ms", "max": "1ms", "on": ["invalid_output"]}
    agent = {"kind": "python", "target": f"{HERE}:second_thoughts"}
    done = run(bench, agent, {"checks": ["output.score == 2"], "retry": retry})
    letter = bench.db.run(lambda s: desk.letters(s, tenant="default"))[0]["id"]
    shown = dead_letters.get(bench.engine, letter)["attempts"]
    assert [one["changed"] for one in shown] == [
        None,
        {"told": {"class": "invalid_output", "message": shown[0]["failure"]["message"]}},
    ]
    assert [one for one in done["attempts"] if one["path"] == "a"] == shown


def test_what_a_cancelled_call_had_spent_is_counted(bench: Bench) -> None:
    """M4: nothing that was paid is forgotten, whoever stopped the call."""
    attempt_agents.SPENT.clear()
    job = bench.submit({"name": "t", "agents": SPENDER, "steps": [{"id": "a", "agent": "it"}]})
    bench.pump()

    async def until_stopped() -> None:
        call = asyncio.create_task(bench.run(bench.take()))
        assert await asyncio.to_thread(attempt_agents.SPENT.wait, 60)
        cancel.cancel(bench.engine, job)
        (mine,) = bench.runner.executing()
        bench.runner.stop(mine, lost=False)
        await call

    asyncio.run(until_stopped())
    done = bench.job(job)
    assert (done["state"], done["cost_usd"], done["input_tokens"]) == ("cancelled", 0.25, 10)
    (attempt,) = queries.list_attempts(bench.engine, job)
    assert (attempt["outcome"], attempt["cost_usd"], attempt["model"]) == ("cancelled", 0.25, "m")
    bench.check()


@pytest.mark.parametrize(
    ("timeout", "input", "class_"),
    [
        ({"attempt": "50ms"}, {"seconds": 30, "tick": 30, "signs": False}, "timeout"),
        ({"total": "50ms"}, {"seconds": 30, "tick": 30, "signs": False}, "timeout"),
        ({"progress": "100ms"}, {"seconds": 30, "tick": 30, "signs": False}, "timeout"),
        ({"progress": "2s"}, {"seconds": 0.3, "tick": 0.02, "signs": True}, None),
    ],
)
def test_a_steps_own_times_hold(bench: Bench, timeout: Any, input: Any, class_: str | None) -> None:
    """W2: every step may set its own attempt, total and progress time, and its own retry."""
    agent = {"kind": "python", "target": f"{HERE}:sleeper"}
    done = run(bench, agent, {"timeout": timeout, "retry": {"attempts": 1}}, input)
    if class_ is None:
        assert done["output"] == "awake"
    else:
        assert done["failure"]["class"] == class_
        assert done["failure"]["outcome_known"] is False


def test_an_agent_that_changes_its_input_changes_nobody_elses(bench: Bench) -> None:
    agent = {"kind": "python", "target": f"{HERE}:vandal"}
    flow = {
        "name": "t",
        "agents": {"it": agent},
        "steps": [{"id": f"s{i}", "agent": "it", "with": {"list": ["constant"]}} for i in range(3)],
    }
    jobs = [bench.submit(flow, None) for _ in range(2)]
    bench.drive()
    assert [bench.job(job)["output"] for job in jobs] == [["constant", "vandal was here"]] * 2
