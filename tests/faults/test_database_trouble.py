"""D4: the database is slow, a hot row is locked, or others hold every connection: nothing piles up, and it passes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.domain.errors import Unavailable
from orchestrator.domain.ids import QueueName
from orchestrator.engine.recover import migrate
from orchestrator.store import feed
from orchestrator.store.database import Database
from tests.faults.conftest import MakeCluster
from tests.support.chaos_database import Stranger
from tests.support.cluster import Cluster
from tests.support.cluster_children import Warm
from tests.support.load_client import LoadClient, everything_ended, load_client, refused
from tests.support.servers import PostgresServer

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

#: Connections of each process, and the API's threads.
POOL = 4
#: Beyond a timeout, before an answer counts as late, in seconds: a slow machine is not a broken one.
MARGIN = 10.0


@pytest.fixture
def client() -> Iterator[Callable[[Cluster], LoadClient]]:
    with ExitStack() as stack:
        yield lambda it: stack.enter_context(load_client(it, POOL))


def nothing_is_lost(it: Cluster, client: LoadClient, report: Callable[..., None], figure: str, back: float) -> None:
    repeated = everything_ended(it, client, report, "D4", figure, back)
    assert repeated == 0, "the workers lived: no call of theirs is made again"


def test_a_slow_database_times_out_and_nothing_piles_up(
    cluster: MakeCluster, client: Callable[[Cluster], LoadClient], postgres_clone: str, report: Callable[..., None]
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
    nothing_is_lost(it, http, report, figure, back)


SECONDS = [
    pytest.param(3.0, {"LOCK_TIMEOUT": "0.5"}, id="3s"),
    pytest.param(30.0, {}, id="30s", marks=pytest.mark.soak),
]


@pytest.mark.parametrize(("seconds", "settings"), SECONDS)
def test_a_jobs_row_is_locked_for_a_while(
    cluster: MakeCluster,
    client: Callable[[Cluster], LoadClient],
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
    nothing_is_lost(it, http, report, figure, back)


@pytest.mark.parametrize(("seconds", "settings"), SECONDS)
def test_a_queues_row_is_locked_for_a_while(
    cluster: MakeCluster,
    client: Callable[[Cluster], LoadClient],
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
    nothing_is_lost(it, http, report, f"queue locked: 20 jobs done within {ended:.1f} s", back)


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
    client: Callable[[Cluster], LoadClient],
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
        nothing_is_lost(it, http, report, f"{taken} connections taken, {count} submits refused", back)
