"""The feed: brokers stay shallow, tenants share fairly, limits of agents hold; and lost messages are found exactly."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from orchestrator.domain.ids import Incarnation, QueueName
from orchestrator.engine import presence
from orchestrator.engine.feed import FULL_INTERVAL
from orchestrator.engine.reconcile import Reconciler, Rhythm
from orchestrator.engine.settle import claim
from orchestrator.store import feed as sql
from orchestrator.store import workers
from tests.support.bench import Bench
from tests.support.bench import bench as bench_on
from tests.support.clocks import HandClock

ONE = {"name": "one", "agents": {"echo": {"kind": "scripted"}}, "steps": [{"id": "a", "agent": "echo"}]}


def slots(bench: Bench, count: int) -> None:
    """The only worker has ``count`` slots."""
    bench.db.run(lambda s: workers.leave(s, bench.who.incarnation))
    bench.who = presence.Registration(Incarnation("w"), "w", "worker", ("default",), count, "test")
    presence.join(bench.engine, bench.who)


def test_at_most_twice_the_slots_are_published(bench: Bench) -> None:
    slots(bench, 5)
    for _ in range(30):
        bench.submit(ONE, 1)
    bench.pump()
    bench.pump()
    assert len(bench.dispatcher.refs) == 10
    won = claim(bench.engine, [bench.take() for _ in range(4)])
    assert len(won) == 4
    bench.pump()
    assert len(bench.dispatcher.refs) == 10


def test_a_full_queue_is_not_asked_about_by_each_submit(url: str) -> None:
    """But once in a while, or as soon as claims free credit here."""
    clock = HandClock()
    with bench_on(url, clock=clock) as it:
        slots(it, 1)
        feed, default = it.engine.feed, QueueName("default")
        for _ in range(5):
            it.submit(ONE, 1)
            it.pump()
        feed.wake([default])
        assert feed._to_pump() == set()
        clock.at += FULL_INTERVAL
        assert feed._to_pump() == {default}
        assert feed.pump(default) == 0
        feed.wake([default])
        assert feed._to_pump() == set()
        assert len(claim(it.engine, [it.take(), it.take()])) == 2
        assert feed._to_pump() == {default}
        assert feed.pump(default) == 2


def test_without_a_worker_nothing_is_published(bench: Bench) -> None:
    bench.db.run(lambda s: workers.leave(s, bench.who.incarnation))
    bench.submit(ONE, 1)
    bench.pump()
    assert bench.dispatcher.refs == []


def test_two_tenants_of_equal_weight_get_equal_shares(bench: Bench) -> None:
    """10:1 in load, 1:1 in weight: 1:1 ± 10%."""
    slots(bench, 4)
    for _ in range(200):
        bench.submit(ONE, 1, tenant="big")
    for _ in range(40):
        bench.submit(ONE, 1, tenant="small")
    served: Counter[str] = Counter()
    while sum(served.values()) < 72:
        bench.pump()
        for claimed in claim(bench.engine, [bench.take() for _ in range(len(bench.dispatcher.refs))]).values():
            served[claimed.facts.tenant] += 1
    assert abs(served["small"] / sum(served.values()) - 0.5) <= 0.05


def test_priority_decides_within_a_tenant_and_the_old_do_not_starve(bench: Bench) -> None:
    slots(bench, 8)
    low = [bench.submit(ONE, 1, priority=0) for _ in range(4)]
    for _ in range(40):
        bench.submit(ONE, 1, priority=9)
    bench.pump()
    published = [ref.job_id for ref in bench.dispatcher.refs]
    assert published[0] not in low
    assert low[0] in published  # every eighth is the oldest


def limited(**limits: Any) -> dict[str, Any]:
    agents = {"echo": {"kind": "scripted", "limits": limits}}
    return {"name": "limited", "agents": agents, "steps": [{"id": "a", "agent": "echo"}, {"id": "b", "agent": "echo"}]}


def test_an_agents_concurrency_holds_over_all_workers(bench: Bench) -> None:
    for _ in range(10):
        bench.submit(limited(concurrency=3), 1)
    bench.pump()
    bench.pump()
    assert len(bench.dispatcher.refs) == 3
    claim(bench.engine, [bench.take()])
    bench.pump()
    assert len(bench.dispatcher.refs) == 2  # one runs, two are rung
    other = bench.submit(ONE, 1)
    bench.pump()
    assert [ref.job_id for ref in bench.dispatcher.refs[2:]] == [other]  # nobody else waits for it


def test_an_agents_rate_holds(bench: Bench) -> None:
    for _ in range(5):
        bench.submit(limited(rate="1/h"), 1)
    bench.pump()
    bench.pump()
    assert len(bench.dispatcher.refs) == 1


def test_a_paused_agent_is_not_called(bench: Bench) -> None:
    bench.submit(ONE, 1)
    bench.db.run(lambda s: sql.pause_agent(s, "default", "echo", 60.0))
    bench.pump()
    assert bench.dispatcher.refs == []


def reconciler(bench: Bench) -> Reconciler:
    return Reconciler(bench.engine, Rhythm(marker=0.0, grace=0.0))


def test_exactly_the_lost_messages_are_sent_again(bench: Bench) -> None:
    """R1 in small: three of forty vanish; the marker behind them names those three and no other."""
    jobs = [bench.submit(ONE, n) for n in range(40)]
    bench.pump()
    gone = {bench.dispatcher.refs.pop(i).job_id for i in (31, 17, 5)}
    repair = reconciler(bench)
    repair.send_markers()
    queue, number = bench.dispatcher.markers[-1]
    repair.find_lost()
    assert len(bench.dispatcher.refs) == 37  # the marker has not come through: nothing is known
    claim(bench.engine, [bench.take() for _ in range(37)])
    bench.db.run(lambda s: sql.marker_seen(s, queue, number))
    repair.find_lost()
    bench.pump()
    assert {ref.job_id for ref in bench.dispatcher.refs} == gone
    assert len(jobs) == 40


def test_what_is_published_after_a_marker_is_not_lost_by_it(bench: Bench) -> None:
    bench.submit(ONE, 1)
    bench.pump()
    repair = reconciler(bench)
    repair.send_markers()
    bench.submit(ONE, 2)
    bench.pump()
    queue, number = bench.dispatcher.markers[-1]
    bench.db.run(lambda s: sql.marker_seen(s, queue, number))
    repair.find_lost()
    with bench.db.connect(readonly=True) as session:
        assert session.value("SELECT count(*) FROM steps WHERE redispatches > 0") == 1


def test_a_flushed_broker_is_known_by_its_missing_key(bench: Bench) -> None:
    repair = reconciler(bench)
    repair.watch_broker()
    for _ in range(5):
        bench.submit(ONE, 1)
    bench.pump()
    bench.dispatcher.refs.clear()
    repair.watch_broker()
    assert bench.dispatcher.refs == []
    bench.dispatcher.epoch = "epoch-2"
    repair.watch_broker()
    bench.pump()
    assert len(bench.dispatcher.refs) == 5


def test_what_could_not_be_published_is_back_in_the_backlog(bench: Bench) -> None:
    bench.submit(ONE, 1)
    bench.pump()
    lost = bench.dispatcher.refs.copy()
    bench.dispatcher.refs.clear()
    bench.engine.feed.lost(lost)
    bench.pump()
    assert bench.dispatcher.refs == lost


@pytest.mark.parametrize("holders", [("a", "b")])
def test_a_duty_has_one_holder_at_a_time(bench: Bench, holders: tuple[str, str]) -> None:
    first, second = holders
    assert bench.db.run(lambda s: workers.hold_duty(s, "timers", first, 60.0))
    assert not bench.db.run(lambda s: workers.hold_duty(s, "timers", second, 60.0))
    assert bench.db.run(lambda s: workers.hold_duty(s, "timers", first, 60.0))
    bench.db.run(lambda s: workers.drop_duties(s, first))
    assert bench.db.run(lambda s: workers.hold_duty(s, "timers", second, 60.0))
