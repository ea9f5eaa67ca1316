"""M1 to M3: a message is a hint. Doubled, late, shuffled, stale or broken, it changes nothing but the time it takes."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import pytest
import redis

from orchestrator.domain.ids import JobId, StepPath, StepRef
from orchestrator.engine import cancel
from tests.faults.conftest import MakeCluster
from tests.support.broken_messages import BROKEN, good_envelope, mutate
from tests.support.cluster import Cluster
from tests.support.shapes import NAMES, shape
from tests.support.warm_postman import Postman

pytestmark = pytest.mark.faults

LATE = [pytest.param(1.5, 12, id="1.5s"), pytest.param(60.0, 40, id="60s", marks=[pytest.mark.soak])]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("late", "count"), LATE)
def test_every_message_comes_up_to_five_times_late_and_shuffled(
    cluster: MakeCluster, late: float, count: int, seed: int, report: Callable[..., None]
) -> None:
    """M1."""
    it = cluster(IN_PLACE_STEPS="0")  # every step is a message
    it.engine.feed.dispatcher = Postman(it.engine.feed.dispatcher, seed, late)
    it.postman = {"seed": seed + 1, "late": late}
    it.scheduler()
    for _ in range(2):
        it.worker()
    shapes = {name: shape(name, it.ledger.file) for name in NAMES}
    jobs = {it.submit(shapes[name].workflow, shapes[name].input): name for name in NAMES for _ in range(count)}
    assert it.wait(jobs, 60 + 12 * late) == {"succeeded": len(jobs)}
    for job, name in jobs.items():
        assert it.job(job)["output"] == shapes[name].output
    counted = it.ledger.check(kills=0)
    expected = sum(shapes[name].calls for name in jobs.values())
    report("M1", jobs=len(jobs), repeated=counted["calls"] - expected, seed=seed)
    assert counted["calls"] == expected, "each step was called once"
    it.check()


def settled_history(it: Cluster, jobs: list[JobId]) -> Counter[str]:
    return Counter(event["type"] for job in jobs for event in it.events(job))


def test_a_message_for_what_is_gone_has_no_effect(cluster: MakeCluster, seed: int, report: Callable[..., None]) -> None:
    """M2: unknown, finished, cancelled, and of old and future epochs, among the messages of living jobs."""
    it = cluster()
    it.scheduler()
    worker = it.worker()
    what = shape("sequence", it.ledger.file)
    done = it.submit(what.workflow, what.input)
    it.wait([done])
    waiting = shape("sequence", it.ledger.file, "transient", retry="600s")
    stopped = it.submit(waiting.workflow, waiting.input)
    it.wait_for(lambda: it.steps(stopped)["s1"]["state"] == "retrying", "the job to wait")  # type: ignore[index]
    cancel.cancel(it.engine, stopped)
    it.wait([stopped])
    before = settled_history(it, [done, stopped])
    stale = [
        StepRef(job, StepPath(path), epoch)
        for job in (done, stopped, JobId("nobody"))
        for path in ("", "s0", "s3", "no/such")
        for epoch in (0, 1, 2, 2**31 - 1)
    ]
    random.Random(seed).shuffle(stale)
    living = [it.submit(what.workflow, what.input) for _ in range(10)]
    it.engine.feed.dispatcher.publish(stale)
    living += [it.submit(what.workflow, what.input) for _ in range(10)]
    assert it.wait(living) == {"succeeded": 20}
    with redis.Redis.from_url(it.broker) as client:
        it.wait_for(lambda: client.llen("default") == 0, "every message to be taken")
    report("M2", jobs=20, seed=seed, figure=f"{len(stale)} stale messages")
    assert settled_history(it, [done, stopped]) == before
    assert it.ledger.check(living)["calls"] == 20 * what.calls
    assert worker.alive
    it.check()


@pytest.mark.timeout(300)
def test_broken_messages_beside_real_work(cluster: MakeCluster, seed: int, report: Callable[..., None]) -> None:
    """M3: every class of broken envelope and 2,000 mutations, on the queue of workers that have jobs to do."""
    chance = random.Random(seed)
    it = cluster()
    it.scheduler()
    workers = [it.worker(supervised=False) for _ in range(2)]
    what = shape("fan-out", it.ledger.file)
    good = json.dumps(good_envelope()).encode()
    entries = [*BROKEN.values(), *(mutate(good, chance) for _ in range(2000))]
    chance.shuffle(entries)
    jobs = []
    with redis.Redis.from_url(it.broker) as client:
        for start in range(0, len(entries), 100):
            client.lpush("default", *entries[start : start + 100])
            jobs.append(it.submit(what.workflow, what.input))
        assert it.wait(jobs, 120) == {"succeeded": len(jobs)}
        it.wait_for(lambda: client.llen("default") == 0, "every entry to be taken", 60)
    wanted = {raw[: 1024 * 1024] for raw in BROKEN.values()}
    it.wait_for(lambda: wanted <= kept(it), "each class to be in quarantine")
    report(
        "M3", jobs=len(jobs), seed=seed, figure=f"{len(entries)} broken messages, {len(kept(it))} kinds in quarantine"
    )
    assert all(worker.alive for worker in workers)
    assert it.ledger.check(jobs)["calls"] == len(jobs) * what.calls
    it.check()


def kept(it: Cluster) -> set[bytes]:
    return {bytes(row["raw"]) for row in it.rows("SELECT raw FROM quarantine")}
