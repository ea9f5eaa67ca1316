"""Limits of agents and shares of tenants hold over all workers, because SQL decides what is published."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from tests.faults.conftest import MakeCluster
from tests.faults.test_slots import python_agent
from tests.support.cluster import Cluster
from tests.support.ledger import Call

pytestmark = pytest.mark.faults


def most_at_once(calls: Sequence[Call]) -> int:
    changes = sorted([(call.started, 1) for call in calls] + [(call.ended or 0.0, -1) for call in calls])
    now = most = 0
    for _, change in changes:
        now += change
        most = max(most, now)
    return most


def most_within(calls: Sequence[Call], seconds: float) -> int:
    """The most calls that began within any such time."""
    starts = sorted(call.started for call in calls)
    return max(sum(start <= other < start + seconds for other in starts) for start in starts)


def two_workers(it: Cluster) -> None:
    it.scheduler()
    for _ in range(2):
        it.worker(WORKER_CONCURRENCY="20")


def test_an_agents_concurrency_holds_over_two_workers(cluster: MakeCluster, report: Callable[..., None]) -> None:
    it = cluster()
    two_workers(it)
    agents = {"work": python_agent(it, 0.15, limits={"concurrency": 3})}
    flow = {"name": "limited", "agents": agents, "steps": [{"id": "a", "agent": "work"}]}
    jobs = it.submit_all(flow, [{"n": n} for n in range(40)])
    assert it.wait(jobs, 60) == {"succeeded": 40}
    calls = it.ledger.calls()
    seconds = max(call.ended or 0.0 for call in calls) - min(call.started for call in calls)
    figure = f"at most {most_at_once(calls)} of 3 at once, {40 * 0.15 / 3 / seconds:.0%} of what the limit allows"
    report("Limits", jobs=40, figure=figure)
    assert most_at_once(calls) <= 3
    assert len({call.pid for call in calls}) == 2, "both workers had their share"
    it.check()


def test_an_agents_rate_holds_over_two_workers(cluster: MakeCluster, report: Callable[..., None]) -> None:
    it = cluster()
    two_workers(it)
    agents = {"work": python_agent(it, 0.01, limits={"rate": "10/s"})}
    flow = {"name": "limited", "agents": agents, "steps": [{"id": "a", "agent": "work"}]}
    jobs = it.submit_all(flow, [{"n": n} for n in range(50)])
    assert it.wait(jobs, 60) == {"succeeded": 50}
    calls = it.ledger.calls()
    seconds = max(call.started for call in calls) - min(call.started for call in calls)
    report("Limits", jobs=50, figure=f"50 calls at 10/s within {seconds:.1f} s")
    # A bucket of one second's worth: over any time t at most 10 t + 10, and messages may bunch a little.
    assert most_within(calls, 1.0) <= 21
    assert seconds >= 3.8
    it.check()


def test_two_tenants_share_by_weight_not_by_load(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """10:1 in load, 1:1 in weight: while both have work, they get 1:1 ± 10%."""
    it = cluster(WORKER_CONCURRENCY="4")
    it.scheduler()
    it.worker()
    flow = {"name": "fair", "agents": {"work": python_agent(it, 0.02)}, "steps": [{"id": "a", "agent": "work"}]}
    many = it.submit_all(flow, [{"n": n} for n in range(600)], tenant="many")
    few = it.submit_all(flow, [{"n": n} for n in range(60)], tenant="few")
    assert it.wait([*many, *few], 60) == {"succeeded": 660}
    theirs = [call.started for call in it.ledger.calls(few)]
    window = [call for call in it.ledger.calls(many) if min(theirs) <= call.started <= max(theirs)]
    ratio = len(window) / len(theirs)
    report("Fair", jobs=660, figure=f"{ratio:.2f} : 1")
    assert 0.9 <= ratio <= 1.1
    it.check()
