"""K4: processes killed at random under load. Nothing is lost, and nothing that was finished is done again."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.ids import JobId
from tests.faults.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.cluster_children import Child
from tests.support.ledger import Call

pytestmark = pytest.mark.faults

CALLS = 4
#: From here on the share of repeated calls means something.
MANY = 500
LONG = pytest.param(2000, id="2000", marks=[pytest.mark.soak, pytest.mark.timeout(3600)])


def four_calls(it: Cluster) -> dict[str, Any]:
    config = {"ledger": str(it.ledger.file), "delay": 0.2}
    agents = {"work": {"kind": "python", "target": "tests.support.ledger:work", "config": config}}
    return {"name": "load", "agents": agents, "steps": [{"id": f"s{n}", "agent": "work"} for n in range(CALLS)]}


class Killer:
    """Kills a random process, worker or scheduler, each 0.5 to 3 s, as long as there is work."""

    def __init__(self, it: Cluster, rng: random.Random) -> None:
        self._it = it
        self._rng = rng
        self.killed: list[Child] = []

    def until_done(self, jobs: list[JobId], seconds: float) -> None:
        it, deadline = self._it, self._it.clock.monotonic() + seconds
        while it.clock.monotonic() < deadline:
            next_kill = it.clock.monotonic() + self._rng.uniform(0.5, 3.0)
            while it.clock.monotonic() < next_kill:
                if it.states(jobs).get("succeeded", 0) == len(jobs):
                    return
                it.clock.sleep(0.1)
            self._kill_one()
        raise AssertionError(f"{it.states(jobs)}\n{it.stuck(jobs)}")

    def _kill_one(self) -> None:
        roles = ("worker", "scheduler") if self.killed else ("worker",)
        living = [child for child in self._it.children if child.alive and child.role in roles]
        victim = self._rng.choice(living)
        self._it.kill(victim)
        self.killed.append(victim)
        if victim.role == "scheduler":
            self._it.scheduler()


def in_flight(calls: list[Call], killed: list[Child], settled: dict[tuple[str, str], float]) -> int:
    """Calls that a killed process had begun and not settled."""
    died = {child.pid: child.died_at or 0.0 for child in killed}
    ends = [(died.get(call.pid) or died.get(call.parent), settled[call.job, call.step]) for call in calls]
    return sum(death is not None and end > death for death, end in ends)


@pytest.mark.parametrize("count", [pytest.param(200, id="200"), LONG])
def test_nothing_is_lost_and_nothing_finished_is_repeated(
    cluster: MakeCluster, count: int, seed: int, report: Callable[..., None]
) -> None:
    under_kills(cluster(), count, seed, report)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("count", [pytest.param(150, id="150"), LONG])
def test_the_same_on_rabbitmq(
    cluster: MakeCluster, rabbitmq_url: str, count: int, seed: int, report: Callable[..., None]
) -> None:
    under_kills(cluster(rabbitmq_url), count, seed, report)


def under_kills(it: Cluster, count: int, seed: int, report: Callable[..., None]) -> None:
    it.scheduler()
    for _ in range(2):
        it.worker(WORKER_CONCURRENCY="20")
    jobs = it.submit_all(four_calls(it), [{"n": n} for n in range(count)])
    killer = Killer(it, random.Random(seed))
    killer.until_done(jobs, 60 + count)
    steps = it.rows("SELECT job_id, path, finished_at FROM steps WHERE kind = 'agent'")
    settled = {(row["job_id"], row["path"]): row["finished_at"] for row in steps}
    calls = it.ledger.calls()
    counted = it.ledger.check(kills=len(killer.killed))
    late = it.called_again()
    repeated = counted["calls"] - count * CALLS
    open_calls = in_flight(calls, killer.killed, settled)
    figure = f"{len(killer.killed)} kills, {open_calls} calls in flight at them"
    report("K4", jobs=count, repeated=repeated, doubled=len(late), seed=seed, figure=figure)
    assert {job["output"]["n"] - index for index, job in enumerate(map(it.job, jobs))} == {CALLS}
    assert late == [], "a step that had settled was called again"
    assert repeated <= open_calls
    if count >= MANY:
        assert counted["calls"] <= 1.3 * count * CALLS
    assert Counter(child.role for child in killer.killed)["worker"] >= 1
    it.check()
