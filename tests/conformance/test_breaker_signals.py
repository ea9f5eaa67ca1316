"""What opens a circuit breaker, on both databases; each sends the next call to its fallback."""

from __future__ import annotations

from orchestrator.engine import breakers
from tests.support.bench import Bench
from tests.support.breaker_flows import cool_down, fails, flow, phase, phase_or_none, run, state


def test_three_failed_checks_in_a_row_open_it(bench: Bench) -> None:
    """H1: fails quality three times (the default); a good answer in between begins the count again."""
    what = flow({"cooldown": "1m"}, fails("invalid_output"))
    for mood in ("fail", "fail", "ok", "fail", "fail"):
        run(bench, what, mood)
    assert (phase(bench), state(bench)["streak"]) == ("closed", 2)
    run(bench, what)
    assert (phase(bench), state(bench)["tripped_by"]["signal"]) == ("open", "quality")
    job = run(bench, {**what, "steps": [{**what["steps"][0], "on_failure": [{"agent": "lite"}]}]})
    assert bench.job(job)["output"] == "lite"


def test_a_bad_answer_is_one_that_misses_its_check(bench: Bench) -> None:
    what = flow({"quality": 2, "cooldown": "1m"}, checks=["output == 'good'"])
    for _ in range(2):
        run(bench, what, "ok")
    assert state(bench)["tripped_by"]["class"] == "invalid_output"


def test_overspending_opens_it(bench: Bench, other: Bench) -> None:
    """H1: over-spends; what several workers spent within the window is one sum."""
    what = flow({"usd": 0.25, "cooldown": "1m"}, fails(usd=0.1))
    run(bench, what, "ok")
    run(other, what, "ok")
    assert phase_or_none(bench) is None
    run(bench, what, "ok")
    assert (phase(bench), state(bench)["tripped_by"]["signal"]) == ("open", "spend")
    job = run(other, {**what, "steps": [{**what["steps"][0], "on_failure": [{"agent": "lite", "on": ["budget"]}]}]})
    assert bench.job(job)["output"] == "lite"


def test_the_same_answer_three_rounds_in_a_row_opens_it(bench: Bench) -> None:
    """H1: loops; three rounds bring the same draft, and the fourth waits. Whoever reviews them is not blamed."""
    again = {"assignments": [{"agent": "stuck", "input": 1}]}
    agents = {
        "boss": {
            "kind": "python",
            "target": "tests.support.breaker_agents:boss",
            "config": {"plan": again},
            "breaker": {"cooldown": "1m"},
        },
        "stuck": {"kind": "scripted", "script": [{"output": "the same"}], "breaker": {"cooldown": "1m"}},
    }
    rule = {"supervisor": "boss", "workers": ["stuck"], "rounds": 9, "until": "review.score > 0.5"}
    job = run(bench, {"name": "t", "agents": agents, "steps": [{"id": "loop", "supervise": rule}]}, "goal")
    assert (phase(bench, "stuck"), state(bench, "stuck")["tripped_by"]["signal"]) == ("open", "loop")
    assert [row["name"] for row in breakers.listing(bench.engine, None)] == ["stuck"]
    assert bench.steps(job)["loop/round-4/work/0"]["state"] == "ready"
    cool_down(bench)
    bench.drive()
    assert (phase(bench, "stuck"), state(bench, "stuck")["trips"]) == ("open", 2)


def test_a_rate_limit_that_names_its_wait_is_no_failure(bench: Bench) -> None:
    what = flow({"calls": 1, "failures": "1%"}, fails("rate_limited", retry_after=60))
    run(bench, what)
    assert breakers.listing(bench.engine, None) == []
