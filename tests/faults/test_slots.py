"""What holds a slot and what does not: waiting does not, independent steps run at once, queues are bulkheads."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.shapes import shape

pytestmark = pytest.mark.faults


def python_agent(it: Cluster, delay: float, **more: object) -> dict[str, object]:
    config = {"ledger": str(it.ledger.file), "delay": delay}
    return {"kind": "python", "target": "tests.support.ledger:work", "config": config, **more}


def test_jobs_that_wait_for_a_retry_hold_no_slot(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """A14: fifty times more jobs wait than there are slots, and the next one runs at once."""
    it = cluster(WORKER_CONCURRENCY="4")
    it.scheduler()
    it.worker()
    waiting = shape("sequence", it.ledger.file, "transient", retry="300s")
    jobs = it.submit_all(waiting.workflow, [waiting.input] * 200)
    retrying = "SELECT count(*) AS n FROM steps WHERE state = 'retrying'"
    it.wait_for(lambda: it.rows(retrying)[0]["n"] == len(jobs), "all to wait", 60)
    it.wait_for(lambda: it.rows("SELECT busy FROM workers WHERE slots > 0")[0]["busy"] == 0, "the slots to be free")
    what = shape("sequence", it.ledger.file)
    began = it.clock.now()
    job = it.submit(what.workflow, what.input)
    it.wait([job])
    seconds = it.job(job)["finished_at"] - began
    report("A14", jobs=len(jobs) + 1, figure=f"a job beside {len(jobs)} waiting ones took {seconds:.2f} s")
    assert seconds < 2.0
    it.check()


def test_a_backlog_of_others_is_fetched_as_slots_free(cluster: MakeCluster) -> None:
    """Claims free credits, and the worker that made them fetches the next: no scheduler is there to do it."""
    it = cluster(WORKER_CONCURRENCY="4")
    it.worker()
    flow = {"name": "backlog", "agents": {"work": python_agent(it, 0.02)}, "steps": [{"id": "a", "agent": "work"}]}
    jobs = it.submit_all(flow, [{"n": n} for n in range(100)])
    assert it.wait(jobs, 20) == {"succeeded": 100}
    it.check()


def test_seven_independent_steps_of_a_second(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """M5."""
    it = cluster(WORKER_CONCURRENCY="7")
    it.scheduler()
    it.worker()
    branches = {f"b{n}": {"agent": "work", "with": {"n": n}} for n in range(7)}
    flow = {"name": "seven", "agents": {"work": python_agent(it, 1.0)}, "steps": [{"id": "p", "parallel": branches}]}
    job = it.submit(flow)
    it.wait([job])
    view = it.job(job)
    seconds = view["finished_at"] - view["created_at"]
    report("M5", jobs=1, figure=f"{seconds:.2f} s")
    assert view["output"] == {f"b{n}": {"n": n + 1} for n in range(7)}
    assert seconds < 2.0
    it.check()


def test_a_full_queue_keeps_no_other_waiting(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """M11: one worker's slots are all taken by slow calls with more behind them; another queue's worker runs on."""
    it = cluster(WORKER_CONCURRENCY="2")
    it.scheduler()
    it.worker(WORKER_QUEUES="slow")
    it.worker(WORKER_QUEUES="default")
    agents = {"slow": python_agent(it, 3.0, queue="slow"), "quick": python_agent(it, 0.01)}
    slow = {"name": "slow", "agents": agents, "steps": [{"id": "a", "agent": "slow"}]}
    quick = {"name": "quick", "agents": agents, "steps": [{"id": "a", "agent": "quick"}]}
    full = it.submit_all(slow, [{"n": n} for n in range(6)])
    it.wait_for(lambda: len(it.ledger.calls(full)) == 2, "the slow queue to be full")
    took = []
    for number in range(20):
        job = it.submit(quick, {"n": number})
        it.wait([job])
        view = it.job(job)
        took.append(view["finished_at"] - view["created_at"])
    assert len(it.ledger.calls(full)) < len(full), "the slow queue was full all the time"
    report("M11", jobs=26, figure=f"slowest job of the free queue {max(took):.2f} s")
    assert max(took) < 1.0
    assert it.wait(full) == {"succeeded": 6}
    it.check()
