"""What each shape of work costs in statements, commits, messages and rows: exactly what ``budgets.toml`` says.

Dearer is a regression; cheaper is a budget that guards nothing any more. Neither depends on how fast anything is.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.workflow import Workflow
from orchestrator.engine.reconcile import Reconciler
from orchestrator.engine.submit import Submission, register, submit_many
from tests.support.lockstep import Lockstep
from tests.support.quick_agents import ROUNDS
from tests.support.tally import FIGURES, Cost
from workers.heartbeat import Heartbeat

FILE = Path(__file__).with_name("budgets.toml")
BUDGETS: dict[str, dict[str, Any]] = tomllib.loads(FILE.read_text())
#: Messages in a round, where many run side by side.
MANY = 16
Make = Callable[..., Lockstep]


def workflow(*steps: dict[str, Any], **agents: Any) -> Workflow:
    quick = {name: {"kind": "python", "target": f"tests.support.quick_agents:{name}"} for name in ("echo", "lead")}
    return Workflow.model_validate({"name": "t", "agents": quick | agents, "steps": list(steps)})


ONE = workflow({"id": "a", "agent": "echo"})
TEN = workflow(*({"id": f"s{n}", "agent": "echo"} for n in range(10)))
FAN = workflow(
    {"id": "each", "for_each": "${{ input }}", "do": {"agent": "echo"}},
    {"id": "join", "agent": "echo", "with": "${{ steps.each }}"},
)
LOOP = workflow(
    {
        "id": "loop",
        "supervise": {
            "supervisor": "lead",
            "workers": ["echo"],
            "rounds": ROUNDS,
            "until": f"review.score >= {ROUNDS}",
        },
        "with": "${{ input }}",
    }
)


def runs(what: Workflow, input: Any = None, *, jobs: int = 1, at_once: int = 1) -> Callable[[Lockstep], Cost]:
    """What workers do for ``jobs`` that have been submitted."""

    def measure(it: Lockstep) -> Cost:
        submit_many(it.bench.engine, [Submission(what, input)] * jobs)
        with it.tally.counting() as cost:
            it.run(at_once)
        states = it.bench.db.run(lambda session: session.rows("SELECT DISTINCT state FROM jobs"))
        assert [row["state"] for row in states] == ["succeeded"]
        return cost

    return measure


def submits(jobs: int, *, keyed: bool = False) -> Callable[[Lockstep], Cost]:
    """Of a registered workflow, in a process that has submitted some before."""

    def measure(it: Lockstep) -> Cost:
        register(it.bench.engine, TEN)
        submit_many(it.bench.engine, [Submission(TEN.name, 0)])
        wanted = [Submission(TEN.name, 1, key=it.bench.clock.new_id() if keyed else None) for _ in range(jobs)]
        with it.tally.counting() as cost:
            submit_many(it.bench.engine, wanted)
        return cost

    return measure


def idle_worker(it: Lockstep) -> Cost:
    """A second's heartbeat, and a renewal, which comes each fifth."""
    heart = Heartbeat(it.bench.engine, it.bench.who, it.bench.runner)
    try:
        with it.tally.counting() as cost:
            heart.beat()
            heart.renew()
    finally:
        heart._lock.drop()
    return cost


def idle_scheduler(it: Lockstep) -> Cost:
    reconciler = Reconciler(it.bench.engine)
    with it.tally.counting() as cost:
        reconciler.tick()
    return cost


SHAPES: dict[str, Callable[[Lockstep], Cost]] = {
    "submit one": submits(1),
    "submit one with a key": submits(1, keyed=True),
    "submit a hundred": submits(100),
    "one step": runs(ONE, 1),
    "ten steps in place": runs(TEN, 1),
    "ten steps by message": runs(TEN, 1),
    "ten steps in place, 16 jobs at once": runs(TEN, 1, jobs=MANY, at_once=MANY),
    "fan-out of 20": runs(FAN, list(range(20))),
    "fan-out of 20, 16 at once": runs(FAN, list(range(20)), at_once=MANY),
    "fan-out of 20, kept": runs(FAN, list(range(20))),
    "supervisor, 3 rounds of 4": runs(LOOP, 1),
    "supervisor, 3 rounds of 4, kept": runs(LOOP, 1),
    "idle worker": idle_worker,
    "idle scheduler": idle_scheduler,
}


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(database: str, request: pytest.FixtureRequest) -> Iterator[Make]:
    url = request.getfixturevalue("sqlite_url" if database == "sqlite" else "postgres_url")
    made: list[Lockstep] = []

    def build(**more: Any) -> Lockstep:
        made.append(Lockstep(url, **more))
        return made[-1]

    yield build
    for it in made:
        it.close()


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_costs_its_budget(name: str, database: str, make: Make) -> None:
    """M12: what is made cheaper is counted before and after, not guessed."""
    it = make(in_place=1 if "by message" in name else 50, slots=64 if "kept" in name else 0)
    SHAPES[name](it)  # a first time, for what is read once in a process's life
    cost = SHAPES[name](it)
    it.bench.check()
    assert cost.figures == BUDGETS.get(name, {}).get(database), verdict(name, database, cost)


def verdict(name: str, database: str, cost: Cost) -> str:
    """What to do, and what was counted."""
    budget, found = BUDGETS.get(name, {}).get(database, {}), cost.figures
    lines = [
        f"{figure}: {found[figure]}, budget {budget.get(figure)}: {'dearer' if more else 'lower the budget'}"
        for figure in FIGURES
        if (more := found[figure] > budget.get(figure, -1)) or found[figure] != budget.get(figure)
    ]
    written = ", ".join(f"{figure} = {count}" for figure, count in found.items())
    return "\n".join([f"{name!r} on {database}", *lines, f"{database} = {{ {written} }}", str(cost)])


def test_each_budget_has_its_reason_and_its_shape() -> None:
    assert list(BUDGETS) == list(SHAPES)
    assert all(len(budget["why"]) > 40 for budget in BUDGETS.values())
