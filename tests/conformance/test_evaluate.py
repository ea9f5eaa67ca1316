"""Composites are evaluated by the settle that makes them ready: a claim of their own promised no more."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.ids import JobId
from orchestrator.domain.outcome import Failure, FailureClass, Stored
from orchestrator.domain.planner import CHUNK
from orchestrator.domain.result import GaveUp, Succeeded
from orchestrator.engine import composites
from orchestrator.engine.gather import Claimed
from orchestrator.engine.settle import Settle, Settled, claim, settle
from tests.support.bench import Bench
from tests.support.listening import listening

ECHO = {"echo": {"kind": "scripted"}}
A: dict[str, Any] = {"id": "a", "agent": "echo"}


def flow(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"name": "t", "agents": ECHO, "steps": list(steps)}


def fan(items: str = "${{ steps.a }}", **more: Any) -> dict[str, Any]:
    return {"id": "f", "for_each": items, "do": {"agent": "echo"}, **more}


def begun(bench: Bench, definition: dict[str, Any]) -> Claimed:
    """The first step of a new job, claimed."""
    bench.submit(definition, None)
    bench.pump()
    return next(iter(claim(bench.engine, [bench.take()]).values()))


def done(bench: Bench, mine: Claimed, text: str = "1") -> Settled:
    row = mine.row
    result = Succeeded(Stored(text))
    intent = Settle(row.job_id, row.path, row.ref, row.fence, result, continue_on=frozenset({"default"}))
    (settled,) = settle(bench.engine, [intent])
    assert settled.won
    return settled


def follows(settled: Settled) -> Claimed:
    assert settled.next is not None
    return settled.next


def states(bench: Bench, job: JobId) -> dict[str, str]:
    return {path: step["state"] for path, step in bench.steps(job).items()}


def test_a_fan_out_opens_and_its_join_ends_in_the_settles_beside_them(bench: Bench) -> None:
    """Its worker goes on with the first member; the last member's settle ends the join and the job."""
    first = done(bench, begun(bench, flow(A, fan())), "[7, 8]")
    member = follows(first)
    job = member.row.job_id
    assert (member.row.path, first.ready) == ("f/0", 1)
    assert states(bench, job) == {"a": "succeeded", "f": "waiting", "f/0": "running", "f/1": "ready"}
    assert done(bench, member, '"x"').next is None
    bench.pump()
    (ref,) = bench.dispatcher.refs
    (last,) = claim(bench.engine, [ref]).values()
    assert done(bench, last, '"y"').job_state == "succeeded"
    assert bench.job(job)["output"] == ["x", "y"]
    counted = bench.db.run(lambda s: s.rows("SELECT attempt, fence, lease_owner FROM steps WHERE path = 'f'"))
    assert [tuple(row.values()) for row in counted] == [(2, 2, None)], "opened once, joined once; nobody holds it"
    bench.check()


@pytest.mark.parametrize("before", [[], [{"id": "b", "agent": "echo"}]], ids=["first", "after another"])
def test_an_expression_that_fails_does_not_take_the_result_before_it_along(
    bench: Bench, before: list[dict[str, Any]]
) -> None:
    mine = begun(bench, flow(*before, A, fan()))
    if before:
        mine = follows(done(bench, mine))
    with listening() as heard:
        settled = done(bench, mine, "7")
    job = mine.row.job_id
    assert (settled.job_state, settled.next) == ("failed", None)
    locks = [sql for sql in heard.said if "{for_update}" in sql]
    assert "FROM jobs" in locks[0], "the job first, then what its failure stops"
    assert (states(bench, job)["a"], states(bench, job)["f"]) == ("succeeded", "failed")
    failure = bench.job(job)["failure"]
    assert (failure["class"], failure["detail"]) == ("permanent", {"step": "f"})
    assert "for_each needs a list, got int" in failure["message"]
    bench.check()


def test_one_that_fails_keeps_its_siblings_of_the_same_moment_from_opening(bench: Bench) -> None:
    branches = {"x": fan("${{ input }}"), "y": fan("[1, 2]")}
    mine = begun(bench, flow(A, {"id": "p", "parallel": branches}))
    assert done(bench, mine).job_state == "failed"
    assert states(bench, mine.row.job_id) == {"a": "succeeded", "p": "failed", "p/x": "failed", "p/y": "cancelled"}
    bench.check()


def test_what_follows_cannot_keep_a_result_from_being_written(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bug in it is met again where it belongs: in the composite's own claim, which the finished call outlives."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("a bug")

    mine = begun(bench, flow(A, fan()))
    with monkeypatch.context() as patched:
        patched.setattr(composites, "result", broken)
        left = follows(done(bench, mine, "[1]"))
    assert (left.row.path, left.opening) == ("f", True)
    job = mine.row.job_id
    assert states(bench, job)["a"] == "succeeded"
    row = left.row
    result = composites.result(left, bench.engine.sizes, bench.engine.caps)
    assert settle(bench.engine, [Settle(row.job_id, row.path, row.ref, row.fence, result)])[0].won
    bench.drive()
    assert (bench.job(job)["state"], bench.job(job)["output"]) == ("succeeded", [1])
    bench.check()


def test_a_wide_fan_out_is_a_step_of_its_own(bench: Bench) -> None:
    """So that no transaction holds the job for long: it is written in chunks, and so is its join's body claimed."""
    opens = follows(done(bench, begun(bench, flow(A, fan())), str(list(range(CHUNK + 1)))))
    assert (opens.row.path, opens.row.state, opens.opening) == ("f", "running", True)
    opens = follows(done(bench, begun(bench, flow(A, fan())), str(list(range(CHUNK)))))
    assert opens.row.path == "f/0"


def test_members_that_end_at_once_let_the_next_ones_go(bench: Bench) -> None:
    """More than the settle had read: each is looked for when the one before it ends."""
    inner = {"parallel": {"x": {"agent": "echo"}}, "when": "n > 5"}
    held = {"id": "f", "for_each": "${{ steps.a }}", "as": "n", "do": inner, "max_concurrency": 1}
    opened = done(bench, begun(bench, flow(A, held)), "[1, 2, 3, 9, 4, 5]")
    member = follows(opened)
    assert member.row.path == "f/3/x"
    assert list(states(bench, member.row.job_id).values()).count("skipped") == 3
    ended = done(bench, member, '"nine"')
    assert ended.job_state == "succeeded"
    assert bench.job(member.row.job_id)["output"] == [None, None, None, {"x": "nine"}, None, None]
    bench.check()


def test_rounds_follow_each_other_without_a_claim_of_the_supervisor(bench: Bench) -> None:
    rule = {"supervisor": "echo", "workers": ["echo"], "rounds": 2, "until": "review.ok"}
    mine = follows(done(bench, begun(bench, flow(A, {"id": "s", "supervise": rule})), "1"))
    for number in (1, 2):
        assert mine.row.path == f"s/round-{number}/plan"
        work = follows(done(bench, mine, '{"assignments": [{"agent": "echo", "input": 1}]}'))
        assert work.row.path == f"s/round-{number}/work/0"
        review = follows(done(bench, work, '"w"'))
        assert review.row.path == f"s/round-{number}/review"
        settled = done(bench, review, '{"ok": false}')
        if number == 1:
            mine = follows(settled)
    assert settled.job_state == "succeeded"
    output = bench.job(mine.row.job_id)["output"]
    assert (output["rounds"], output["met"], output["results"][0]["output"]) == (2, False, "w")
    bench.check()


def test_a_sibling_that_fails_in_the_same_batch_keeps_a_composite_from_opening(bench: Bench) -> None:
    branch = [{"id": "one", "agent": "echo"}, {"id": "two", "parallel": {"z": {"agent": "echo"}}}]
    job = bench.submit(flow({"id": "p", "parallel": {"x": branch, "y": {"agent": "echo"}}}), 5)
    bench.pump()
    (opens,) = claim(bench.engine, [bench.take()]).values()
    row = opens.row
    opened = composites.result(opens, bench.engine.sizes, bench.engine.caps)
    assert settle(bench.engine, [Settle(row.job_id, row.path, row.ref, row.fence, opened)])[0].ready == 2
    bench.pump()
    calls = claim(bench.engine, [bench.take(), bench.take()]).values()
    results = {"p/x/one": Succeeded(Stored("1")), "p/y": GaveUp(Failure(FailureClass.PERMANENT, "no"))}
    intents = [Settle(job, c.row.path, c.row.ref, c.row.fence, results[c.row.path]) for c in calls]
    assert [settled.won for settled in settle(bench.engine, intents)] == [True, True]
    found = states(bench, job)
    assert (found["p/x/one"], found["p/x/two"], found["p"]) == ("succeeded", "cancelled", "failed")
    assert "p/x/two/z" not in found
    assert bench.job(job)["state"] == "failed"
    bench.check()
