"""The primary database is killed under load, and its synchronous standby takes its place (W7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import make_url

from orchestrator.domain.ids import JobId
from orchestrator.engine.recover import migrate
from orchestrator.store.database import Database
from tests.faults.test_outages import submit_through
from tests.support.cluster import Cluster
from tests.support.cluster_children import Warm
from tests.support.fault_proxy import FaultProxy
from tests.support.servers import PostgresServer, running
from tests.support.standby import Standby

pytestmark = pytest.mark.faults

JOBS = 25
#: Work goes on within so many seconds of the promotion.
RECOVERY = 15.0


@pytest.fixture
def primary() -> Iterator[PostgresServer]:
    yield from running(PostgresServer)


@pytest.fixture
def standby(primary: PostgresServer) -> Iterator[Standby]:
    with Standby(primary) as it:
        yield it


def new_database(primary: PostgresServer) -> str:
    url = primary.create_database()
    db = Database(url)
    migrate(db)
    db.close()
    return url


@contextmanager
def both_named(url: str, primary: PostgresServer, standby: Standby) -> Iterator[tuple[str, Callable[[], None]]]:
    """A URL that names both servers: the driver goes to the one that takes writes."""
    ports = f"{primary.port},{standby.port}"
    query = {"host": "127.0.0.1,127.0.0.1", "port": ports, "target_session_attrs": "read-write"}
    named = make_url(url).set(host=None, port=None, query=query)
    yield named.render_as_string(hide_password=False), lambda: None


@contextmanager
def one_address(url: str, primary: PostgresServer, standby: Standby) -> Iterator[tuple[str, Callable[[], None]]]:
    """One address, moved to the standby before that is promoted: for a while it takes no writes."""
    with FaultProxy(primary.port) as proxy:
        through = proxy.through(url)

        def move() -> None:
            proxy.target = standby.port
            proxy.cut()

        yield through, move


@pytest.mark.timeout(120)
@pytest.mark.parametrize("way", [both_named, one_address], ids=lambda way: way.__name__)
def test_the_standby_takes_over(
    primary: PostgresServer,
    standby: Standby,
    redis_url: str,
    warm: Warm,
    tmp_path: Path,
    way: Callable[..., Iterator[tuple[str, Callable[[], None]]]],
    report: Callable[..., None],
) -> None:
    """W7: every job that was acknowledged is there afterwards and ends; the workers live on, and call nothing again."""
    url = new_database(primary)
    standby.follow()
    with way(url, primary, standby) as (reached, move), Cluster(warm, reached, redis_url, tmp_path) as it:
        it.scheduler()
        workers = [it.worker(supervised=False) for _ in range(2)]
        jobs: list[JobId] = submit_through(it, JOBS)
        it.wait_for(lambda: len(it.ledger.calls()) > JOBS, "the load to run")
        assert it.states(jobs).get("succeeded", 0) < JOBS, "it is killed under load"
        primary.kill()
        move()
        it.clock.sleep(1.0)  # nobody promotes at once
        standby.promote()
        back = it.clock.now()
        jobs += submit_through(it, 5)
        assert it.wait(jobs, 60) == {"succeeded": JOBS + 5}
        first = min(call.started for call in it.ledger.calls() if call.started > back) - back
        repeated = len(it.ledger.calls()) - 4 * it.rows("SELECT count(*) AS n FROM jobs")[0]["n"]
        doubled = len(it.called_again())
        report("Fail-over", jobs=len(jobs), repeated=repeated, doubled=doubled, recovery=[first], figure=way.__name__)
        assert (doubled, repeated) == (0, 0), "the workers lived: no call of theirs is made again"
        assert all(worker.alive for worker in workers)
        assert first <= RECOVERY
        it.check()
