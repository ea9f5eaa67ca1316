"""The last branches of a fan-out finish in the same instant: the join fires once (A2, P5)."""

from __future__ import annotations

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from orchestrator.domain.ids import JobId, StepPath, StepRef
from orchestrator.domain.outcome import Stored
from orchestrator.domain.plan import Kind
from orchestrator.domain.result import Succeeded
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import composites
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.engine.submit import Submission, submit_many
from tests.support.bench import Bench

#: 1,000 in all.
RUNS = {"sqlite": 600, "postgresql": 400}
WIDTHS = (2, 3)


def fan_out(width: int) -> Workflow:
    branches = {f"b{number}": {"agent": "echo"} for number in range(width)}
    steps = [{"id": "p", "parallel": branches}, {"id": "after", "agent": "echo"}]
    return Workflow.model_validate({"name": f"w{width}", "agents": {"echo": {"kind": "scripted"}}, "steps": steps})


def settle_all(bench: Bench, refs: list[StepRef]) -> None:
    """Claims and settles steps as one batch: composites as they decide, calls with a value."""
    intents = []
    for mine in claim(bench.engine, refs).values():
        row = mine.row
        value = row.kind is Kind.AGENT
        result = Succeeded(Stored("1")) if value else composites.result(mine, bench.engine.sizes, bench.engine.caps)
        intents.append(Settle(row.job_id, row.path, row.ref, row.fence, result))
    assert len(intents) == len(refs)
    assert all(settled.won for settled in settle(bench.engine, intents))


def opened(bench: Bench, runs: int, rng: random.Random) -> dict[JobId, list[Settle]]:
    """``runs`` jobs whose branches have all been claimed, with the settle of each branch."""
    flows = {width: fan_out(width) for width in WIDTHS}
    wanted = [Submission(flows[rng.choice(WIDTHS)]) for _ in range(runs)]
    jobs = [accepted.job.id for accepted in submit_many(bench.engine, wanted)]
    settle_all(bench, [StepRef(job, StepPath("p"), 1) for job in jobs])
    refs = [StepRef(job, StepPath(f"p/b{n}"), 1) for job in jobs for n in range(max(WIDTHS))]
    found: dict[JobId, list[Settle]] = {}
    for mine in claim(bench.engine, refs).values():
        row = mine.row
        result = Succeeded(Stored(f'"{row.path}"'))
        intent = Settle(row.job_id, row.path, row.ref, row.fence, result)
        found.setdefault(row.job_id, []).append(intent)
    return found


def test_the_last_branches_finish_at_once(bench: Bench, url: str, seed: int) -> None:
    """A2: 1,000 fan-outs in all, each with one thread a branch; of their settles exactly one decides the join."""
    runs = RUNS["sqlite" if url.startswith("sqlite") else "postgresql"]
    left = opened(bench, runs, random.Random(seed))
    assert len(left) == runs
    together = threading.Barrier(max(WIDTHS))
    decided_by: list[JobId] = []
    lost: list[Settle] = []

    def finish(branch: int) -> None:
        for intents in left.values():
            together.wait(60)
            if branch < len(intents):
                branch_of = intents[branch]
                (settled,) = settle(bench.engine, [branch_of])
                lost.extend([] if settled.won else [branch_of])
                decided_by.extend([branch_of.job_id] * settled.ready)

    with ThreadPoolExecutor(max(WIDTHS)) as pool:
        for done in [pool.submit(finish, branch) for branch in range(max(WIDTHS))]:
            done.result()
    assert lost == []
    assert Counter(decided_by) == Counter(left.keys()), "one settle each evaluated the join and made what follows ready"
    settle_all(bench, [StepRef(job, StepPath("after"), 1) for job in left])
    with bench.db.connect(readonly=True) as session:
        ended = session.rows("SELECT state, count(*) AS n FROM jobs GROUP BY state")
        decided = session.value("SELECT count(*) FROM events WHERE type = 'join.decided'")
        bodies_run = session.value("SELECT sum(attempt) FROM steps WHERE path = 'p'")
        after = session.value("SELECT sum(attempt) FROM steps WHERE path = 'after'")
    assert [(row["state"], row["n"]) for row in ended] == [("succeeded", runs)]
    assert (decided, bodies_run, after) == (runs, 2 * runs, runs)
