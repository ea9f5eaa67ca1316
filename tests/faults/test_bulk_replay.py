"""U1: many dead letters go back to work at a rate, the scheduler that sends them is killed half way, two go on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.domain.ids import JobId
from orchestrator.engine import replays
from orchestrator.store.operations import LetterFilter
from tests.conformance.test_replays import broken
from tests.faults.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.letters import copy_failed

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]


def failed(it: Cluster, count: int) -> None:
    """``count`` jobs that failed at their one step, which succeeds when it is tried again."""
    job = it.submit(broken(), 1)
    assert it.wait([job]) == {"failed": 1}
    it.engine.db.run(lambda session: copy_failed(session, job, count - 1, kinds=50))


def kept_rate(it: Cluster, since: float) -> float:
    """Letters closed a second, of those closed after ``since``."""
    row = it.rows(
        "SELECT count(*) AS n, max(closed_at) - min(closed_at) AS span FROM dead_letters WHERE closed_at > :since",
        since=since,
    )[0]
    return float((row["n"] - 1) / row["span"])


@pytest.mark.parametrize(
    ("count", "rate"),
    [pytest.param(500, 60.0, id="500"), pytest.param(10_000, 100.0, id="10000", marks=pytest.mark.soak)],
)
def test_each_letter_is_replayed_once(
    cluster: MakeCluster, report: Callable[..., None], count: int, rate: float
) -> None:
    """U1: killed half way, started again twice: every job is reopened once, runs once more, and succeeds."""
    it = cluster()
    first = it.scheduler()
    it.worker()
    failed(it, count)
    started = it.clock.now()
    operation = str(replays.start(it.engine, LetterFilter(), "default", everything=True, rate=rate, by="ann")["id"])

    def replayed() -> int:
        return int(replays.show(it.engine, operation)["replayed"])

    it.wait_for(lambda: replayed() >= count // 2, "half of them", 30 + count / rate)
    before = kept_rate(it, started)
    it.kill(first)
    done = replayed()
    assert done < count, "it was killed too late to mean anything"
    back = it.clock.now()
    for _ in range(2):
        it.scheduler()
    it.wait_for(lambda: replayed() > done, "the replay to go on")
    recovery = it.clock.now() - back
    it.wait_for(lambda: replays.show(it.engine, operation)["state"] == "done", "the rest", 30 + count / rate)
    after = kept_rate(it, back)
    seen = replays.show(it.engine, operation)
    assert (seen["total"], seen["replayed"], seen["skipped"]) == (count, count, 0)
    jobs = [JobId(row["id"]) for row in it.rows("SELECT id FROM jobs")]
    assert it.wait(jobs, 60 + count / 20) == {"succeeded": count}
    reopened = it.rows("SELECT job_id, count(*) AS n FROM events WHERE type = 'job.reopened' GROUP BY job_id")
    assert (len(reopened), {row["n"] for row in reopened}) == (count, {1})
    assert {row["run"] for row in it.rows("SELECT DISTINCT run FROM jobs")} == {2}
    calls = it.rows("SELECT count(*) AS n FROM attempts")[0]["n"]
    figure = f"asked for {rate:g} a second, {before:.0f} before the kill, {after:.0f} after it"
    report("U1", jobs=count, repeated=calls - 2 * count, recovery=[recovery], figure=figure)
    assert calls == 2 * count
    assert kept_rate(it, started) <= 1.1 * rate
    if count >= 10_000:  # of a short run the first second's allowance is a large part
        assert 0.9 * rate <= min(before, after) <= max(before, after) <= 1.1 * rate
    it.check()
