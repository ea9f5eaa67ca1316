"""Fork: a new job from an old one's checkpoints; the old one stays as it is."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import audit, dead_letters, fork, invalidate, submit
from orchestrator.engine.settle import claim, settle
from tests.conformance.test_engine import _success
from tests.conformance.test_invalidate import AGENTS, Plans, agent, calls, finished, flow
from tests.conformance.test_replay_changes import everything, letter_of
from tests.support.bench import Bench

FAN = {"id": "f", "for_each": "[1, 2]", "as": "n", "do": [agent("x", **{"with": "${{ n }}"}), agent("y")]}


def wanted(job: JobId, path: str, **more: Any) -> fork.Wanted:
    return fork.Wanted(job, StepPath(path), by="ann", **more)


def forked(bench: Bench, job: JobId, path: str, **more: Any) -> JobId:
    """The new job, at its end."""
    made = fork.fork(bench.engine, wanted(job, path, **more)).job.id
    bench.check()
    bench.drive()
    return made


@pytest.mark.parametrize(
    ("path", "again"),
    [
        ("a", {"a", "f/0/x", "f/0/y", "f/1/x", "f/1/y", "z"}),
        ("f", {"f/0/x", "f/0/y", "f/1/x", "f/1/y", "z"}),
        ("f/0/y", {"f/0/y", "z"}),
        ("f/1", {"f/1/x", "f/1/y", "z"}),
        ("z", {"z"}),
    ],
)
def test_what_the_step_does_not_reach_is_taken_over(bench: Bench, path: str, again: set[str]) -> None:
    """M4: only the step and its dependents are called; the old job is not touched."""
    job = finished(bench, [agent("a", **{"with": {"big": "\u00e9" * 9000}}), FAN, agent("z")])
    before = (bench.job(job), bench.steps(job), bench.events(job))
    made = forked(bench, job, path)
    view = bench.job(made)
    assert (view["state"], view["output"], view["origin"]) == ("succeeded", bench.job(job)["output"], job)
    assert set(calls(bench, made)) == again
    assert {at: step["output"] for at, step in bench.steps(made).items()} == {
        at: step["output"] for at, step in bench.steps(job).items()
    }
    kept = {at for at, step in bench.steps(made).items() if step["kind"] == "agent" and step["epoch"] == 0}
    assert kept == set(calls(bench, job)) - again
    assert (bench.job(job), bench.steps(job), bench.events(job)) == before
    [entry] = audit.trail(bench.engine, tenant="default", subject=job)[0]
    assert (entry["what"], entry["data"]["job"]) == ("job.forked", made)
    bench.check()
    invalidate.invalidate(bench.engine, made, StepPath("a"), by="ann")
    bench.drive()
    assert bench.job(made)["state"] == "succeeded"


@pytest.mark.parametrize("round_", range(6))
def test_of_any_plan_only_the_dependents_are_done(bench: Bench, round_: int, seed: int) -> None:
    """M4: on random plans, what the new job calls is what the model of invalidation says."""
    rng = random.Random(seed * 100 + round_)
    plans = Plans(rng)
    job = finished(bench, plans.list_of("", 2))
    path = rng.choice(sorted(bench.steps(job)))
    made = forked(bench, job, path)
    assert set(calls(bench, made)) == {at for at in plans.begins_after(path) if at in calls(bench, job)}
    assert bench.job(made)["output"] == bench.job(job)["output"]
    assert bench.job(made)["steps"] == len(bench.steps(made)) + 1 == len(bench.steps(job)) + 1


def test_a_job_that_still_runs_is_forked_from_what_it_has_finished(bench: Bench) -> None:
    job = bench.submit(flow([agent("a"), agent("b"), agent("c")]), 1)
    bench.pump()
    for _ in range(2):
        [mine] = claim(bench.engine, [bench.take()]).values()
        if mine.row.path == "a":
            settle(bench.engine, [replace(_success(mine), continue_on=frozenset())])
            bench.pump()
    made = fork.fork(bench.engine, wanted(job, "a")).job.id
    states = {path: step["state"] for path, step in bench.steps(made).items()}
    assert states == {"a": "ready", "b": "pending", "c": "pending"}
    assert bench.steps(job)["b"]["state"] == "running"
    settle(bench.engine, [_success(mine)])
    bench.drive()
    assert (bench.job(made)["state"], bench.job(made)["output"]) == ("succeeded", 1)


def test_the_step_may_have_another_input_or_agent(bench: Bench) -> None:
    job = finished(bench, [agent("a"), agent("b"), agent("c")], 1)
    assert bench.job(forked(bench, job, "b", changes={"input": 5}))["output"] == 5
    made = forked(bench, job, "b", changes={"agent": "judge", "input": {"round": 3}})
    assert bench.job(made)["output"] == {"score": 3}
    before = everything(bench)
    for changes in ({"agent": "nobody"}, {"output": 1}, {"input": float("nan")}, {"workflow": "other"}):
        with pytest.raises(InvalidInput):
            fork.fork(bench.engine, wanted(job, "b", changes=changes))
    assert everything(bench) == before


def test_a_failed_job_is_forked_from_what_failed(bench: Bench) -> None:
    steps = [agent("a"), {"id": "b", "agent": "broken"}, agent("c")]
    job = bench.submit(flow(steps), 1)
    bench.drive()
    made = forked(bench, job, "b", changes={"agent": "echo"})
    assert (bench.job(made)["output"], calls(bench, made)) == (1, {"b": 1, "c": 1})
    assert bench.job(job)["state"] == "failed"
    dead_letters.discard(bench.engine, letter_of(bench, job), by="ann")
    with pytest.raises(Conflict, match="step c is cancelled"):
        fork.fork(bench.engine, wanted(job, "c"))
    again = forked(bench, job, "a")
    assert (bench.job(again)["state"], calls(bench, again)) == ("failed", {"a": 1, "b": 1})


def test_an_unfinished_step_is_refused_by_its_state(bench: Bench) -> None:
    job = bench.submit(flow([agent("a"), agent("b")]), 1)
    for path, says in (("a", "step a is ready"), ("b", "step b is pending")):
        with pytest.raises(Conflict, match=says):
            fork.fork(bench.engine, wanted(job, path))
    for one, tenant in ((wanted(job, "z"), None), (wanted(job, ""), None), (wanted(job, "a", tenant="other"), "other")):
        with pytest.raises(NotFound):
            fork.fork(bench.engine, one)
        assert one.tenant == tenant
    bench.drive()


def test_the_same_key_is_the_same_fork(bench: Bench) -> None:
    """P2."""
    job = finished(bench, [agent("a"), agent("b")])
    first = fork.fork(bench.engine, wanted(job, "b", key="k"))
    again = fork.fork(bench.engine, wanted(job, "b", key="k"))
    assert (first.created, again.created, again.job.id) == (True, False, first.job.id)
    with pytest.raises(IdempotencyMismatch):
        fork.fork(bench.engine, wanted(job, "a", key="k"))
    bench.drive()


def test_drift_is_listed_and_what_changed_is_done_again_or_reused(bench: Bench) -> None:
    """E8: on another version, a changed step is done again with its dependents unless its result is reused."""
    old = [agent("a"), agent("b"), agent("gone"), agent("z", needs=["a"])]
    old = [{**step, "needs": step.get("needs", [])} for step in old]
    job = finished(bench, old)
    new = [old[0], {**old[1], "with": {"n": 2}}, {**agent("extra"), "needs": ["b"]}, old[3]]
    version = submit.register(bench.engine, Workflow.model_validate(flow(new)))
    changes = {"workflow": f"t@{version[:8]}"}
    before = everything(bench)
    seen = fork.preview(bench.engine, wanted(job, "z", changes=changes))
    assert everything(bench) == before
    assert (seen["version"], seen["again"]) == (version, ["b", "extra", "z"])
    assert [(one["step"], one["why"], one["choice"]) for one in seen["drift"]] == [
        ("b", "changed", "rerun"),
        ("extra", "new", "rerun"),
        ("gone", "removed", "dropped"),
    ]
    made = forked(bench, job, "z", changes=changes)
    assert set(calls(bench, made)) == {"b", "extra", "z"}
    assert bench.steps(made)["b"]["output"] == {"n": 2}
    seen = fork.preview(bench.engine, wanted(job, "z", changes=changes, reuse=["b"]))
    assert [one["choice"] for one in seen["drift"]] == ["reuse", "rerun", "dropped"]
    kept = forked(bench, job, "z", changes=changes, reuse=["b"])
    assert set(calls(bench, kept)) == {"extra", "z"}
    assert (bench.steps(kept)["b"]["output"], bench.steps(kept)["extra"]["output"]) == (1, 1)
    with pytest.raises(InvalidInput, match="'a' is no finished step that changed"):
        fork.fork(bench.engine, wanted(job, "z", changes=changes, reuse=["a"]))
    with pytest.raises(Conflict, match="gone is not the same"):
        fork.fork(bench.engine, wanted(job, "gone", changes=changes))
    with pytest.raises(NotFound):
        fork.fork(bench.engine, wanted(job, "z", changes={"workflow": "t@00000000"}))


@pytest.mark.parametrize("nested", [False, True])
def test_a_step_that_is_called_with_something_else_is_shown(bench: Bench, nested: bool) -> None:
    """E8: nobody touched z; without b before it, it is called with what a answered."""
    z = {"id": "z", "parallel": {"left": agent("y"), "right": [agent("x")]}} if nested else agent("z")
    first, second = agent("a", **{"with": "of a"}), agent("b", **{"with": "of b"})
    tail = agent("tail", **{"with": "apart"})
    job = finished(bench, [first, second, z, tail])
    submit.register(bench.engine, Workflow.model_validate(flow([first, z, tail])))
    changes = {"workflow": "t"}
    seen = fork.preview(bench.engine, wanted(job, "tail", changes=changes))
    drifted = [(one["step"], one["why"], one["choice"]) for one in seen["drift"]]
    assert drifted == [("b", "removed", "dropped"), ("z", "input", "rerun")]
    made = forked(bench, job, "tail", changes=changes)
    inner = {"z/left", "z/right/x"} if nested else {"z"}
    assert set(calls(bench, made)) == {*inner, "tail"}
    assert {bench.steps(made)[path]["output"] for path in inner} == {"of a"}
    kept = forked(bench, job, "tail", changes=changes, reuse=["z"])
    assert set(calls(bench, kept)) == {"tail"}
    assert {bench.steps(kept)[path]["output"] for path in inner} == {"of b"}
    if nested:
        with pytest.raises(Conflict, match="step z is not the same"):
            fork.fork(bench.engine, wanted(job, "z/left", changes=changes))
        within = forked(bench, job, "z/left", changes=changes, reuse=["z"])
        assert set(calls(bench, within)) == {"z/left", "tail"}


def test_an_input_that_comes_to_the_same_is_no_drift(bench: Bench) -> None:
    """a and b answered alike, so z need not be called again."""
    first, second = agent("a", **{"with": "same"}), agent("b", **{"with": "same"})
    tail = agent("tail", **{"with": "apart"})
    job = finished(bench, [first, second, agent("z"), tail])
    submit.register(bench.engine, Workflow.model_validate(flow([first, agent("z"), tail])))
    made = forked(bench, job, "tail", changes={"workflow": "t"})
    assert set(calls(bench, made)) == {"tail"}


def test_an_agent_that_changed_is_a_step_that_changed(bench: Bench) -> None:
    job = finished(bench, [FAN, agent("z")])
    other = {**AGENTS, "echo": {"kind": "scripted", "version": "2"}}
    submit.register(bench.engine, Workflow.model_validate({**flow([FAN, agent("z")]), "agents": other}))
    seen = fork.preview(bench.engine, wanted(job, "z", changes={"workflow": "t"}))
    assert [(one["step"], one["why"]) for one in seen["drift"]] == [("f", "changed"), ("z", "changed")]
    with pytest.raises(Conflict, match="step f is not the same"):
        fork.fork(bench.engine, wanted(job, "f/0/x", changes={"workflow": "t"}))
    seen = fork.preview(bench.engine, wanted(job, "z", changes={"workflow": "t"}, reuse=["f"]))
    assert [(one["step"], one["choice"]) for one in seen["drift"]] == [("f", "reuse"), ("z", "rerun")]
    made = forked(bench, job, "z", changes={"workflow": "t"}, reuse=["f"])
    assert (set(calls(bench, made)), bench.job(made)["output"]) == ({"z"}, [1, 2])
