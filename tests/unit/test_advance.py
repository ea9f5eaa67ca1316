"""The join's promise (P5) as a property: any interleaving, batching, doubling and failure of settles decides alike."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.domain.advance import Advance
from orchestrator.domain.events import EventType
from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.joins import Decision, decide
from orchestrator.domain.outcome import Failure, FailureClass, Stored
from orchestrator.domain.plan import JobRow, Kind, Plan, StepRow
from orchestrator.domain.planner import compile_plan, first_rows, open_items, open_static
from orchestrator.domain.result import GaveUp, Opened, Result, Skipped, Succeeded
from orchestrator.domain.states import JOB_TERMINAL, STEP_MOVES, JobState, StepState
from orchestrator.domain.workflow import Workflow

BAD = Failure(FailureClass.PERMANENT, "bad")


class Table:
    """The steps of one job, moved only through ``Advance``, as the store would."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.job = JobRow(JobId("j"), "t", "w", "v", JobState.RUNNING)
        self.rows: dict[StepPath, StepRow] = {row.path: row for row in first_rows(plan, self.job.id, "t", 0)}
        self.events: list[EventType] = []
        self.joins: list[StepPath] = []

    def ready(self) -> list[StepPath]:
        return sorted(path for path, row in self.rows.items() if row.state is StepState.READY)

    def settle(self, batch: list[tuple[StepPath, int, Result]]) -> int:
        """Applies a batch as one transaction; a fence that moved on is refused. Answers how many won."""
        before = {path: row.state for path, row in self.rows.items()}
        advance = Advance(self.plan, self.job, [replace(row) for row in self.rows.values()], now=1.0)
        won = 0
        for path, fence, result in batch:
            row = advance.rows[path]
            if row.state is not StepState.RUNNING or row.fence != fence:
                continue
            won += 1
            advance.settle(row, result)
            while advance.stops:
                top, live = advance.stops.pop(0)
                advance.stop(top, live, {})
        for row in [*advance.changed.values(), *advance.created]:
            old = before.get(row.path)
            assert old is None or old is row.state or (old, row.state) in STEP_MOVES or _through(old, row.state)
            self.rows[row.path] = row
        self.events += [event.type for event in advance.events]
        self.joins += [event.path for event in advance.events if event.type is EventType.JOIN_DECIDED and event.path]
        return won

    def claim(self, path: StepPath) -> StepRow:
        row = self.rows[path]
        assert row.state is StepState.READY
        row.state, row.fence = StepState.RUNNING, row.fence + 1
        return row


def _through(old: StepState, new: StepState) -> bool:
    """One transaction may make several legal moves in a row."""
    seen, edge = {old}, {old}
    while edge:
        edge = {b for a, b in STEP_MOVES if a in edge} - seen
        seen |= edge
    return new in seen


def outcome(table: Table, row: StepRow, fails: set[StepPath]) -> Result:
    """What a worker would answer: a function of the plan and the path alone."""
    node = table.plan.nodes[row.ref]
    row = replace(row)
    if not node.composite:
        return GaveUp(BAD) if row.path in fails else Succeeded(Stored(f'"{row.path}"'))
    if row.width is not None:
        return Succeeded(Stored('"joined"'))
    if node.kind is Kind.FOR_EACH:
        return Opened(row, tuple(open_items(table.plan, row, [(Stored(str(i)), None) for i in range(4)])))
    return Opened(row, tuple(open_static(table.plan, row)))


def run(plan: Plan, fails: set[StepPath], rng: random.Random | None) -> Table:
    """To the end; in order when ``rng`` is None, else in any order, batching and duplication it draws."""
    table = Table(plan)
    flying: list[tuple[StepPath, int, Result]] = []
    for _ in range(10_000):
        if table.job.state in JOB_TERMINAL:
            return table
        ready = table.ready()
        if ready and (not flying or rng is None or rng.random() < 0.5):
            path = rng.choice(ready) if rng else ready[0]
            row = table.claim(path)
            flying.append((path, row.fence, outcome(table, row, fails)))
            if rng is not None:
                continue
        batch = rng.choices(flying, k=rng.randint(1, 6)) if rng else flying
        fresh = {(path, fence) for path, fence, _ in batch}
        assert table.settle(batch) == len(fresh)
        flying = [item for item in flying if (item[0], item[1]) not in fresh]
        assert table.settle(batch) == 0  # a slower copy of the whole batch
    raise AssertionError("the job does not end")


AGENT: dict[str, Any] = {"agent": "x"}


def steps_() -> st.SearchStrategy[Any]:
    leaf = st.just(AGENT)
    return st.recursive(
        leaf,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3).map(
                lambda body: [{**s, "id": f"s{i}"} for i, s in enumerate(_flat(body))]
            ),
            st.fixed_dictionaries(
                {"for_each": st.just("input"), "do": inner},
                optional={
                    "max_concurrency": st.integers(1, 3),
                    "join": st.sampled_from([{"tolerate": 1}, {"tolerate": "50%"}]),
                },
            ),
            st.fixed_dictionaries({"parallel": st.fixed_dictionaries({"a": inner, "b": inner})}),
        ),
        max_leaves=5,
    )


def _flat(body: list[Any]) -> list[dict[str, Any]]:
    """A list cannot stand directly in a list: it is wrapped into a parallel of one."""
    return [item if isinstance(item, dict) else {"parallel": {"only": item}} for item in body]


def plan_of(body: Any) -> Plan:
    steps = [{**s, "id": f"t{i}"} for i, s in enumerate(_flat(body if isinstance(body, list) else [body]))]
    flow = {"name": "w", "agents": {"x": {"kind": "scripted"}}, "steps": [*steps, {**AGENT, "id": "end"}]}
    return compile_plan(Workflow.model_validate(flow), "v")


@settings(max_examples=150)
@given(body=steps_(), seed=st.integers(0, 2**32))
def test_any_interleaving_decides_as_the_sequential_run(body: Any, seed: int) -> None:
    rng = random.Random(seed)
    plan = plan_of(body)
    clean = run(plan, set(), None)
    leaves = sorted(path for path, row in clean.rows.items() if row.kind is Kind.AGENT)
    fails = set(rng.sample(leaves, min(len(leaves), rng.randint(0, 3))))
    expected = run(plan, fails, None)
    table = run(plan, fails, rng)
    assert table.job.state is expected.job.state
    assert table.job.output == expected.job.output
    assert len(table.joins) == len(set(table.joins))
    assert all(row.terminal for row in table.rows.values())
    if table.job.state is JobState.SUCCEEDED:
        # Inside a tolerated failure it is a matter of timing which siblings had begun; outside of it nothing is.
        shown = [path for path in expected.rows if not fails or "/" not in path]
        assert {path: table.rows[path].state for path in shown} == {path: expected.rows[path].state for path in shown}


@given(st.lists(st.booleans(), max_size=30), st.sampled_from([0, 1, 5, "10%", "50%"]))
def test_a_join_is_decided_once_and_never_back(members: list[bool], tolerate: int | str) -> None:
    width, ok, bad = len(members), 0, 0
    decisions = [decide(width, 0, 0, tolerate)]
    for member in members:
        ok, bad = ok + member, bad + (not member)
        decisions.append(decide(width, ok, bad, tolerate))
    final = next((i for i, d in enumerate(decisions) if d is not Decision.PENDING), None)
    assert final is not None
    assert all(
        d is decisions[final] for d in decisions[final:] if d is Decision.FAIL or decisions[final] is Decision.FAIL
    )
    assert Decision.PENDING not in decisions[final:]


def test_a_skipped_member_counts_as_done() -> None:
    plan = plan_of({"parallel": {"a": AGENT, "b": AGENT}})
    table = Table(plan)
    opener = table.claim(StepPath("t0"))
    table.settle([(StepPath("t0"), opener.fence, outcome(table, opener, set()))])
    a, b = table.claim(StepPath("t0/a")), table.claim(StepPath("t0/b"))
    table.settle([(a.path, a.fence, Skipped()), (b.path, b.fence, Succeeded(Stored("1")))])
    assert table.rows[StepPath("t0")].state is StepState.READY
