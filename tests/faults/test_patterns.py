"""A sequence resumes where it was cut, whichever step that is; branches run at the same time on two workers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest

from tests.faults.cases import SEEN_DYING
from tests.faults.conftest import MakeCluster
from tests.support.shapes import shape

pytestmark = pytest.mark.faults

#: Branches of the fan-out, and slots of each of the two workers.
BRANCHES, SLOTS = 6, 3


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("point", "again"), [pytest.param("call.during", 1, id="cut"), pytest.param("call.after_answer", 2, id="answered")]
)
def test_a_sequence_killed_at_step_k_resumes_at_k(
    cluster: MakeCluster, point: str, again: int, report: Callable[..., None]
) -> None:
    """A1: for every k: what had finished is not called again, k is, and the output is that of a clean run."""
    it = cluster()
    it.scheduler()
    worker = it.worker()
    what = shape("sequence", it.ledger.file)
    recovery = []
    for k in range(what.calls):
        worker.arm(f"{point}=kill@{k + 1}")
        job = it.submit(what.workflow, what.input)
        worker = it.successor(worker)
        died = worker.follows.died_at if worker.follows is not None else None
        assert died is not None
        assert it.wait([job]) == {"succeeded": 1}
        assert it.job(job)["output"] == what.output
        calls = it.ledger.calls([job])
        assert Counter(call.step for call in calls) == {f"s{n}": again if n == k else 1 for n in range(what.calls)}
        after = sorted(call.step for call in calls if call.started > died)
        assert after == [f"s{n}" for n in range(k, what.calls)], "it resumed at k"
        recovery.append(min(call.started for call in calls if call.started > died) - died)
    report(
        "P13", jobs=what.calls, repeated=what.calls * (again - 1), recovery=recovery, figure=f"at every step: {point}"
    )
    assert max(recovery) <= SEEN_DYING
    assert it.called_again() == []
    it.check()


def test_branches_overlap_on_two_workers(cluster: MakeCluster) -> None:
    """A2: all branches are under way in one instant, and neither worker could hold them all."""
    it = cluster(WORKER_CONCURRENCY=str(SLOTS))
    it.scheduler()
    workers = [it.worker(), it.worker()]
    agents = shape("sequence", it.ledger.file, delay=2.0).workflow["agents"]
    branches = {f"b{number}": {"agent": "work", "with": {"n": number}} for number in range(BRANCHES)}
    steps = [{"id": "all", "parallel": branches}]
    job = it.submit({"name": "overlap", "agents": {"work": agents["work"]}, "steps": steps})
    assert it.wait([job]) == {"succeeded": 1}
    calls = it.ledger.calls([job])
    assert len(calls) == BRANCHES
    assert Counter(call.pid for call in calls) == {worker.pid: SLOTS for worker in workers}
    together = min(call.ended or 0 for call in calls) - max(call.started for call in calls)
    print(f"{BRANCHES} branches on 2 workers: all at once for {together:.2f} s of 2 s")
    assert together > 0
    assert it.job(job)["output"] == {f"b{number}": {"n": number + 1} for number in range(BRANCHES)}
    it.check()
