"""A job's whole life through the real engine, on both stores."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import pytest

from orchestrator.domain.errors import Conflict, IdempotencyMismatch, InvalidInput, NotFound, PayloadTooLarge
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.outcome import Stored
from orchestrator.domain.result import Succeeded
from orchestrator.engine import cancel, dead_letters, release
from orchestrator.engine.context import Caps
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.store import desk, workers
from tests.support.bench import Bench, bench

ECHO = {"kind": "scripted"}
FAIL = {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "no such clause 17"}}]}


def workflow(steps: list[Any], agents: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    return {"name": "t", "agents": {"echo": ECHO, "bad": FAIL, **(agents or {})}, "steps": steps, **more}


def agent(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "agent": "echo", **more}


def test_a_sequence_hands_each_output_on_byte_for_byte(bench: Bench) -> None:
    """A1: step n + 1 receives the identical output of step n."""
    value = {"b": 1, "a": [1.0, 1e-7, "é\u2028", {"z": None, "y": True}], "n": 12345678901234567}
    job = bench.submit(workflow([agent(f"s{i}") for i in range(5)]), value)
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"
    texts = {json.dumps(step["output"]) for step in bench.steps(job).values()}
    assert texts == {json.dumps(value)}
    assert json.dumps(bench.job(job)["output"]) == json.dumps(value)


def test_an_output_above_the_inline_size_is_stored_once(bench: Bench) -> None:
    """C1: large checkpoints are shared by their content."""
    value = {"text": "é" * 90_000}
    job = bench.submit(workflow([agent("a"), agent("b"), agent("c")]), value)
    bench.drive()
    assert bench.job(job)["output"] == value
    with bench.db.connect(readonly=True) as session:
        assert session.value("SELECT count(*) FROM payloads") == 1


def test_a_graph_runs_in_the_order_of_its_needs(bench: Bench) -> None:
    """B1: dependencies, not list order, decide; a step with several needs gets all their outputs."""
    steps = [
        agent("last", needs=["left", "right"]),
        agent("left", needs=["first"], **{"with": {"l": "${{ steps.first.n }}"}}),
        agent("right", needs=["first"], **{"with": {"r": "${{ steps.first.n }}"}}),
        agent("first", needs=[]),
    ]
    job = bench.submit(workflow(steps, output="${{ steps.last }}"), {"n": 7})
    bench.drive()
    assert bench.job(job)["output"] == {"left": {"l": 7}, "right": {"r": 7}}
    order = [event["path"] for event in bench.events(job) if event["type"] == "step.succeeded" and event["path"]]
    assert order.index("first") < min(order.index("left"), order.index("right")) < order.index("last")


def test_fan_out_joins_in_order_and_honours_max_concurrency(bench: Bench) -> None:
    """A2: as wide as the data, collected in order; at most ``max_concurrency`` members are out at once."""
    step = {"id": "f", "for_each": "${{ input }}", "as": "n", "do": {"agent": "echo", "with": {"v": "${{ n * 2 }}"}}}
    job = bench.submit(workflow([{**step, "max_concurrency": 3}]), list(range(20)))
    seen = 0
    while True:
        bench.pump()
        if not bench.dispatcher.refs:
            break
        states = [s["state"] for p, s in bench.steps(job).items() if p.startswith("f/")]
        seen = max(seen, sum(state in ("ready", "running") for state in states))
        ref = bench.take()
        asyncio.run(bench.run(ref))
    assert bench.job(job)["output"] == [{"v": n * 2} for n in range(20)]
    assert seen == 2, "two wait; the third goes on in place"


def test_an_empty_fan_out_is_decided_at_once(bench: Bench) -> None:
    job = bench.submit(workflow([{"id": "f", "for_each": "${{ input }}", "do": {"agent": "echo"}}]), [])
    bench.drive()
    assert bench.job(job)["output"] == []


def test_composites_nest_five_deep(bench: Bench) -> None:
    """A5: sequence in parallel in for_each in supervise in sequence."""
    inner = [agent("p"), {"id": "w", "parallel": {"x": [agent("q"), agent("r")], "y": {"agent": "echo"}}}]
    nested = {"id": "f", "for_each": "${{ input }}", "as": "n", "do": inner}
    job = bench.submit(
        workflow([{"id": "top", "parallel": {"a": [agent("s"), nested], "b": {"agent": "echo"}}}]), [1, 2]
    )
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"
    assert bench.job(job)["output"] == {"a": [{"x": 1, "y": 1}, {"x": 2, "y": 2}], "b": [1, 2]}


SUPERVISED = {
    "lead": {
        "kind": "scripted",
        "script": [{"output": {"assignments": [{"agent": "echo", "input": {"n": "${{ input.round }}"}}] * 2}}],
    },
    "judge": {"kind": "scripted", "script": [{"output": {"score": "${{ input.round }}"}}]},
}


@pytest.mark.parametrize(("until", "rounds", "met"), [("review.score >= 2", 2, True), ("review.score > 9", 3, False)])
def test_a_supervisor_loops_until_the_bar_or_the_cap(bench: Bench, until: str, rounds: int, met: bool) -> None:
    """A4: plan, delegate, review; each round checkpointed; stops at the threshold or the cap."""
    rule = {"supervisor": "lead", "workers": ["echo"], "reviewer": "judge", "rounds": 3, "until": until}
    job = bench.submit(workflow([{"id": "s", "supervise": rule}], SUPERVISED), {})
    bench.drive()
    output = bench.job(job)["output"]
    assert (output["rounds"], output["met"]) == (rounds, met)
    assert output["result"] == [{"n": rounds}, {"n": rounds}]


def test_when_false_skips_and_counts_as_done(bench: Bench) -> None:
    job = bench.submit(
        workflow([agent("a", when="input.go"), agent("b", **{"with": {"a": "${{ steps.a }}"}})]), {"go": False}
    )
    bench.drive()
    assert bench.steps(job)["a"]["state"] == "skipped"
    assert bench.job(job)["output"] == {"a": None}


def test_a_failed_step_resolves_its_dependents_and_parks_the_job(bench: Bench) -> None:
    """E10: B does not hang when A fails. P7: a failed job has a dead letter that says why."""
    job = bench.submit(workflow([agent("a"), {"id": "b", "agent": "bad"}, agent("c")]), 1)
    bench.drive()
    states = {path: step["state"] for path, step in bench.steps(job).items()}
    assert states == {"a": "succeeded", "b": "failed", "c": "cancelled"}
    view = bench.job(job)
    assert (view["state"], view["failure"]["class"]) == ("failed", "permanent")
    letters = bench.db.run(lambda s: desk.letters(s, tenant="default"))
    assert [(letter["job_id"], letter["path"], letter["reason"]) for letter in letters] == [(job, "b", "permanent")]


def test_a_branch_that_fails_cancels_what_has_not_begun_and_keeps_what_ran(bench: Bench) -> None:
    step = {"id": "f", "for_each": "${{ input }}", "as": "n", "max_concurrency": 1, "do": [agent("x"), _fails_at(2)]}
    job = bench.submit(workflow([step, agent("after")], {"picky": _picky()}), [0, 1, 2, 3, 4])
    bench.drive()
    states = {path: row["state"] for path, row in bench.steps(job).items()}
    assert states["f/1/y"] == "succeeded"
    assert states["f/2/y"] == states["f/2"] == states["f"] == "failed"
    assert states["f/3"] == states["f/4"] == states["after"] == "cancelled"
    assert bench.job(job)["state"] == "failed"


def test_tolerated_failures_are_left_out(bench: Bench) -> None:
    one = {key: value for key, value in _fails_at(2).items() if key != "id"}
    step = {"id": "f", "for_each": "${{ input }}", "as": "n", "do": one, "join": {"tolerate": "20%"}}
    job = bench.submit(workflow([step], {"picky": _picky()}), [0, 1, 2, 3, 4])
    bench.drive()
    assert bench.job(job)["output"] == [0, 1, 3, 4]


def _picky() -> dict[str, Any]:
    return {"kind": "scripted", "output_schema": {"not": {"const": "bad"}}}


def _fails_at(n: int) -> dict[str, Any]:
    return {"id": "y", "agent": "picky", "with": f"${{{{ n == {n} ? dyn('bad') : dyn(n) }}}}"}


def test_replay_continues_from_the_failed_step(bench: Bench) -> None:
    """E8: finished checkpoints are kept, the failed step runs in a new epoch, the letter is closed once."""
    flaky = {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "x"}}, {"output": "mended"}]}
    job = bench.submit(workflow([agent("a"), {"id": "b", "agent": "flaky"}, agent("c")], {"flaky": flaky}), 1)
    bench.drive()
    letter = bench.db.run(lambda s: desk.letters(s, tenant="default"))[0]
    dead_letters.replay(bench.engine, letter["id"], by="me", note="looked at it")
    with pytest.raises(Conflict):
        dead_letters.replay(bench.engine, letter["id"], by="me too")
    bench.drive()
    steps = bench.steps(job)
    assert bench.job(job)["output"] == "mended"
    assert (steps["a"]["attempt"], steps["a"]["epoch"], steps["b"]["attempt"], steps["b"]["epoch"]) == (1, 1, 2, 2)
    assert bench.job(job)["run"] == 2


def test_each_run_has_as_long_as_the_first(bench: Bench) -> None:
    broken = {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "x"}}]}
    job = bench.submit({**workflow([{"id": "a", "agent": "b"}], {"b": broken}), "deadline": "1h"}, 1)
    for _ in range(3):
        bench.drive()
        began = bench.db.run(lambda s: s.now())
        letter = bench.db.run(lambda s: desk.letters(s, tenant="default"))[0]
        dead_letters.replay(bench.engine, letter["id"], by="me")
        assert 3600 <= bench.job(job)["deadline_at"] - began < 3660
    bench.drive()


@pytest.mark.parametrize("at", range(6))
def test_replay_of_a_fan_out_repeats_only_what_did_not_finish(bench: Bench, at: int) -> None:
    """M4: a replay touches only stale steps, whichever member failed."""
    steps = [
        {"id": "f", "for_each": "${{ input }}", "as": "n", "do": [agent("x"), _once_bad(at)], "max_concurrency": 2}
    ]
    once = {"kind": "scripted", "script": [{"output": "${{ input }}"}]}
    job = bench.submit(workflow([*steps, agent("after")], {"picky": _picky(), "once": once}), list(range(6)))
    bench.drive()
    assert bench.job(job)["state"] == "failed"
    done = {path for path, row in bench.steps(job).items() if row["state"] == "succeeded"}
    letter = bench.db.run(lambda s: desk.letters(s, tenant="default"))[0]
    dead_letters.replay(bench.engine, letter["id"], by="me")
    bench.drive()
    after = bench.steps(job)
    assert {path for path in done if after[path]["epoch"] > 1} == set()
    assert bench.job(job)["state"] == "failed"  # it is still picky: a new letter in a new run
    assert bench.job(job)["run"] == 2


def _once_bad(at: int) -> dict[str, Any]:
    return _fails_at(at)


def test_cancel_ends_what_has_not_begun(bench: Bench) -> None:
    job = bench.submit(workflow([agent("a"), agent("b")]), 1)
    cancel.cancel(bench.engine, job)
    assert bench.job(job)["state"] == "cancelled"
    assert cancel.cancel(bench.engine, job).state.value == "cancelled"  # again is no error
    bench.drive()
    assert {row["state"] for row in bench.steps(job).values()} == {"cancelled"}


def test_cancel_waits_for_live_calls_and_records_what_they_cost(bench: Bench) -> None:
    job = bench.submit(workflow([agent("a"), agent("b")]), 1)
    bench.pump()
    won = claim(bench.engine, [bench.take()])
    mine = next(iter(won.values()))
    cancel.cancel(bench.engine, job)
    assert bench.job(job)["state"] == "cancelling"
    done = settle(bench.engine, [_success(mine)])
    assert done[0].won
    assert done[0].next is None
    assert bench.job(job)["state"] == "cancelled"
    assert bench.steps(job)["a"]["state"] == "succeeded"


def _success(claimed: Any) -> Settle:
    row = claimed.row
    return Settle(row.job_id, row.path, row.ref, row.fence, Succeeded(Stored("1")), continue_on=frozenset({"default"}))


def test_a_late_twin_is_fenced(bench: Bench) -> None:
    """P3: one committed result for each (job, step, epoch), whatever a slower twin does."""
    job = bench.submit(workflow([agent("a"), agent("b")]), 1)
    bench.pump()
    ref = bench.take()
    first = claim(bench.engine, [ref])[ref]
    assert claim(bench.engine, [ref]) == {}
    lost = bench.db.run(lambda s: workers.held_by(s, bench.engine.process))
    release.release_lost(bench.engine, lost)
    bench.pump()
    second = claim(bench.engine, [bench.take()])
    mine = next(iter(second.values()))
    assert mine.row.fence > first.row.fence
    assert settle(bench.engine, [_success(first)])[0].won is False
    assert settle(bench.engine, [_success(mine)])[0].won is True
    assert settle(bench.engine, [_success(mine)])[0].won is False
    assert bench.steps(job)["a"]["state"] == "succeeded"


def test_the_same_key_is_the_same_job(bench: Bench) -> None:
    """P2."""
    flow = workflow([agent("a")])
    first = bench.submit(flow, {"x": 1}, key="order-1")
    assert bench.submit(flow, {"x": 1}, key="order-1") == first
    with pytest.raises(IdempotencyMismatch):
        bench.submit(flow, {"x": 2}, key="order-1")
    assert bench.submit(flow, {"x": 2}, key="order-1", tenant="other") != first
    bench.drive()


def test_bad_input_leaves_nothing_behind(bench: Bench) -> None:
    """D4: refused before anything is written."""
    flow = workflow([agent("a")], input_schema={"type": "object", "required": ["x"]})
    for value in ({}, float("nan"), {"x": "\x00"}, {"x": "\ud800"}):
        with pytest.raises(InvalidInput):
            bench.submit(flow, value)
    with bench.db.connect(readonly=True) as session:
        assert session.value("SELECT count(*) FROM jobs") == 0
    with pytest.raises(NotFound):
        cancel.cancel(bench.engine, JobId("nobody"))


def test_an_oversize_input_is_refused_before_any_spend(bench: Bench) -> None:
    """D4: by its bytes, not its characters, and by its depth; nothing is written, so nobody is paid."""
    bench.engine.caps = Caps(body_bytes=1000)
    deep: Any = 1
    for _ in range(1000):
        deep = [deep]
    flow = workflow([agent("a")])
    for value in ("x" * 1000, "é" * 500):
        with pytest.raises(PayloadTooLarge, match=r"1002 bytes of JSON, the limit is 1000\. .*MAX_BODY_BYTES"):
            bench.submit(flow, value)
    with pytest.raises(InvalidInput, match="deeper than 100"):
        bench.submit(flow, deep)
    with bench.db.connect(readonly=True) as session:
        for table in ("jobs", "steps", "payloads", "workflows"):
            assert session.value(f"SELECT count(*) FROM {table}") == 0
    assert bench.drive() == 0


def test_an_expression_that_fails_is_permanent_and_says_where(bench: Bench) -> None:
    job = bench.submit(workflow([agent("a", **{"with": "${{ input.missing }}"})]), {"there": 1})
    bench.drive()
    failure = bench.job(job)["failure"]
    assert failure["class"] == "permanent"
    assert "missing" in failure["message"]


def test_retries_follow_the_policy_and_keep_count(bench: Bench) -> None:
    """B6: attempts, failure classes and their order are in the history."""
    fails = [{"fail": {"class": "transient", "message": "later"}}] * 2
    shaky = {"kind": "scripted", "script": [*fails, {"output": "done"}]}
    retry = {"attempts": 3, "initial": "1ms", "max": "2ms"}
    job = bench.submit(workflow([{"id": "a", "agent": "shaky", "retry": retry}], {"shaky": shaky}), 1)
    while bench.job(job)["state"] not in ("succeeded", "failed"):
        bench.drive()
    assert bench.job(job)["output"] == "done"
    assert [event["type"] for event in bench.events(job) if event["path"] == "a"] == [
        "step.retrying",
        "step.retrying",
        "step.succeeded",
    ]


def test_the_output_says_what_each_field_is_made_of(bench: Bench) -> None:
    """B8: a coherent final output, with the steps each field comes from."""
    output = {"both": {"a": "${{ steps.a }}", "sum": "${{ steps.a + steps.b }}"}, "fixed": 1}
    flow = workflow([agent("a"), agent("b")], output=output)
    job = bench.submit(flow, 2)
    bench.drive()
    view = bench.job(job)
    assert view["output"] == {"both": {"a": 2, "sum": 4}, "fixed": 1}
    assert view["provenance"] == {"both.a": ["a"], "both.sum": ["a", "b"], "fixed": []}
    assert bench.job(bench.submit(workflow([agent("only")]), 1))["provenance"] == {"": ["only"]}
    bench.drive()


@pytest.mark.parametrize("round_", range(3))
def test_any_order_of_messages_ends_the_same(url: str, round_: int, seed: int) -> None:
    """P5: shuffled and doubled messages, concurrent settles: each step once, the same output."""
    rng = random.Random(seed + round_)
    step = {"id": "f", "for_each": "${{ input }}", "as": "n", "do": [agent("x"), agent("y"), agent("z")]}
    with bench(url, seed=rng.randrange(2**31), in_place=rng.choice([0, 1, 50]), slots=rng.choice([0, 4, 40])) as it:
        job = it.submit(
            workflow([agent("a"), {**step, "max_concurrency": rng.choice([1, 4, 50])}, agent("b")]), list(range(12))
        )

        async def storm() -> None:
            while True:
                it.pump()
                if not it.dispatcher.refs:
                    return
                refs = [it.take() for _ in range(min(8, len(it.dispatcher.refs)))]
                refs += rng.choices(refs, k=4)
                await asyncio.gather(*map(it.run, refs))
                await it.runner.drained()

        slots = it.slots.free
        asyncio.run(storm())
        it.check()
        assert it.slots.free == slots
        assert it.job(job)["output"] == list(range(12))
        attempts = [row["attempt"] for path, row in it.steps(job).items() if row["kind"] == "agent"]
        assert set(attempts) == {1}


def test_a_message_for_what_is_gone_changes_nothing(bench: Bench) -> None:
    """M2: unknown, finished, cancelled, or of an old epoch."""
    job = bench.submit(workflow([agent("a")]), 1)
    bench.pump()
    ref = bench.take()
    asyncio.run(bench.run(ref))
    before = bench.events(job)
    stale = [
        ref,
        type(ref)(JobId("nobody"), ref.path, 1),
        type(ref)(job, StepPath("zz"), 1),
        type(ref)(job, ref.path, 0),
    ]
    for old in stale:
        asyncio.run(bench.run(old))
    assert bench.events(job) == before
