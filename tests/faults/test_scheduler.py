"""K6: schedulers die, freeze, and come in pairs. Timers fire once all the same."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.ids import JobId, QueueName
from orchestrator.engine.reconcile import Watermarks
from tests.faults.conftest import MakeCluster
from tests.support.cluster import Cluster
from tests.support.shapes import shape

pytestmark = pytest.mark.faults

#: Fail-over of a scheduler, in seconds.
FAIL_OVER = 15.0
RETRYING = 8


def retrying(it: Cluster, count: int = RETRYING) -> list[JobId]:
    """Jobs whose step waits for its retry, and whose worker has died since: only a scheduler fires their timer."""
    worker = it.worker(supervised=False)
    what = shape("sequence", it.ledger.file, "transient", retry="2s")
    jobs = [it.submit(what.workflow, what.input) for _ in range(count)]
    waiting = "SELECT count(*) AS n FROM steps WHERE state = 'retrying'"
    it.wait_for(lambda: it.rows(waiting)[0]["n"] == count, "every job to wait for its retry")
    it.kill(worker)
    return jobs


def fired_once(it: Cluster, jobs: list[JobId]) -> list[float]:
    """How late each timer fired, in seconds: from when it was due until its step was ready."""
    late = []
    for job in jobs:
        kinds = [event["type"] for event in it.events(job) if event["path"] == "s1"]
        assert kinds == ["step.retrying", "step.succeeded"], kinds
        retry: dict[str, Any] = next(event for event in it.events(job) if event["type"] == "step.retrying")
        late.append(it.steps(job)["s1"]["ready_at"] - retry["at"] - retry["data"]["delay"])  # type: ignore[index]
    assert it.ledger.check(jobs)["calls"] == len(jobs) * 5, "four steps, one of them twice"
    it.check()
    return late


def test_markers_that_keep_coming_do_not_push_the_watermark_away() -> None:
    """R1: they come more often than the grace is long; each counts once it was seen that long ago."""
    marks, queue = Watermarks(grace=2.0), QueueName("default")
    assert [marks.below({queue: number}, 1.5 * number).get(queue) for number in range(1, 6)] == [None, None, 1, 2, 3]
    assert marks.below({queue: 5}, 100.0) == {queue: 5}


def test_another_takes_the_place_of_a_killed_one(cluster: MakeCluster, report: Callable[..., None]) -> None:
    it = cluster()
    first = it.scheduler("timer.fire=kill")
    jobs = retrying(it)
    assert first.wait_exit() == 137
    it.scheduler()
    it.worker()
    assert it.wait(jobs) == {"succeeded": len(jobs)}
    late = fired_once(it, jobs)
    report("K6", jobs=len(jobs), recovery=late, figure="killed as it fires")
    assert max(late) <= FAIL_OVER


def test_an_exception_as_it_fires_is_tried_again(cluster: MakeCluster) -> None:
    it = cluster()
    first = it.scheduler("timer.fire=raise")
    jobs = retrying(it)
    first.wait_event("reconcile.bug")
    it.worker()
    assert it.wait(jobs) == {"succeeded": len(jobs)}
    fired_once(it, jobs)


def test_two_of_which_one_is_stopped_and_continued(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """The frozen one holds whatever leadership there is, and wakes up in the middle of its round."""
    it = cluster()
    frozen = it.scheduler()
    it.scheduler()
    frozen.signal(signal.SIGSTOP)
    jobs = retrying(it)
    it.worker()
    assert it.wait(jobs) == {"succeeded": len(jobs)}
    frozen.signal(signal.SIGCONT)
    late = fired_once(it, jobs)
    again = retrying(it)
    it.worker()
    assert it.wait(again) == {"succeeded": len(again)}
    fired_once(it, again)
    report("K6", jobs=len(jobs) * 2, recovery=late, figure="one of two frozen")
    assert max(late) <= FAIL_OVER


def test_two_at_once_fire_once(cluster: MakeCluster, report: Callable[..., None]) -> None:
    it = cluster()
    for _ in range(2):
        it.scheduler()
    jobs = retrying(it, 40)
    it.worker()
    assert it.wait(jobs) == {"succeeded": len(jobs)}
    late = fired_once(it, jobs)
    report("K6", jobs=len(jobs), recovery=late, figure="two at once")


def test_lost_messages_are_found_while_the_leader_is_frozen(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """The markers' duty passes to the living one."""
    it = cluster()
    frozen = it.scheduler()
    worker = it.worker("worker.after_receive=raise")
    what = shape("sequence", it.ledger.file)
    it.wait([it.submit(what.workflow, what.input)])  # its message is dropped: the leader has led
    it.scheduler()
    frozen.signal(signal.SIGSTOP)
    worker.arm("worker.after_receive=raise")
    at = it.clock.now()
    job = it.submit(what.workflow, what.input)
    assert it.wait([job]) == {"succeeded": 1}
    seconds = (it.job(job)["finished_at"] or 0.0) - at
    frozen.signal(signal.SIGCONT)
    report("K6", jobs=1, recovery=[seconds], figure="a message lost while the leader is frozen")
    assert seconds <= FAIL_OVER
    it.check()
