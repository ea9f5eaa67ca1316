"""K1-K3 over the undoing: a worker dies, fails or is lied to while what was done is being undone; C1 under kills."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.clock import Clock
from tests.faults.cases import KINDS, SEEN_DYING, UNDOING, Kind, impossible
from tests.faults.conftest import MakeCluster
from tests.support.bookings import Book
from tests.support.cluster import Cluster
from tests.support.cluster_children import Warm
from tests.support.servers import PostgresServer, RedisServer

pytestmark = pytest.mark.faults

ROWS = {"kill": "K1", "lie": "K2", "raise": "K3"}
WIDTH = 3
CASES = [(point, kind) for point in UNDOING for kind in KINDS if impossible(point, kind) is None]


def booked(step: str) -> dict[str, Any]:
    return {"id": step, "agent": "book", "with": {}, "compensate": {"agent": "unbook"}}


def trip(shape: str, book: Book) -> tuple[dict[str, Any], int]:
    """A job that fails at its end, and how much it owes by then."""
    agents = book.agents(fails=["last"])
    last = {"id": "last", "agent": "book", "with": {}}
    match shape:
        case "sequence":
            steps = [booked("a"), booked("b"), booked("c"), last]
            owed = 3
        case "fan-out":
            branch = [booked("a"), booked("b")]
            steps = [booked("first"), {"id": "each", "for_each": str(list(range(WIDTH))), "do": branch}, last]
            owed = 1 + 2 * WIDTH
        case _:
            lead = {"assignments": [{"agent": "work", "input": 1}], "score": 0}
            agents |= {"lead": {"kind": "scripted", "script": [{"output": lead}]}, "work": {"kind": "scripted"}}
            rule = {"supervisor": "lead", "workers": ["work"], "rounds": 2, "until": "review.score >= 1"}
            steps = [booked("a"), booked("b"), {"id": "loop", "supervise": {**rule, "otherwise": "fail"}}]
            owed = 2
    return {"name": f"trip-{shape}", "agents": agents, "steps": steps}, owed


@pytest.fixture(scope="module")
def house(
    warm: Warm,
    postgres_server: PostgresServer,
    postgres_template: str,
    redis_server: RedisServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Cluster]:
    url = postgres_server.start().create_database(template=postgres_template)
    with Cluster(warm, url, redis_server.database_url(15), tmp_path_factory.mktemp("saga")) as it:
        it.scheduler()
        yield it


@pytest.mark.parametrize("shape", ["sequence", "fan-out", "supervisor"])
@pytest.mark.parametrize(("point", "kind"), CASES)
def test_nothing_stays_booked(
    house: Cluster, tmp_path: Path, point: str, kind: Kind, shape: str, report: Callable[..., None]
) -> None:
    """C8: whatever dies in the middle of the undoing, it is done to its end, in its order."""
    book = Book(tmp_path / "book")
    worker = next((child for child in house.workers if child.alive), None) or house.worker()
    worker.arm(f"{point}={kind}@2")
    flow, owed = trip(shape, book)
    job = house.submit(flow)
    worker.wait_event("crashpoint.reached", point=point, kind=kind, after=0)
    recovery = []
    if kind == "kill":
        assert worker.wait_exit() == 137
        house.successor(worker)
        died = worker.died_at
        assert died is not None
    assert house.wait([job]) == {"failed": 1}
    if kind == "kill":
        after = [event["at"] for event in house.events(job) if event["at"] > died and event["type"] != "step.lost"]
        recovery = [min(after, default=died) - died]  # the last commit may have ended the job
        assert recovery[0] <= SEEN_DYING + 1
    assert book.open() == set()
    order = book.undone()
    assert len(order) == owed
    again = len(book.lines("unbook")) - owed
    assert again <= (1 if shape != "fan-out" else WIDTH)
    assert [letter["path"] for letter in house.letters(job)] == ["loop" if shape == "supervisor" else "last"]
    house.check()
    report(ROWS[kind], jobs=1, repeated=again, doubled=0, recovery=recovery)


def test_sagas_under_random_kills(cluster: MakeCluster, tmp_path: Path, seed: int, report: Callable[..., None]) -> None:
    """C1: many jobs, each failing at a step of its own, workers killed meanwhile: every one nets to zero."""
    rng, clock = random.Random(seed), Clock()
    book = Book(tmp_path / "book")
    house = cluster()
    house.scheduler()
    worker = house.worker()
    jobs = []
    for i in range(60):
        steps = [booked(f"s{n}") for n in range(4)]
        agents = book.agents(fails=[f"s{i % 5}"], delay=0.05)
        jobs.append(house.submit({"name": f"trip-{i % 5}", "agents": agents, "steps": steps}))
    for _ in range(3):
        done = sum(house.states(jobs).get(state, 0) for state in ("failed", "succeeded"))
        goal = min(len(jobs) - 5, done + rng.randrange(5, 15))
        house.wait_for(
            lambda goal=goal: sum(house.states(jobs).get(s, 0) for s in ("failed", "succeeded")) >= goal, "some to end"
        )
        house.kill(worker)
        worker = house.successor(worker)
    began = clock.monotonic()
    assert house.wait(jobs) == {"failed": 48, "succeeded": 12}
    standing = {key.split(":")[0] for key in book.open()}
    assert standing == {job for i, job in enumerate(jobs) if i % 5 == 4}
    assert len(book.open()) == 12 * 4
    house.check()
    report("C1", jobs=len(jobs), seed=seed, recovery=[clock.monotonic() - began])
