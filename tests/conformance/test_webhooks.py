"""Webhooks (A16): at least once, in order for each job, whatever dies; nobody waits for a slow receiver."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Collection

import pytest
from standardwebhooks import Webhook as Signer

from orchestrator.domain.ids import Incarnation, JobId
from orchestrator.domain.webhook import Webhook
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import cancel, dead_letters, webhooks
from orchestrator.engine.context import Engine
from orchestrator.engine.deliver import Courier, Manners
from orchestrator.engine.feed import Feed
from orchestrator.engine.policy import Policy
from orchestrator.engine.reconcile import Reconciler
from orchestrator.engine.submit import Submission, submit
from orchestrator.ports import Message, Reply
from orchestrator.store import webhooks as rows
from orchestrator.store.session import Session
from orchestrator.testing import ListDispatcher, ListSender
from tests.support.bench import Bench
from tests.support.told import FAILS, SECRET, TWO, URL, accept, bodies, courier, deliver, hook, make_due, seen


def test_the_end_of_a_job_is_told_once_and_signed(bench: Bench) -> None:
    """A16: whoever asked need not wait for the answer."""
    sender, told = ListSender(), list[str]()
    done = accept(bench, secret=SECRET)
    deliver(bench, sender)
    assert sender.sent == []
    assert hook(bench, done.job.id)["state"] == "active"
    bench.drive()
    deliver(bench, sender, told)
    deliver(bench, sender)
    (message,) = sender.sent
    assert message.url == URL
    body = Signer(SECRET).verify(message.body, message.headers)
    assert body["type"] == "job.succeeded"
    assert body["version"] == 1
    assert body["timestamp"].endswith("Z")
    assert body["data"] == bench.events(done.job.id)[-1]
    assert told == ["delivered"]
    shown = hook(bench, done.job.id)
    assert (shown["state"], shown["delivered"], shown["owed"]) == ("done", 4, 4)


def test_a_failed_and_a_cancelled_job_are_told_too(bench: Bench) -> None:
    sender = ListSender()
    failed, stopped = accept(bench, FAILS), accept(bench)
    cancel.cancel(bench.engine, stopped.job.id)
    bench.drive()
    deliver(bench, sender)
    assert sorted(body["type"] for body in bodies(sender)) == ["job.cancelled", "job.failed"]
    assert {body["data"]["job"] for body in bodies(sender)} == {failed.job.id, stopped.job.id}


def test_any_events_may_be_asked_for_and_come_in_order(bench: Bench) -> None:
    sender = ListSender()
    job = accept(bench, events=["step.succeeded", "job.submitted"]).job.id
    deliver(bench, sender)
    bench.drive()
    deliver(bench, sender)
    assert [body["type"] for body in bodies(sender)] == ["job.submitted", "step.succeeded", "step.succeeded"]
    assert seen(sender) == [(job, 1), (job, 2), (job, 3)]


def test_a_history_longer_than_a_claim_comes_whole_and_in_order(bench: Bench) -> None:
    flow = {**TWO, "steps": [{"id": "f", "for_each": "${{ input }}", "do": {"agent": "echo"}}]}
    webhook = Webhook.read({"url": URL, "events": ["step.succeeded"]})
    job = submit(bench.engine, Submission(Workflow.model_validate(flow), list(range(50)), webhook=webhook)).job.id
    bench.drive()
    sender = ListSender()
    deliver(bench, sender)
    numbers = [number for _, number in seen(sender)]
    assert numbers == [event["number"] for event in bench.events(job) if event["type"] == "step.succeeded"]
    assert len(numbers) == 51


def test_a_replayed_job_is_told_of_its_second_end(bench: Bench) -> None:
    sender = ListSender()
    script = [{"fail": {"class": "permanent"}}, {"output": 1}]
    flow = {**TWO, "agents": {"echo": {"kind": "scripted", "script": script}}, "steps": TWO["steps"][:1]}
    job = accept(bench, flow, events=["job.failed", "job.reopened", "job.succeeded"]).job.id
    bench.drive()
    deliver(bench, sender)
    assert hook(bench, job)["state"] == "done"
    (letter,) = bench.db.run(lambda s: s.rows("SELECT id FROM dead_letters"), readonly=True)
    dead_letters.replay(bench.engine, letter["id"], by="me")
    assert hook(bench, job)["state"] == "active"
    bench.drive()
    deliver(bench, sender)
    assert [body["type"] for body in bodies(sender)] == ["job.failed", "job.reopened", "job.succeeded"]
    assert [body["data"]["run"] for body in bodies(sender)] == [1, 2, 2]


def test_dead_between_post_and_mark_it_is_sent_again_under_the_same_id(bench: Bench) -> None:
    class Dies(BaseException):
        """SIGKILL, seen from inside."""

    def die(_: Message) -> Reply:
        raise Dies

    job = accept(bench).job.id
    bench.drive()
    first, second = ListSender(answers=die), ListSender()
    deliver(bench, first)
    assert len(first.sent) == 1
    assert hook(bench, job)["delivered"] == 0
    deliver(bench, second)
    assert second.sent == []  # the claim may still be somebody's
    make_due(bench)
    deliver(bench, second)
    assert second.sent[0].headers["webhook-id"] == first.sent[0].headers["webhook-id"] == f"evt_{job}_4"
    assert second.sent[0].body == first.sent[0].body
    assert hook(bench, job)["state"] == "done"


def test_a_slower_twin_moves_nothing(bench: Bench) -> None:
    """A sender that was given up for lost, and was only slow, finds its claim gone."""
    job = accept(bench, events=["step.succeeded", "job.succeeded"]).job.id
    bench.drive()
    quick = ListSender()

    def slow(_: Message) -> Reply:
        make_due(bench)
        with_loop(courier(bench.engine, quick))
        return Reply(500)

    late = ListSender(answers=slow)
    deliver(bench, late, at_once=1)
    assert [number for _, number in seen(quick)] == [2, 3, 4]
    assert len(late.sent) == 1
    shown = hook(bench, job)
    assert (shown["state"], shown["failures"], shown["delivered"]) == ("done", 0, 4)


def with_loop(other: Courier) -> None:
    """Another process's courier, while ours is in the middle of something."""
    thread = threading.Thread(target=lambda: asyncio.run(other.deliver()))
    thread.start()
    thread.join(timeout=30)


def test_two_schedulers_deliver_each_event_once(bench: Bench) -> None:
    jobs = [
        accept(bench, url=f"https://h{n % 7}.example/", events=["step.succeeded", "job.succeeded"]).job.id
        for n in range(30)
    ]
    bench.drive()
    other = Engine(bench.db, bench.clock, Incarnation("bench-2"))
    other.feed = Feed(bench.db, ListDispatcher(), bench.clock)
    sender = ListSender()

    async def both() -> None:
        await asyncio.gather(*(courier(engine, sender).deliver() for engine in (bench.engine, other)))

    asyncio.run(both())
    told = seen(sender)
    assert len(told) == len(set(told)) == 90
    for job in jobs:
        assert [number for name, number in told if name == job] == [2, 3, 4]
        assert hook(bench, job)["state"] == "done"


def test_everything_is_told_while_it_happens(bench: Bench) -> None:
    """Two couriers beside a worker, on the same rows at the same time."""
    wanted = ["job.submitted", "step.succeeded", "job.succeeded"]
    jobs = [accept(bench, url=f"https://h{n % 3}.example/", events=wanted).job.id for n in range(40)]
    running = threading.Thread(target=bench.drive)
    running.start()
    sender = ListSender()

    async def both() -> None:
        couriers = [courier(bench.engine, sender, per_host=64) for _ in range(2)]
        while running.is_alive():
            await asyncio.gather(*(one.deliver() for one in couriers))
        await couriers[0].deliver()

    asyncio.run(both())
    running.join()
    told = seen(sender)
    for job in jobs:
        assert [number for name, number in told if name == job] == [1, 2, 3, 4]
        assert hook(bench, job)["state"] == "done"


def test_a_failure_is_tried_again_after_its_pause_and_stops_nobody_else(bench: Bench) -> None:
    job, other = accept(bench).job.id, accept(bench, url="https://other.example/").job.id
    bench.drive()
    told: list[str] = []
    sender = ListSender(answers=lambda m: Reply(500) if "example.com" in m.url else Reply(200))
    deliver(bench, sender, told)
    deliver(bench, sender, told)
    assert sorted(told) == ["delivered", "failed"]
    shown = hook(bench, job)
    now = bench.db.run(Session.now, readonly=True)
    assert (shown["state"], shown["failures"], shown["error"]) == ("active", 1, "it answered 500")
    assert 20 < shown["next_at"] - now <= 60
    assert hook(bench, other)["state"] == "done"
    make_due(bench)
    deliver(bench, ListSender())
    shown = hook(bench, job)
    assert (shown["state"], shown["failures"], shown["error"]) == ("done", 0, None)


def test_what_the_receiver_asks_for_is_waited_for(bench: Bench) -> None:
    job = accept(bench).job.id
    bench.drive()
    deliver(bench, ListSender(answers=lambda _: Reply(503, retry_after=900.0)))
    assert hook(bench, job)["next_at"] - bench.db.run(Session.now, readonly=True) == pytest.approx(900, abs=5)


def test_gone_stops_it_and_resume_tries_again(bench: Bench) -> None:
    job = accept(bench).job.id
    bench.drive()
    told: list[str] = []
    deliver(bench, ListSender(answers=lambda _: Reply(410)), told)
    assert told == ["stopped"]
    shown = hook(bench, job)
    assert (shown["state"], shown["next_at"]) == ("stopped", None)
    assert "410" in shown["error"]
    sender = ListSender()
    deliver(bench, sender)
    assert sender.sent == []
    webhooks.resume(bench.engine, job, by="me", note="moved")
    webhooks.resume(bench.engine, job, by="me")
    deliver(bench, sender)
    assert seen(sender) == [(job, 4)]
    assert hook(bench, job)["state"] == "done"
    (entry,) = bench.db.run(lambda s: s.rows("SELECT * FROM audit"), readonly=True)
    assert (entry["what"], entry["subject"], entry["why"]) == ("webhook.resumed", job, "moved")


def test_a_stopped_webhook_stays_stopped_when_more_happens(bench: Bench) -> None:
    job = accept(bench, events=["job.submitted", "job.succeeded"]).job.id
    deliver(bench, ListSender(answers=lambda _: Reply(410)))
    bench.drive()
    sender = ListSender()
    deliver(bench, sender)
    assert sender.sent == []
    assert hook(bench, job)["owed"] == 4
    webhooks.resume(bench.engine, job, by="me")
    deliver(bench, sender)
    assert [number for _, number in seen(sender)] == [1, 4]


def test_after_a_day_of_failures_it_is_stopped(bench: Bench) -> None:
    job = accept(bench).job.id
    bench.drive()
    sender = ListSender(answers=lambda _: Reply(None, "ConnectError: refused"))
    deliver(bench, sender)
    bench.db.run(lambda s: s.execute("UPDATE webhooks SET failing_since = {now} - 86401"))
    make_due(bench)
    deliver(bench, sender)
    shown = hook(bench, job)
    assert shown["state"] == "stopped"
    assert "24.0 h" in shown["error"]
    assert "ConnectError" in shown["error"]


def test_what_happens_while_it_is_sent_is_not_forgotten(bench: Bench) -> None:
    """The settle comes between the sender's claim and its mark: neither loses the other's write."""
    job = accept(bench, events=["job.submitted", "job.succeeded"]).job.id

    def meanwhile(message: Message) -> Reply:
        if b"job.submitted" in message.body:
            thread = threading.Thread(target=bench.drive)
            thread.start()
            thread.join(timeout=30)
        return Reply(204)

    sender = ListSender(answers=meanwhile)
    deliver(bench, sender)
    assert [number for _, number in seen(sender)] == [1, 4]
    assert hook(bench, job)["state"] == "done"


def test_an_address_that_is_no_longer_allowed_is_not_called(bench: Bench) -> None:
    job = accept(bench).job.id
    bench.drive()
    sender = ListSender()
    deliver(bench, sender, policy=Policy(egress=("https://other.example/",)))
    assert sender.sent == []
    shown = hook(bench, job)
    assert shown["state"] == "stopped"
    assert "ORCHESTRATOR_EGRESS" in shown["error"]
    assert "t0ken" not in shown["error"]


class Jam(ListSender):
    """Its slow host answers when the quick one has all it is owed."""

    def __init__(self, quick: int) -> None:
        super().__init__()
        self.quick, self.slow, self.most_slow = quick, 0, 0
        self.through = asyncio.Event()

    async def send(self, message: Message, seconds: float) -> Reply:  # noqa: ARG002 - the port
        if "slow" in message.url:
            self.slow += 1
            self.most_slow = max(self.most_slow, self.slow)
            await self.through.wait()
            self.slow -= 1
        self.sent.append(message)
        if sum("quick" in sent.url for sent in self.sent) == self.quick:
            self.through.set()
        return Reply(204)


def test_a_slow_host_has_so_many_places_and_no_more(bench: Bench) -> None:
    for number in range(30):
        accept(bench, url="https://slow.example/" if number % 3 else "https://quick.example/")
    bench.drive()
    sender = Jam(quick=10)
    deliver(bench, sender, at_once=12, per_host=4)
    assert sender.most_slow == 4
    assert len(sender.sent) == 30


def test_room_that_comes_free_while_the_due_are_looked_up_is_used(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All places of the quick host come free during the very look that found them taken."""
    for number in range(30):
        accept(bench, url="https://slow.example/" if number % 3 else "https://quick.example/")
    bench.drive()
    sender, told, due = Jam(quick=10), list[str](), rows.due
    four_told = threading.Event()

    def note(outcome: str) -> None:
        told.append(outcome)
        if len(told) == 4:
            four_told.set()

    def look(session: Session, full: Collection[str], limit: int) -> list[tuple[JobId, str]]:
        if "quick.example" in full:
            assert four_told.wait(60)
        return due(session, full, limit)

    monkeypatch.setattr(rows, "due", look)
    manners = Manners(policy=Policy(egress=None), at_once=12, per_host=4)
    asyncio.run(Courier(bench.engine, lambda: sender, manners, note).deliver())
    assert len(sender.sent) == 30


def test_the_reconciler_wakes_the_courier_only_when_something_is_due(bench: Bench) -> None:
    class Counted(Courier):
        woken = 0

        def wake(self) -> None:
            self.woken += 1

    mine = Counted(bench.engine, ListSender)
    repair = Reconciler(bench.engine, courier=mine)
    job = accept(bench).job.id
    repair.tick()
    assert mine.woken == 0
    bench.drive()
    repair.tick()
    assert mine.woken == 1
    deliver(bench, ListSender())
    repair.tick()
    assert mine.woken == 1
    assert hook(bench, job)["state"] == "done"
