"""P13: how soon a dead worker's steps run again, with the settings as shipped and with a lease of 2 s."""

from __future__ import annotations

import signal
from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread

import pytest

from orchestrator.domain.ids import Incarnation, JobId, StepPath, StepRef
from orchestrator.engine import presence
from orchestrator.local.process import free_port
from orchestrator.store import steps
from tests.faults.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.cluster_children import PATIENCE, Child
from tests.support.shapes import NAMES, Shape, shape

pytestmark = pytest.mark.faults

#: As shipped: the defaults of ``Settings``.
SHIPPED = {
    "LEASE_SECONDS": "15",
    "LEASE_RENEW_SECONDS": "5",
    "HEARTBEAT_SECONDS": "1",
    "TICK_SECONDS": "1",
    "MARKER_SECONDS": "1.5",
}


def in_mid_call(it: Cluster, what: Shape) -> JobId:
    """A job whose slow call has begun."""
    job = it.submit(what.workflow, what.input)
    it.wait_for(lambda: any(call.ended is None for call in it.ledger.calls([job])), "the call to begin")
    return job


def taken_over(it: Cluster, job: JobId, at: float) -> float:
    """Seconds from ``at`` until the interrupted call was made again."""
    it.wait([job], 60)
    calls = it.ledger.calls([job])
    cut = next(call for call in calls if call.ended is None or (call.started < at < call.ended))
    again = [call.started for call in calls if call.key == cut.key and call.started > at]
    assert len(again) == 1, again
    return again[0] - at


def ended_right(it: Cluster, job: JobId, what: Shape) -> None:
    assert it.job(job)["output"] == what.output
    it.check()


@pytest.mark.parametrize("name", NAMES)
def test_a_parent_that_saw_it_die(cluster: MakeCluster, name: str, report: Callable[..., None]) -> None:
    it = cluster(**SHIPPED)
    it.scheduler()
    worker = it.worker()
    what = shape(name, it.ledger.file, "slow", slow=3.0)
    job = in_mid_call(it, what)
    it.kill(worker)
    assert worker.died_at is not None
    seconds = taken_over(it, job, worker.died_at)
    report("P13", jobs=1, repeated=1, recovery=[seconds])
    assert seconds <= 2.0
    ended_right(it, job, what)


def test_a_claim_that_commits_after_its_sender_was_buried(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """The COMMIT was on its way when the worker was killed; its parent looked before it took effect."""
    it = cluster(**SHIPPED)
    what = shape("sequence", it.ledger.file)
    job = it.submit(what.workflow, what.input)
    dead = Incarnation("worker-that-died")
    released: Future[int] = Future()
    with it.engine.db.connect() as session:
        claimed, _, _ = steps.claim(session, [StepRef(job, StepPath("s0"), 1)], dead, it.engine.lease, 0)
        assert [row.path for row in claimed] == ["s0"]
        parent = Thread(target=lambda: released.set_result(presence.bury(it.engine, dead)))
        parent.start()
        it.clock.sleep(presence.LATE_COMMIT / 2)
        assert not released.done()
    at = it.clock.now()
    assert released.result(PATIENCE) == 1
    parent.join()
    it.worker()
    it.wait([job])
    seconds = it.ledger.calls([job])[0].started - at
    report("P13", jobs=1, recovery=[seconds])
    assert seconds <= 2.0
    ended_right(it, job, what)


def test_the_whole_command_died_unseen(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """Nobody buries it: its lock is free and its heartbeat old."""
    it = cluster(**SHIPPED)
    it.scheduler()
    worker = it.worker(supervised=False)
    what = shape("sequence", it.ledger.file, "slow", slow=6.0)
    job = in_mid_call(it, what)
    other = it.worker(supervised=False)
    it.kill(worker)
    assert worker.died_at is not None
    seconds = taken_over(it, job, worker.died_at)
    report("P13", jobs=1, repeated=1, recovery=[seconds])
    assert seconds <= 4.0
    ended_right(it, job, what)
    assert other.alive


def stopped_past_its_lease(it: Cluster, what: Shape) -> tuple[JobId, Child, float]:
    worker = it.worker(supervised=False, METRICS_PORT=str(free_port(it.clock)))
    job = in_mid_call(it, what)
    it.worker(supervised=False)
    worker.signal(signal.SIGSTOP)
    return job, worker, it.clock.now()


@pytest.mark.parametrize(
    "settings", [pytest.param({}, id="2s"), pytest.param(SHIPPED, id="shipped", marks=pytest.mark.soak)]
)
def test_a_silent_worker_loses_its_lease_and_its_late_write_is_refused(
    cluster: MakeCluster, settings: dict[str, str], report: Callable[..., None]
) -> None:
    """Z1: stopped past its lease, then continued."""
    it = cluster(**settings)
    it.scheduler()
    what = shape("sequence", it.ledger.file, "slow", slow=1.0)
    job, worker, at = stopped_past_its_lease(it, what)
    seconds = taken_over(it, job, at)
    lease = it.settings.lease_seconds
    events = it.events(job)
    worker.signal(signal.SIGCONT)
    refused = worker.wait_event("settle.fenced", "lease.lost")
    report("Z1", jobs=1, repeated=1, recovery=[seconds], figure=f"{refused['event']} after a lease of {lease:g} s")
    assert seconds <= lease + 2.0
    assert it.events(job) == events, "the late write changed nothing"
    assert it.metric(worker, "orchestrator_fenced_writes_total") == 1
    ended_right(it, job, what)


def test_a_call_ten_times_longer_than_its_lease_is_made_once(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """L1."""
    it = cluster()
    it.scheduler()
    workers = [it.worker(), it.worker()]
    what = shape("sequence", it.ledger.file, "slow", slow=20.0)
    job = it.submit(what.workflow, what.input)
    it.wait([job], 60)
    calls = it.ledger.calls([job])
    report("L1", jobs=1, repeated=len(calls) - what.calls)
    assert len(calls) == what.calls
    assert max((call.ended or 0) - call.started for call in calls) > 10 * it.settings.lease_seconds - 1
    assert all(worker.count("lease.lost") + worker.count("settle.fenced") == 0 for worker in workers)
    ended_right(it, job, what)
