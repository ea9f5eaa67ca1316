"""R1, R2: the broker may lose all it holds, or be away. Jobs are accepted all the same, and all of them end."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

import pytest
import redis

from tests.faults.conftest import MakeCluster
from tests.faults.test_random_kills import four_calls
from tests.support.cluster import Cluster
from tests.support.servers import RedisServer, running
from tests.support.shapes import shape

pytestmark = pytest.mark.faults

#: P8: work goes on within so many seconds of the broker's return.
RECOVERY = 30.0


@pytest.fixture
def broker() -> Iterator[RedisServer]:
    """A Redis of this test's own: it is flushed, killed and restarted."""
    yield from running(RedisServer)


def last_start(it: Cluster) -> float:
    return max(call.started for call in it.ledger.calls())


@pytest.mark.parametrize("count", [pytest.param(60, id="60"), pytest.param(600, id="600", marks=pytest.mark.soak)])
def test_flushed_at_random(
    cluster: MakeCluster, broker: RedisServer, count: int, seed: int, report: Callable[..., None]
) -> None:
    """R1: FLUSHALL every 0.2 to 1 s under load, ten times or as long as there is work."""
    rng = random.Random(seed)
    it = cluster(broker.url, IN_PLACE_STEPS="0")
    it.scheduler()
    for _ in range(2):
        it.worker(WORKER_CONCURRENCY="5")
    jobs = it.submit_all(four_calls(it), [{"n": n} for n in range(count)])
    flushed = []
    with redis.Redis.from_url(broker.url) as client:
        while len(flushed) < max(10, count // 10) and it.states(jobs).get("succeeded", 0) < count:
            it.clock.sleep(rng.uniform(0.2, 1.0))
            client.flushall()
            flushed.append(it.clock.now())
    assert it.wait(jobs, RECOVERY + count) == {"succeeded": count}
    starts = [call.started for call in it.ledger.calls()]
    gaps = [min(after) - at for at in flushed if (after := [start for start in starts if start > at])]
    report("R1", jobs=count, seed=seed, recovery=gaps, figure=f"{len(flushed)} flushes")
    assert max(gaps) <= RECOVERY
    assert it.ledger.check()["calls"] == 4 * count
    it.check()


def test_every_message_is_dropped(cluster: MakeCluster, broker: RedisServer, report: Callable[..., None]) -> None:
    """R1: the queue is deleted, markers too, and nothing says so: the broker's key is still there."""
    it = cluster(broker.url)
    it.scheduler()
    worker = it.worker("worker.after_receive=raise")
    what = shape("sequence", it.ledger.file)
    with redis.Redis.from_url(broker.url) as client, worker.frozen():
        jobs = [it.submit(what.workflow, what.input) for _ in range(12)]
        it.wait_for(lambda: client.llen("default") >= 11, "the messages to be in the queue")
        client.delete("default")
        dropped = it.clock.now()
    assert it.wait(jobs, RECOVERY + 10) == {"succeeded": 12}
    seconds = last_start(it) - dropped
    report("R1", jobs=12, recovery=[seconds], figure="every message dropped")
    assert seconds <= RECOVERY
    assert it.ledger.check()["calls"] == 12 * what.calls
    it.check()


@pytest.mark.parametrize("away", [pytest.param(4.0, id="4s"), pytest.param(120.0, id="120s", marks=pytest.mark.soak)])
def test_killed_away_and_back_empty(
    cluster: MakeCluster, broker: RedisServer, away: float, report: Callable[..., None]
) -> None:
    """R2: jobs are accepted while it is down, each at once; what runs goes on; all is drained when it is back."""
    it = cluster(broker.url)
    it.scheduler()
    for _ in range(2):
        it.worker(WORKER_CONCURRENCY="5")
    load = four_calls(it)
    jobs = it.submit_all(load, [{"n": n} for n in range(30)])
    it.wait_for(lambda: len(it.ledger.calls()) > 5, "the load to run")
    broker.kill()
    until, slowest = it.clock.monotonic() + away, 0.0
    while it.clock.monotonic() < until:
        began = it.clock.monotonic()
        jobs.append(it.submit(load, {"n": 0}))
        slowest = max(slowest, it.clock.monotonic() - began)
        it.clock.sleep(away / 20)
    broker.start()
    back = it.clock.now()
    assert it.wait(jobs, 2 * RECOVERY) == {"succeeded": len(jobs)}
    first = min(call.started for call in it.ledger.calls() if call.started > back)
    report("R2", jobs=len(jobs), recovery=[first - back], figure=f"slowest submit meanwhile {slowest:.2f} s")
    assert first - back <= RECOVERY
    assert slowest < 1.0, "a submit does not wait for the broker"
    assert it.ledger.check()["calls"] == 4 * len(jobs)
    it.check()


def test_a_worker_that_starts_before_its_broker(
    cluster: MakeCluster, broker: RedisServer, report: Callable[..., None]
) -> None:
    it = cluster(broker.url)
    broker.kill()
    it.scheduler()
    it.worker(ready=False)
    what = shape("fan-out", it.ledger.file)
    jobs = [it.submit(what.workflow, what.input) for _ in range(5)]
    broker.start()
    back = it.clock.now()
    assert it.wait(jobs, RECOVERY + 10) == {"succeeded": 5}
    report("R2", jobs=5, recovery=[min(call.started for call in it.ledger.calls()) - back], figure="down at the start")
    it.check()
