"""How far a job is, as pure functions of its plan and its steps' times (B5)."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.ids import StepPath
from orchestrator.domain.plan import Kind, Plan
from orchestrator.domain.planner import compile_plan
from orchestrator.domain.progress import Timed, behind, blocked_by, critical_path
from orchestrator.domain.states import StepState
from orchestrator.domain.workflow import Workflow


def plan_of(*steps: Any) -> Plan:
    return compile_plan(Workflow(name="w", agents={"a": {"kind": "scripted"}}, steps=list(steps)), "v")


def call(name: str, *needs: str, graph: bool = False) -> dict[str, Any]:
    return {"id": name, "agent": "a", **({"needs": list(needs)} if graph else {})}


def row(plan: Plan, path: str, ref: str, began: float | None = None, ended: float | None = None, **more: Any) -> Timed:
    state = StepState.PENDING if began is None else StepState.RUNNING if ended is None else StepState.SUCCEEDED
    parent = None if not path else StepPath(path.rpartition("/")[0])
    held = more.get("held", False)
    return Timed(StepPath(path), ref, plan.nodes[ref].kind, parent, more.get("state", state), held, began, ended)


def way(plan: Plan, rows: list[Timed], now: float = 100) -> list[tuple[str, float]]:
    return [(link.path, link.seconds) for link in critical_path(plan, rows, now)]


def test_of_a_list_every_step_is_on_it() -> None:
    plan = plan_of(call("x"), call("y"), call("z"))
    rows = [row(plan, "", "", 0), row(plan, "x", "x", 0, 5), row(plan, "y", "y", 90), row(plan, "z", "z")]
    assert way(plan, rows) == [("x", 5), ("y", 10)]


def test_of_a_graph_the_longest_way_is() -> None:
    """Not the way of the longest step: 4 + 4 beats 7."""
    plan = plan_of(
        call("a", graph=True),
        call("b", "a", graph=True),
        call("long", graph=True),
        call("end", "b", "long", graph=True),
    )
    times = {"a": (0, 4), "b": (4, 8), "long": (0, 7), "end": (8, 9)}
    rows = [row(plan, "", "", 0), *(row(plan, name, name, *of) for name, of in times.items())]
    assert way(plan, rows) == [("a", 4), ("b", 4), ("end", 1)]


def test_of_branches_the_longest_is_and_of_its_list_every_step() -> None:
    plan = plan_of(
        {"id": "p", "parallel": {"one": call("x"), "two": [call("y"), call("z")]}},
        {"id": "f", "for_each": "[1, 2]", "do": {"agent": "a"}},
    )
    rows = [
        row(plan, "", "", 0),
        row(plan, "p", "p", 0),
        row(plan, "p/one", "p.one", 0, 3),
        row(plan, "p/two", "p.two", 0),
        row(plan, "p/two/y", "p.two.y", 0, 2),
        row(plan, "p/two/z", "p.two.z", 2, 4),
        row(plan, "f", "f", 4),
        row(plan, "f/0", "f.do", 4, 5),
        row(plan, "f/1", "f.do", 4, 6),
    ]
    assert way(plan, rows) == [("p/two/y", 2), ("p/two/z", 2), ("f/1", 2)]


def test_rounds_follow_each_other() -> None:
    plan = plan_of(
        {"id": "s", "supervise": {"supervisor": "a", "workers": ["a"], "rounds": 3, "until": "review.score > 1"}}
    )
    rows = [row(plan, "", "", 0), row(plan, "s", "s", 0)]
    for number in (1, 2):
        at = f"s/round-{number}"
        rows += [row(plan, at, "s.round"), row(plan, f"{at}/plan", "s.round.plan", 0, 1)]
        rows += [row(plan, f"{at}/work", "s.round.work", 1), row(plan, f"{at}/review", "s.round.review", 2, 3)]
        rows += [row(plan, f"{at}/work/0", "s.round.work.do", 1, 1 + number)]
    assert [path for path, _ in way(plan, rows)] == [
        f"s/round-{number}/{part}" for number in (1, 2) for part in ("plan", "work/0", "review")
    ]
    assert sum(seconds for _, seconds in way(plan, rows)) == 7


def test_a_list_of_thousands_is_no_deep_recursion() -> None:
    plan = plan_of(*(call(f"s{n}") for n in range(3000)))
    rows = [row(plan, "", "", 0), *(row(plan, f"s{n}", f"s{n}", n, n + 1) for n in range(3000))]
    assert len(way(plan, rows)) == 3000
    assert behind(plan, StepPath("s0"), "s0") == 2999


def test_nothing_has_begun() -> None:
    plan = plan_of(call("x"))
    assert way(plan, []) == []
    assert way(plan, [row(plan, "", ""), row(plan, "x", "x")]) == []


def test_a_step_waits_for_those_of_its_list_that_have_not_ended() -> None:
    plan = plan_of(call("x", graph=True), call("y", graph=True), call("z", "x", "y", graph=True))
    rows = [row(plan, "", "", 0), row(plan, "x", "x", 0, 1), row(plan, "y", "y", 0), row(plan, "z", "z")]
    assert blocked_by(plan, rows) == {"z": ["y"]}


def test_what_a_limit_holds_waits_for_no_step() -> None:
    plan = plan_of({"id": "f", "for_each": "[1, 2]", "do": {"agent": "a"}, "max_concurrency": 1})
    assert plan.nodes["f"].kind is Kind.FOR_EACH
    assert blocked_by(plan, [row(plan, "f", "f", 0), row(plan, "f/1", "f.do", held=True)]) == {}


@pytest.mark.parametrize(("path", "ref", "count"), [("x", "x", 4), ("p/one/a1", "p.one.a1", 2), ("p/two", "p.two", 1)])
def test_who_holds_the_most(path: str, ref: str, count: int) -> None:
    plan = plan_of(
        call("x"), {"id": "p", "parallel": {"one": [call("a1"), call("a2")], "two": {"agent": "a"}}}, call("end")
    )
    assert behind(plan, StepPath(path), ref) == count
