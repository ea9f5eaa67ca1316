"""A breaker is one for all workers: real processes, one of them killed while it is half-open."""

from __future__ import annotations

import signal
from collections.abc import Callable

import pytest

from orchestrator.engine import breakers
from tests.faults.conftest import MakeCluster
from tests.support.cluster import Cluster

pytestmark = pytest.mark.faults

SLOTS, CALLS = 4, 6


def trips(it: Cluster) -> int:
    return max((row["trips"] for row in breakers.listing(it.engine, "default")), default=0)


def test_two_workers_leave_it_alone_until_it_is_mended(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """H4: 60 jobs meet an agent that is away: it is called a few times, then once in a while; nothing is given up."""
    it = cluster(WORKER_CONCURRENCY=str(SLOTS))
    it.scheduler()
    first, _ = it.worker(), it.worker()
    mended = it.directory / "mended"
    agent = {
        "kind": "python",
        "target": "tests.support.breaker_agents:away",
        "config": {"ledger": str(it.ledger.file), "mended": str(mended)},
        "retry": {"attempts": 4, "initial": "100ms", "max": "100ms", "jitter": "none"},
        "breaker": {"calls": CALLS, "cooldown": "500ms", "longest_cooldown": "1s"},
    }
    flow = {"name": "away", "agents": {"away": agent}, "steps": [{"id": "a", "agent": "away"}]}
    jobs = it.submit_all(flow, [{"n": n} for n in range(60)])
    it.wait_for(lambda: trips(it) >= 2, "a probe to fail")
    first.signal(signal.SIGKILL)  # perhaps with the next probe in its hands
    it.kills += 1
    it.wait_for(lambda: trips(it) >= 4, "two more probes to fail")
    before = len(it.ledger.calls())
    mended.touch()
    assert it.wait(jobs, 60) == {"succeeded": 60}
    allowed = CALLS + 2 * SLOTS + 4 + it.kills  # what opened it, what was under way then, and the probes
    report("Breaker", jobs=60, figure=f"{before} calls of an agent that was away, at most {allowed}")
    assert before <= allowed
    it.check()
