"""Processes whose own clocks are an hour fast or slow: every time that decides something is the database's (W7)."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from orchestrator.domain.ids import JobId
from tests.faults.conftest import MakeCluster
from tests.faults.test_scheduler import fired_once
from tests.faults.test_takeover import ended_right, in_mid_call, taken_over
from tests.support.cluster import Cluster
from tests.support.cluster_children import Child
from tests.support.shapes import shape

pytestmark = pytest.mark.faults

HOUR = 3600.0
#: Of the jobs with one, in seconds; how late its end may be.
DEADLINE, LATE = 3, 4.0


def worker(it: Cluster, skew: float) -> Child:
    it.skew = skew
    return wrong(it, it.worker(supervised=False))


def scheduler(it: Cluster, skew: float) -> None:
    it.skew = skew
    wrong(it, it.scheduler())


def wrong(it: Cluster, child: Child) -> Child:
    """``child``, seen to live in another hour."""
    assert child.wait_event("clock")["now"] - it.clock.now() == pytest.approx(it.skew, abs=60)
    return child


def with_deadline(it: Cluster, skew: float) -> JobId:
    """A job of a call that never ends in time, accepted by a process whose clock is wrong."""
    it.skew = skew
    what = shape("sequence", it.ledger.file, "slow", slow=60.0)
    workflow = {**what.workflow, "name": "late", "deadline": f"{DEADLINE}s"}
    key = it.clock.new_id()
    child = it.start("submit", workflow=workflow, input=what.input, key=key, primed=False)
    return JobId(child.wait_event("submitted")["job"])


def took(it: Cluster, job: JobId) -> float:
    view = it.job(job)
    return float(view["finished_at"] - view["created_at"])


def test_leases_timers_and_deadlines_hold(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """W7: calls of three leases are made once, retries come when due, deadlines neither early nor an hour late."""
    it = cluster(WORKER_CONCURRENCY="12", DRAIN_SECONDS="1")
    for skew in (HOUR, -HOUR):
        scheduler(it, skew)
    workers = [worker(it, skew) for skew in (HOUR, -HOUR)]
    long = shape("sequence", it.ledger.file, "slow", slow=6.0)
    again = shape("sequence", it.ledger.file, "transient", retry="1s")
    lasting = [it.submit(long.workflow, long.input, deadline=60.0) for _ in range(8)]
    retried = [it.submit(again.workflow, again.input) for _ in range(8)]
    late = [with_deadline(it, skew) for skew in (HOUR, -HOUR)]
    assert it.wait([*lasting, *retried]) == {"succeeded": 16}
    assert it.wait(late) == {"failed": 2}
    assert {call.pid for call in it.ledger.calls(lasting)} == {child.pid for child in workers}, "both had some"
    assert it.ledger.check(lasting)["calls"] == 8 * long.calls, "nobody took a live call over"
    timers = fired_once(it, retried)
    ends = [took(it, job) for job in late]
    report("Clocks", jobs=18, figure=f"timers {max(timers):.2f} s late, deadlines {max(ends) - DEADLINE:.2f} s")
    assert min(timers) >= 0
    assert max(timers) <= LATE
    assert min(ends) >= DEADLINE
    assert max(ends) <= DEADLINE + LATE
    assert all(child.count("lease.lost") + child.count("settle.fenced") == 0 for child in workers)
    it.check()


@pytest.mark.parametrize("skew", [HOUR, -HOUR], ids=["fast", "slow"])
def test_takeovers_hold(cluster: MakeCluster, skew: float, report: Callable[..., None]) -> None:
    """W7: of a killed worker and of a silent one, by those whose clocks are two hours apart from its own."""
    it = cluster()
    scheduler(it, -skew)
    dies = worker(it, skew)
    what = shape("sequence", it.ledger.file, "slow", slow=4.0)
    job = in_mid_call(it, what)
    silent = worker(it, -skew)
    it.kill(dies)
    assert dies.died_at is not None
    killed = taken_over(it, job, dies.died_at)
    ended_right(it, job, what)

    job = in_mid_call(it, what)
    worker(it, skew)
    silent.signal(signal.SIGSTOP)
    stopped = taken_over(it, job, it.clock.now())
    silent.signal(signal.SIGCONT)
    silent.wait_event("settle.fenced", "lease.lost")
    report("Clocks", jobs=2, repeated=2, recovery=[killed, stopped])
    assert killed <= 4.0
    lease = it.settings.lease_seconds
    assert lease - it.settings.lease_renew_seconds - 0.5 <= stopped <= lease + 2.0
    ended_right(it, job, what)
