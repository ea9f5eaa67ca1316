"""Webhooks (A16) when the scheduler that sends them dies."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.domain.webhook import Webhook
from orchestrator.engine import queries
from tests.faults.conftest import MakeCluster
from tests.support.cluster_children import Child
from tests.support.receiver import Answer, Got, receiving
from tests.support.shapes import shape

pytestmark = pytest.mark.faults


def test_a_scheduler_killed_between_post_and_mark(cluster: MakeCluster, report: Callable[..., None]) -> None:
    """K6: another sends the message again, under the same name; what follows comes in order, nothing is left out."""
    with receiving() as receiver:
        it = cluster(EGRESS=receiver.url, WEBHOOK_TIMEOUT="1")
        doomed: list[Child] = [it.scheduler()]
        it.worker()

        def answer(_: Got) -> Answer:
            if doomed:
                it.kill(doomed.pop())
            return Answer()

        receiver.answer = answer
        what = shape("sequence", it.ledger.file)
        webhook = Webhook.read({"url": receiver.url, "events": ["step.succeeded", "job.succeeded"]})
        job = it.submit(what.workflow, what.input, webhook=webhook)
        receiver.wait(1)
        began = it.clock.monotonic()
        it.wait_for(lambda: not doomed and not it.children[0].alive, "the first scheduler's end")
        it.scheduler()
        it.wait([job])
        wanted = [event["number"] for event in it.events(job) if event["type"] in webhook.as_given()[1]]
        first, again, *_ = receiver.wait(1 + len(wanted))
        took = it.clock.monotonic() - began
        assert (first.headers["webhook-id"], first.body) == (again.headers["webhook-id"], again.body)
        it.wait_for(lambda: queries.show_job(it.engine, job)["webhook"]["state"] == "done", "the last mark")
        assert [got.event["data"]["number"] for got in receiver.got] == [wanted[0], *wanted]
        report("K6", jobs=1, recovery=[took], figure="webhook sent again under the same id")
        assert took < 15.0
        it.check()
