"""D4: the database is slow, a hot row is locked, or others hold every connection: nothing piles up, and it passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from orchestrator.domain.errors import Unavailable
from orchestrator.domain.ids import JobId, QueueName
from orchestrator.domain.workflow import Workflow
from orchestrator.engine.recover import migrate
from orchestrator.engine.submit import register
from orchestrator.store import feed
from orchestrator.store.database import Database
from tests.faults.conftest import MakeCluster
from tests.faults.test_random_kills import four_calls
from tests.support.api import Api, serving
from tests.support.chaos_database import Stranger
from tests.support.cluster import Cluster
from tests.support.cluster_children import Warm
from tests.support.servers import PostgresServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: Connections of each process, and the API's threads.
POOL = 4
#: Beyond a timeout, before an answer counts as late, in seconds: a slow machine is not a broken one.
MARGIN = 10.0


def refused(answer: httpx.Response) -> None:
    assert answer.status_code == 503, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.json()["code"] == "unavailable"


class Client:
    """Submits the load over HTTP, and knows what was accepted."""

    def __init__(self, it: Cluster, api: Api) -> None:
        self._it = it
        self._http = httpx.Client(
            base_url=api.url, headers={"Authorization": f"Bearer {api.keys['operate']}"}, timeout=60
        )
        register(it.engine, Workflow.model_validate(four_calls(it)))
        self.accepted: list[JobId] = []

    def submit(self, key: str) -> httpx.Response:
        body = {"workflow": "load", "input": {"n": 0}}
        answer = self._http.post("/v1/jobs", json=body, headers={"Idempotency-Key": key})
        if answer.status_code == 202:
            self.accepted.append(JobId(answer.json()["id"]))
        return answer

    def until_accepted(self, key: str) -> None:
        while (answer := self.submit(key)).status_code != 202:
            refused(answer)
            self._it.clock.sleep(0.1)

    def cancel(self, job: JobId) -> httpx.Response:
        return self._http.post(f"/v1/jobs/{job}/cancel")

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def client(request: pytest.FixtureRequest) -> Iterator[Callable[[Cluster], Client]]:
    made: list[Any] = []

    def make(it: Cluster) -> Client:
        context = serving(it.engine, db_pool_size=POOL)
        made.append(context)
        one = Client(it, context.__enter__())
        made.append(one)
        return one

    yield make
    for one in reversed(made):
        if isinstance(one, Client):
            one.close()
        else:
            one.__exit__(None, None, None)


def everything_ended(it: Cluster, client: Client, report: Callable[..., None], figure: str, back: float) -> None:
    """What was accepted is there and succeeds, no call is repeated, and no promise is broken."""
    jobs = sorted(set(client.accepted))
    known = {row["id"] for row in it.rows("SELECT id FROM jobs")}
    assert set(jobs) <= known, "a 202 without a row"
    assert it.wait([JobId(job) for job in known], 120) == {"succeeded": len(known)}
    calls = it.ledger.calls()
    first = min(call.started for call in calls if call.started > back)
    doubled = len(it.called_again())
    repeated = len(calls) - 4 * len(known)
    report("D4", jobs=len(known), repeated=repeated, doubled=doubled, recovery=[first - back], figure=figure)
    assert doubled == 0
    assert repeated == 0, "the workers lived: no call of theirs is made again"
    it.check()


def test_a_slow_database_times_out_and_nothing_piles_up(
    cluster: MakeCluster, client: Callable[[Cluster], Client], postgres_clone: str, report: Callable[..., None]
) -> None:
    """D4: every write takes a minute: each ends at the statement's timeout, and at most the pool waits."""
    timeout = 1.0
    it = cluster(DB_POOL_SIZE=str(POOL), STATEMENT_TIMEOUT=str(timeout))
    it.scheduler()
    for _ in range(2):
        it.worker(supervised=False)
    http = client(it)
    for number in range(10):
        http.until_accepted(f"before-{number}")
    most: dict[str, int] = {}
    with Stranger(postgres_clone) as stranger:
        with stranger.slow("events", 60.0), ThreadPoolExecutor(20) as pool:
            began = it.clock.monotonic()
            asking = [pool.submit(http.submit, f"during-{number}") for number in range(20)]
            while not all(one.done() for one in asking):
                for name, count in stranger.connections().items():
                    most[name] = max(count, most.get(name, 0))
                it.clock.sleep(0.02)
            took = it.clock.monotonic() - began
            for one in asking:
                refused(one.result())
        back = it.clock.now()
        for number in range(20):
            http.until_accepted(f"during-{number}")
    assert took <= timeout * 20 / POOL + MARGIN
    # A process opens its pool and no more; "orchestrator-life" is each worker's proof of life.
    assert most.pop("orchestrator-life", 2) <= 2
    assert most, "none of ours was seen"
    # Processes of one role share a name: two workers.
    assert all(count <= POOL * (2 if "worker" in name else 1) for name, count in most.items()), most
    figure = f"20 submits refused in {took:.1f} s, at most {POOL} connections a process"
    everything_ended(it, http, report, figure, back)


SECONDS = [
    pytest.param(3.0, {"LOCK_TIMEOUT": "0.5"}, id="3s"),
    pytest.param(30.0, {}, id="30s", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("seconds", "settings"), SECONDS)
def test_a_jobs_row_is_locked_for_a_while(
    cluster: MakeCluster,
    client: Callable[[Cluster], Client],
    postgres_clone: str,
    report: Callable[..., None],
    seconds: float,
    settings: dict[str, str],
) -> None:
    """D4: who needs the row is told so in time; every other job's work goes on, and the job's own afterwards."""
    it = cluster(DB_POOL_SIZE=str(POOL), **settings)
    it.scheduler()
    workers = [it.worker(supervised=False) for _ in range(2)]
    http = client(it)
    http.until_accepted("locked")
    (locked,) = http.accepted
    it.wait_for(lambda: it.ledger.calls([locked]), "its first call")
    with Stranger(postgres_clone) as stranger, stranger.locking("SELECT 1 FROM jobs WHERE id = %s", locked):
        began = it.clock.monotonic()
        for number in range(20):
            http.until_accepted(f"other-{number}")
        asked = it.clock.monotonic()
        refused(http.cancel(locked))
        told = it.clock.monotonic() - asked
        others = [job for job in http.accepted if job != locked]
        assert it.wait(others, 60) == {"succeeded": 20}
        ended = it.clock.monotonic() - began
        it.clock.sleep(max(0.0, seconds - ended))
        assert it.states([locked]) == {"running": 1}
    back = it.clock.now()
    assert it.settings.lock_timeout * 0.9 <= told <= it.settings.lock_timeout + MARGIN
    assert all(worker.alive for worker in workers)
    figure = f"job locked: a cancel refused after {told:.1f} s, 20 others done within {ended:.1f} s"
    everything_ended(it, http, report, figure, back)


@pytest.mark.parametrize(("seconds", "settings"), SECONDS)
def test_a_queues_row_is_locked_for_a_while(
    cluster: MakeCluster,
    client: Callable[[Cluster], Client],
    postgres_clone: str,
    report: Callable[..., None],
    seconds: float,
    settings: dict[str, str],
) -> None:
    """D4: markers cannot be numbered; nothing else waits for them."""
    it = cluster(DB_POOL_SIZE=str(POOL), WORKER_CONCURRENCY="5", **settings)
    it.scheduler()
    http = client(it)
    for _ in range(2):
        it.worker(supervised=False)
    it.engine.db.run(lambda session: feed.next_marker(session, QueueName("default")))
    with Stranger(postgres_clone) as stranger, stranger.locking("SELECT 1 FROM queues"):
        began = it.clock.monotonic()
        for number in range(20):
            http.until_accepted(f"other-{number}")
        assert it.wait(http.accepted, 60) == {"succeeded": 20}
        ended = it.clock.monotonic() - began
        it.clock.sleep(max(0.0, seconds - ended))
    back = it.clock.now()
    http.until_accepted("afterwards")
    everything_ended(it, http, report, f"queue locked: 20 jobs done within {ended:.1f} s", back)


@pytest.fixture
def narrow() -> Iterator[PostgresServer]:
    """A PostgreSQL of this test's own with few connections to give."""
    try:
        server = PostgresServer(settings={"max_connections": "40"})
    except Unavailable as error:
        pytest.fail(str(error), pytrace=False)
    with server:
        yield server


@pytest.mark.parametrize("seconds", [pytest.param(3.0, id="3s"), pytest.param(30.0, id="30s", marks=pytest.mark.soak)])
def test_others_take_every_connection(
    narrow: PostgresServer,
    redis_url: str,
    warm: Warm,
    tmp_path: Path,
    client: Callable[[Cluster], Client],
    report: Callable[..., None],
    seconds: float,
) -> None:
    """D4: for longer than a lease nobody of ours has a connection; calls in flight end, and are kept."""
    url = narrow.create_database()
    db = Database(url)
    migrate(db)
    db.close()
    with Stranger(url) as stranger, Cluster(warm, url, redis_url, tmp_path, DB_POOL_SIZE=str(POOL)) as it:
        it.scheduler()
        workers = [it.worker(supervised=False) for _ in range(2)]
        http = client(it)
        for number in range(20):
            http.until_accepted(f"before-{number}")
        it.wait_for(it.ledger.calls, "work to begin")
        with stranger.taking_every_connection() as taken:
            until = it.clock.monotonic() + seconds
            count = 0
            while it.clock.monotonic() < until:
                refused(http.submit(f"during-{count}"))
                count += 1
        back = it.clock.now()
        for number in range(min(count, 20)):
            http.until_accepted(f"during-{number}")
        assert all(worker.alive for worker in workers)
        everything_ended(it, http, report, f"{taken} connections taken, {count} submits refused", back)
