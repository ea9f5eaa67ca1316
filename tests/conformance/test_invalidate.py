"""Invalidate: a step and its transitive dependents are done again, nothing else, whatever the plan looks like."""

from __future__ import annotations

import random
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from orchestrator.crashpoints import CrashPointReached, arm
from orchestrator.domain.errors import Conflict, InvalidInput, NotFound
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.engine import audit, dead_letters, invalidate, queries
from orchestrator.engine.settle import claim, settle
from orchestrator.store import desk
from tests.conformance.test_engine import _success
from tests.conformance.test_replay_changes import everything, letter_of
from tests.support.bench import Bench

PLANNED = {"assignments": [{"agent": "echo", "input": "${{ input.round }}"}] * 2}
AGENTS: dict[str, Any] = {
    "echo": {"kind": "scripted"},
    "lead": {"kind": "scripted", "script": [{"output": PLANNED}]},
    "judge": {"kind": "scripted", "script": [{"output": {"score": "${{ input.round }}"}}]},
    "broken": {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "no"}}]},
    "mailer": {"kind": "scripted", "effect": "irreversible"},
}


def flow(steps: list[Any]) -> dict[str, Any]:
    return {"name": "t", "agents": AGENTS, "steps": steps}


def agent(name: str, **more: Any) -> dict[str, Any]:
    return {"id": name, "agent": "echo", **more}


def do(bench: Bench, job: JobId, path: str, **more: Any) -> Any:
    return invalidate.invalidate(bench.engine, job, StepPath(path), by="ann", **more)


def calls(bench: Bench, job: JobId) -> dict[str, int]:
    """How often each agent's step was called."""
    count: dict[str, int] = defaultdict(int)
    for one in queries.list_attempts(bench.engine, job):
        count[one["path"]] += 1
    return count


def finished(bench: Bench, steps: list[Any], input: Any = 1) -> JobId:
    job = bench.submit(flow(steps), input)
    bench.drive()
    assert bench.job(job)["state"] == "succeeded", bench.job(job)["failure"]
    return job


# ---------------------------------------------------------------------------------------------------------------
# random plans against a model


class Plans:
    """Draws definitions, and beside each the order of its beginnings and ends: the model.

    ``edges``: (what, path) → what cannot have happened before it. Begin and end of each step; nothing else is known.
    """

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.edges: dict[tuple[str, str], set[tuple[str, str]]] = defaultdict(set)

    def list_of(self, path: str, depth: int) -> list[dict[str, Any]]:
        """Steps of a list at ``path``, which may be the job itself."""
        names = [f"{'cba'[depth]}{i}" for i in range(self.rng.randint(1, 3))]
        graph = self.rng.random() < 0.4
        steps = []
        for i, name in enumerate(names):
            step = {"id": name, **self.step(self.inside(path, name), depth)}
            needs = names[max(i - 1, 0) : i]
            if graph:
                needs = self.rng.sample(names[:i], self.rng.randint(0, i))
                step["needs"] = needs
            for need in needs:
                self.edge("end", self.inside(path, need), "begin", self.inside(path, name))
            steps.append(step)
        return steps

    def step(self, path: str, depth: int) -> dict[str, Any]:
        forms = ["agent", "agent", "for_each", "parallel", "supervise"] if depth else ["agent"]
        match self.rng.choice(forms):
            case "for_each":
                width = self.rng.randint(0, 3)
                bodies = self.rng.getstate()
                body: Any = None
                for i in range(width):  # the same body for each member
                    self.rng.setstate(bodies)
                    body = self.body(self.inside(path, str(i)), depth - 1)
                more = {"max_concurrency": 2} if self.rng.random() < 0.3 else {}
                return {"for_each": str(list(range(width))), "do": body or {"agent": "echo"}, **more}
            case "parallel":
                return {"parallel": {name: self.body(self.inside(path, name), depth - 1) for name in ("x", "y")}}
            case "supervise":
                return self.supervise(path)
            case _:
                return {"agent": "echo"}

    def body(self, path: str, depth: int) -> Any:
        return self.list_of(path, depth) if self.rng.random() < 0.5 else self.step(path, depth)

    def supervise(self, path: str) -> dict[str, Any]:
        rounds = self.rng.randint(1, 3)
        for number in range(1, rounds + 1):
            one = self.inside(path, f"round-{number}")
            for name in ("plan", "work", "review", "work/0", "work/1"):
                self.inside(*f"{one}/{name}".rsplit("/", 1))
            self.edge("end", f"{one}/plan", "begin", f"{one}/work")
            self.edge("end", f"{one}/work", "begin", f"{one}/review")
            if number > 1:
                self.edge("end", self.inside(path, f"round-{number - 1}"), "begin", one)
        rule = {"supervisor": "lead", "reviewer": "judge", "workers": ["echo"], "rounds": 3}
        return {"supervise": {**rule, "until": f"review.score >= {rounds}"}}

    def inside(self, path: str, name: str) -> str:
        inner = f"{path}/{name}" if path else name
        self.edge("begin", path, "begin", inner)
        self.edge("begin", inner, "end", inner)
        self.edge("end", inner, "end", path)
        return inner

    def edge(self, what: str, path: str, then: str, other: str) -> None:
        self.edges[what, path].add((then, other))

    def begins_after(self, path: str) -> set[str]:
        """Every step whose beginning comes after the beginning of ``path``, and that itself."""
        seen = {("begin", path)}
        waiting = list(seen)
        while waiting:
            for found in self.edges[waiting.pop()] - seen:
                seen.add(found)
                waiting.append(found)
        return {at for what, at in seen if what == "begin"}


@pytest.mark.parametrize("round_", range(12))
def test_exactly_the_transitive_dependents_are_done_again(bench: Bench, round_: int, seed: int) -> None:
    """C1, M4: on random plans, what is called again is what the model says; the rest keeps its checkpoint."""
    rng = random.Random(seed * 100 + round_)
    plans = Plans(rng)
    job = finished(bench, plans.list_of("", 2))
    output = bench.job(job)["output"]
    for run in (2, 3):
        before, rows = calls(bench, job), bench.steps(job)
        path = rng.choice(sorted(rows))
        seen = invalidate.preview(bench.engine, job, StepPath(path))
        do(bench, job, path)
        bench.drive()
        after, now = calls(bench, job), bench.steps(job)
        again = {at for at in after if after[at] > before[at]}
        model = {at for at in plans.begins_after(path) if at in before}
        assert again == model, f"{path} in {sorted(rows)}"
        assert {at for at in again if rows[at]["epoch"] >= now[at]["epoch"]} == set()
        touched = {*seen["again"], *seen["around"], *seen["gone"]}
        kept = {at for at in rows if at not in touched}
        assert {at for at in kept if rows[at] != now[at]} == set()
        assert again <= touched
        assert (bench.job(job)["state"], bench.job(job)["run"]) == ("succeeded", run)
        assert (bench.job(job)["output"], now.keys()) == (output, rows.keys())
        assert bench.job(job)["steps"] == len(rows) + 1
        keys = [(one["path"], one["generation"]) for one in queries.list_attempts(bench.engine, job)]
        assert len(keys) == len(set(keys)), "a key was used for two calls"
        bench.check()


# ---------------------------------------------------------------------------------------------------------------
# one by one


def test_old_results_stay_with_their_attempts(bench: Bench) -> None:
    """C1: processed, to be processed again, and what each had answered, is all there to see."""
    big = "é" * 9000
    clock = {"kind": "python", "target": "tests.support.attempt_agents:counted"}
    steps = [
        {"id": "a", "agent": "clock", "with": {"big": big}},
        agent("b", **{"with": "${{ steps.a.n }}"}),
        agent("c"),
    ]
    job = bench.submit({"name": "t", "agents": {**AGENTS, "clock": clock}, "steps": steps}, 1)
    bench.drive()
    do(bench, job, "a", note="the source was corrected")
    shown = bench.job(job)
    assert (shown["state"], shown["output"], shown["failure"]) == ("running", None, None)
    states = {path: (step["state"], step["output"]) for path, step in bench.steps(job).items()}
    assert states == {"a": ("ready", None), "b": ("pending", None), "c": ("pending", None)}
    bench.drive()
    tried = [
        (one["path"], one["epoch"], one["generation"], one["output"])
        for one in queries.list_attempts(bench.engine, job)
    ]
    assert tried == [
        ("a", 1, 1, {"n": 1, "big": big}),
        ("a", 2, 2, None),
        ("b", 1, 1, 1),
        ("b", 2, 2, None),
        ("c", 1, 1, 1),
        ("c", 2, 2, None),
    ]
    assert bench.job(job)["output"] == 2
    [event] = [event["data"] for event in bench.events(job) if event["type"] == "job.reopened"]
    assert event == {"steps": 4, "invalidated": "a", "by": "ann"}
    [entry] = audit.trail(bench.engine, tenant="default", subject=job)[0]
    assert (entry["what"], entry["why"], entry["data"]) == (
        "step.invalidated",
        "the source was corrected",
        {"path": "a"},
    )


def test_a_fan_out_may_come_out_with_another_width(bench: Bench) -> None:
    """What a stale step had opened is taken out; a late answer of it is fenced, a late message for it finds nothing."""
    clock = {"kind": "python", "target": "tests.support.attempt_agents:shrinking"}
    fan = {"id": "f", "for_each": "${{ steps.a }}", "do": [agent("x"), agent("y")]}
    steps = [{"id": "a", "agent": "clock"}, fan]
    job = bench.submit({"name": "t", "agents": {**AGENTS, "clock": clock}, "steps": steps}, 1)
    bench.drive()
    assert bench.job(job)["output"] == [0, 1, 2]
    do(bench, job, "a")
    bench.drive()
    assert bench.job(job)["output"] == [0, 1]
    assert {path for path in bench.steps(job) if path.startswith("f/2")} == set()
    fences = bench.db.run(lambda s: s.rows("SELECT path, fence, epoch FROM steps WHERE path LIKE 'f/%/x'"))
    assert {(row["path"], row["epoch"]) for row in fences} == {("f/0/x", 2), ("f/1/x", 2)}
    assert min(row["fence"] for row in fences) > 1


def test_a_failed_job_goes_on_with_what_had_not_finished(bench: Bench) -> None:
    """Its letter is closed: it has gone back to work."""
    steps = [{"id": "p", "parallel": {"x": [agent("a"), agent("b")], "y": {"agent": "broken"}}}, agent("c")]
    job = bench.submit(flow(steps), 1)
    bench.drive()
    letter = letter_of(bench, job)
    do(bench, job, "p/x/a", note="once more")
    closed = dead_letters.get(bench.engine, letter)
    assert (closed["state"], closed["closed_by"], closed["note"]) == ("replayed", "ann", "once more")
    bench.drive()
    assert bench.job(job)["state"] == "failed"
    again = letter_of(bench, job)
    assert again != letter
    made = calls(bench, job)
    assert (made["p/x/a"], made["p/y"]) == (2, 2)
    assert made["p/x/b"] in (1, 2), "whether it had begun when y failed is chance"


def test_a_tolerated_failure_is_left_as_it_is(bench: Bench) -> None:
    """Nothing else: the branch that failed was no dependent."""
    join = {"join": {"tolerate": 1}}
    steps = [{"id": "p", "parallel": {"x": {"agent": "echo"}, "y": {"agent": "broken"}}, **join}]
    job = finished(bench, steps)
    do(bench, job, "p/x")
    bench.drive()
    assert bench.job(job)["output"] == {"x": 1}
    assert calls(bench, job) == {"p/x": 2, "p/y": 1}


def test_what_a_person_had_given_is_forgotten(bench: Bench) -> None:
    steps = [agent("a"), {"id": "b", "agent": "broken", "with": "${{ steps.a }}"}]
    job = bench.submit(flow(steps), 1)
    bench.drive()
    dead_letters.replay(bench.engine, letter_of(bench, job), by="ann", changes={"input": 5, "agent": "echo"})
    bench.drive()
    assert bench.job(job)["output"] == 5
    do(bench, job, "a")
    bench.drive()
    assert bench.job(job)["state"] == "failed"
    assert bench.steps(job)["b"]["agent"] == "broken"


def test_an_effect_is_repeated_only_if_that_is_said(bench: Bench) -> None:
    steps = [agent("a"), {"id": "mail", "agent": "mailer", "gate": "none"}, agent("z")]
    job = finished(bench, steps)
    before = everything(bench)
    with pytest.raises(Conflict, match="mail acted outside"):
        do(bench, job, "a")
    assert everything(bench) == before
    assert invalidate.preview(bench.engine, job, StepPath("a"))["effects"] == ["mail"]
    do(bench, job, "z")
    bench.drive()
    do(bench, job, "a", repeat_effects=True)
    bench.drive()
    assert calls(bench, job) == {"a": 2, "mail": 2, "z": 3}


def test_what_has_not_ended_is_refused_by_its_state(bench: Bench) -> None:
    job = bench.submit(flow([agent("a"), {"id": "b", "agent": "broken"}, agent("c")]), 1)
    with pytest.raises(Conflict, match="is queued"):
        do(bench, job, "a")
    bench.pump()
    mine = next(iter(claim(bench.engine, [bench.take()]).values()))
    with pytest.raises(Conflict, match="is running"):
        do(bench, job, "a")
    settle(bench.engine, [_success(mine)])
    bench.runner.stop((mine.row.job_id, mine.row.path, mine.row.fence), lost=True)


@pytest.mark.parametrize(
    ("path", "error", "says"),
    [
        ("b", Conflict, "step b is failed"),
        ("c", Conflict, "step c is cancelled"),
        ("d", NotFound, "no step 'd'"),
        ("", InvalidInput, "whole job"),
    ],
)
def test_what_has_no_result_is_refused(bench: Bench, path: str, error: Any, says: str) -> None:
    job = bench.submit(flow([agent("a"), {"id": "b", "agent": "broken"}, agent("c")]), 1)
    bench.drive()
    before = everything(bench)
    with pytest.raises(error, match=says):
        do(bench, job, path)
    with pytest.raises(NotFound):
        do(bench, job, "a", tenant="other")
    assert everything(bench) == before


def test_of_two_who_invalidate_at_once_one_wins(bench: Bench) -> None:
    """U2: the other is told the state of the job."""
    job = finished(bench, [agent("a"), agent("b")])

    def send(path: str) -> str | Conflict:
        try:
            do(bench, job, path)
        except Conflict as error:
            return error
        return path

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(send, ("a", "a")))
    [loser] = [error for error in done if isinstance(error, Conflict)]
    assert f"job {job} is running" in str(loser)
    bench.drive()
    assert calls(bench, job) == {"a": 2, "b": 2}


def test_a_death_in_mid_invalidation_leaves_nothing_of_it(bench: Bench) -> None:
    step = {"id": "f", "for_each": "[1, 2]", "do": {"agent": "echo"}}
    job = finished(bench, [agent("a"), step])
    before = everything(bench)
    arm("epoch.change=raise")
    with pytest.raises(CrashPointReached):
        do(bench, job, "a")
    assert everything(bench) == before
    do(bench, job, "a")
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"


def test_no_letter_is_open_while_the_job_runs_again(bench: Bench) -> None:
    """I9: a discarded letter stays as it is."""
    job = bench.submit(flow([agent("a"), {"id": "b", "agent": "broken"}]), 1)
    bench.drive()
    letter = letter_of(bench, job)
    dead_letters.discard(bench.engine, letter, by="bob")
    do(bench, job, "a")
    bench.check()
    bench.drive()
    states = [one["state"] for one in bench.db.run(lambda s: desk.letters(s, tenant=None, state=None, job_id=job))]
    assert states == ["open", "discarded"]
