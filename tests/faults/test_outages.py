"""D1, K5, R3: the database, every worker, or the network goes away under load, and comes back."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from orchestrator.domain.errors import Unavailable
from orchestrator.domain.ids import JobId
from orchestrator.engine.recover import migrate
from orchestrator.store.database import Database
from tests.faults.conftest import MakeCluster
from tests.faults.test_random_kills import four_calls
from tests.support.cluster import Cluster
from tests.support.cluster_children import Warm
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import PostgresServer, RedisServer, running
from tests.support.shapes import shape

pytestmark = pytest.mark.faults

#: R3: consuming again within so many seconds.
HEARS_AGAIN = 15.0


@pytest.fixture
def database() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test's own, durable as shipped: it is killed."""
    yield from running(PostgresServer)


def submit_through(it: Cluster, count: int) -> list[JobId]:
    """Submits as a client does that is told 503 while the database is away: the same again, until it is accepted."""
    load, jobs = four_calls(it), []
    for _ in range(count):
        key = it.clock.new_id()
        while True:
            try:
                jobs.append(it.submit(load, {"n": 0}, key=key))
                break
            except Unavailable:
                it.clock.sleep(0.2)
    return jobs


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kills", [pytest.param(2, id="2"), pytest.param(10, id="10", marks=pytest.mark.soak)])
def test_the_database_is_killed_under_load(
    database: PostgresServer,
    redis_url: str,
    warm: Warm,
    tmp_path: Path,
    kills: int,
    seed: int,
    report: Callable[..., None],
) -> None:
    """D1: every accepted job is there afterwards and ends; nothing that had settled is called again."""
    rng = random.Random(seed)
    url = database.create_database()
    db = Database(url)
    migrate(db)
    db.close()
    with Cluster(warm, url, redis_url, tmp_path) as it:
        it.scheduler()
        workers = [it.worker(supervised=False) for _ in range(2)]
        jobs: list[JobId] = []
        recovery = []
        for _ in range(kills):
            jobs += submit_through(it, 20)
            database.kill()
            it.clock.sleep(rng.uniform(0.5, 3.0))  # longer than a lease, or not
            database.start()
            back = it.clock.now()
            jobs += submit_through(it, 5)
            it.wait_for(lambda back=back: it.ledger.calls()[-1].started > back, "work to go on")
            recovery.append(min(call.started for call in it.ledger.calls() if call.started > back) - back)
        assert it.wait(jobs, 120) == {"succeeded": len(jobs)}
        known = it.rows("SELECT count(*) AS n FROM jobs")[0]["n"]
        repeated = len(it.ledger.calls()) - 4 * known
        doubled = len(it.called_again())
        report("D1", jobs=len(jobs), repeated=repeated, doubled=doubled, seed=seed, recovery=recovery)
        assert doubled == 0
        assert repeated == 0, "the workers lived: no call of theirs is made again"
        assert all(worker.alive for worker in workers)
        assert max(recovery) <= 30.0
        it.check()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [pytest.param(4.0, id="4s"), pytest.param(60.0, id="60s", marks=pytest.mark.soak)])
def test_all_workers_are_dead_for_a_while(cluster: MakeCluster, seconds: float, report: Callable[..., None]) -> None:
    """K5: the backlog drains, oldest first."""
    it = cluster(WORKER_CONCURRENCY="5", IN_PLACE_STEPS="0")
    it.scheduler()
    workers = [it.worker(supervised=False) for _ in range(2)]
    what = shape("sequence", it.ledger.file)
    for worker in workers:
        it.kill(worker)
    jobs = []
    for _ in range(40):
        jobs.append(it.submit(what.workflow, what.input))
        it.clock.sleep(seconds / 40)
    back = it.clock.now()
    it.worker()
    assert it.wait(jobs, 60) == {"succeeded": 40}
    first = {call.job: call.started for call in reversed(it.ledger.calls())}
    order = sorted(jobs, key=lambda job: first[job])
    moved = max(abs(order.index(job) - jobs.index(job)) for job in jobs)
    report("K5", jobs=40, recovery=[min(first.values()) - back], figure=f"no job more than {moved} places out of order")
    assert moved <= 10, "as many as are published ahead of the rest"
    it.check()


@pytest.fixture
def proxied(redis_server: RedisServer) -> Iterator[FaultProxy]:
    with FaultProxy(redis_server.start().port) as proxy:
        yield proxy


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    "silence", [pytest.param(12.0, id="12s"), pytest.param(60.0, id="60s", marks=pytest.mark.soak)]
)
def test_the_network_to_the_broker_is_cut_and_falls_silent(
    cluster: MakeCluster, redis_url: str, proxied: FaultProxy, silence: float, report: Callable[..., None]
) -> None:
    """R3: connections reset, then a black hole between broker and worker."""
    it = cluster()
    it.scheduler()
    worker = it.worker(BROKER_URL=proxied.through(redis_url))
    what = shape("fan-out", it.ledger.file)
    proxied.cut()
    jobs = [it.submit(what.workflow, what.input)]
    assert it.wait(jobs) == {"succeeded": 1}
    proxied.black_hole()
    jobs += [it.submit(what.workflow, what.input) for _ in range(5)]
    it.clock.sleep(silence)
    proxied.resume()
    back = it.clock.now()
    assert it.wait(jobs, 60) == {"succeeded": 6}
    first = min(call.started for call in it.ledger.calls() if call.started > back)
    report("R3", jobs=6, recovery=[first - back], figure=f"silent for {silence:g} s")
    assert first - back <= HEARS_AGAIN
    assert worker.alive
    it.check()
