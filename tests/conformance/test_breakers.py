"""Circuit breakers on both databases: what opens them, what waits, what is rerouted, and how they close again."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from orchestrator.domain.errors import InvalidInput, NotFound
from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.result import GaveUp
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import audit, breakers, queries, release
from orchestrator.engine.explain import explain
from orchestrator.engine.reconcile import Reconciler
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.engine.submit import Submission, register
from orchestrator.engine.submit import submit as by_name
from orchestrator.store import feed as feed_sql
from tests.support.bench import Bench
from tests.support.breaker_flows import QUICK, cool_down, events, fails, flow, phase, phase_or_none, run, state, submit


def test_it_opens_for_all_workers_within_one_window(bench: Bench, other: Bench) -> None:
    """H4: each worker sees half of the failures; together they are enough, and neither calls again."""
    run(bench, flow({**QUICK, "calls": 4}))
    run(other, flow({**QUICK, "calls": 4}))
    run(bench, flow({**QUICK, "calls": 4}))
    with pytest.raises(StopIteration):
        phase(bench)
    run(other, flow({**QUICK, "calls": 4}))
    found = state(bench)
    assert (found["state"], found["tripped_by"]["signal"]) == ("open", "failures")
    assert found["tripped_by"]["says"] == "4 of 4 calls failed within 60 s"
    waiting = [submit(worker, flow({**QUICK, "calls": 4})) for worker in (bench, other)]
    assert bench.drive() == other.drive() == 0
    assert {bench.steps(job)["a"]["state"] for job in waiting} == {"ready"}


def test_what_waits_burns_no_attempt_and_says_so_once(bench: Bench) -> None:
    for _ in range(2):
        run(bench, flow())
    job = run(bench, flow())
    for _ in range(3):
        bench.pump()
    (held,) = events(bench, job, "step.held_back")
    assert (held["reason"], held["agent"], held["breaker"]) == ("breaker_open", "shaky", "shaky")
    assert held["tripped_by"]["signal"] == "failures"
    step = bench.steps(job)["a"]
    assert (step["state"], step["attempt"], step["not_before"]) == ("ready", 0, held["until"])
    (cause,) = explain(bench.engine, job)["causes"]
    assert (cause["code"], cause["until"]) == ("breaker_open", held["until"])
    assert "2 of 2 calls failed within 60 s" in cause["says"]
    assert "orchestrator breakers reset shaky" in cause["moved_by"]


def test_an_open_breaker_sends_work_to_the_fallback(bench: Bench) -> None:
    """B11: the next candidate is taken at once, and the history says why."""
    for _ in range(2):
        run(bench, flow())
    job = run(bench, flow(on_failure=[{"agent": "lite"}]))
    assert bench.job(job)["output"] == "lite"
    (fell,) = events(bench, job, "step.fell_back")
    assert (fell["from"], fell["to"], fell["reason"]) == ("shaky", "lite", "breaker_open")
    assert fell["failure"]["class"] == "transient"
    attempts = queries.list_attempts(bench.engine, job)
    assert [(row["agent"], row["outcome"]) for row in attempts] == [("lite", "succeeded")]


def test_a_person_takes_an_agent_out_of_service(bench: Bench) -> None:
    """B11: work goes to the next candidate, or waits, though nothing has failed yet; a reset brings it back."""
    run(bench, flow(), "ok")
    with pytest.raises(NotFound, match="breaker"):
        breakers.open_(bench.engine, "lite", 60, by="me")
    with pytest.raises(InvalidInput):
        breakers.open_(bench.engine, "shaky", 0, by="me")
    (opened,) = breakers.open_(bench.engine, "shaky", 3600, by="me", note="worse")
    assert (opened["state"], opened["tripped_by"]["signal"]) == ("open", "hand")
    job = run(bench, flow(on_failure=[{"agent": "lite"}]), "ok")
    assert (bench.job(job)["output"], events(bench, job, "step.fell_back")[0]["reason"]) == ("lite", "breaker_open")
    waits = run(bench, flow(), "ok")
    assert bench.steps(waits)["a"]["attempt"] == 0
    assert "me opened it" in explain(bench.engine, waits)["summary"]
    breakers.reset(bench.engine, "shaky", by="me")
    bench.drive()
    assert bench.job(waits)["output"] == "fine"
    assert [row["what"] for row in audit.trail(bench.engine, tenant="default", subject="shaky")[0]] == [
        "breaker.reset",
        "breaker.opened",
    ]


@pytest.mark.parametrize(
    ("entry", "ended", "output"),
    [({"value": {"n": 0}}, "succeeded", {"n": 0}), ({"skip": True}, "skipped", None)],
)
def test_a_default_is_a_fallback_too(bench: Bench, entry: Any, ended: str, output: Any) -> None:
    for _ in range(2):
        run(bench, flow())
    job = run(bench, flow(on_failure=[{"agent": "lite", "on": ["invalid_output"]}, entry]))
    step = bench.steps(job)["a"]
    assert (step["state"], step["degraded"], bench.job(job)["output"]) == (ended, True, output)
    assert queries.list_attempts(bench.engine, job) == []


def test_what_may_have_taken_effect_is_not_replaced(bench: Bench) -> None:
    """A cut call with an effect: the fallback must not act a second time, so the step waits for its own agent."""
    retry = {"attempts": 3, "initial": "1ms", "max": "1ms"}
    what = flow(agent=fails("transient", known=False), retry=retry, on_failure=[{"agent": "lite"}], effect="reversible")
    job = submit(bench, what)
    while phase_or_none(bench) != "open":
        bench.drive()
    bench.drive()
    step = bench.steps(job)["a"]
    assert (step["state"], step["agent"]) == ("ready", "shaky")
    assert len(events(bench, job, "step.held_back")) == 1


def test_half_open_one_call_is_tried_and_closes_it(bench: Bench, other: Bench) -> None:
    """H4: closed, open, half-open: two workers, and one probe between them."""
    for _ in range(2):
        run(bench, flow())
    jobs = [submit(bench, flow(), "ok") for _ in range(5)]
    assert bench.drive() == 0
    cool_down(bench)
    assert phase(bench) == "half_open"
    bench.pump()
    other.pump()
    assert len(bench.dispatcher.refs) + len(other.dispatcher.refs) == 1
    assert "is tried" in explain(bench.engine, jobs[-1])["summary"]
    bench.drive()
    assert phase(bench) == "closed"
    assert {bench.job(job)["state"] for job in jobs} == {"succeeded"}


def test_a_failed_probe_opens_it_for_twice_as_long_up_to_a_cap(bench: Bench) -> None:
    what = flow({**QUICK, "cooldown": "1m", "longest_cooldown": "3m"})
    for _ in range(2):
        run(bench, what)
    since = state(bench)["opened_at"]
    for cooldown in (120, 180, 180):
        cool_down(bench)
        run(bench, what)
        found = state(bench)
        assert (found["state"], found["cooldown"], found["opened_at"]) == ("open", cooldown, since)
    assert found["trips"] == 4


def test_a_killed_worker_with_the_probe_is_not_the_end_of_it(bench: Bench, other: Bench) -> None:
    """H4: the probe's worker dies before it answers; its step is released, and is the probe again."""
    for _ in range(2):
        run(bench, flow())
    job = submit(bench, flow(), "ok")
    cool_down(bench)
    bench.pump()
    assert len(claim(bench.engine, [bench.take()])) == 1
    submit(other, flow(), "ok")
    assert other.drive() == 0, "one at a time"
    release.bury(bench.engine, bench.who.incarnation)
    other.drive()
    assert phase(other) == "closed"
    assert other.job(job)["state"] == "succeeded"


def test_killed_between_the_opening_and_the_reroute(bench: Bench, other: Bench) -> None:
    """Whoever feeds next finds what waits: nothing is kept in memory."""
    for _ in range(2):
        run(bench, flow())
    bench.engine.feed.on_held = lambda _held: None  # it died before it could
    job = run(bench, flow(on_failure=[{"agent": "lite"}]))
    assert bench.steps(job)["a"]["state"] == "ready"
    other.drive()
    assert other.job(job)["output"] == "lite"


def test_published_steps_are_called_back(bench: Bench) -> None:
    """H1: the next call goes elsewhere, although its message was already in the queue."""
    jobs = [submit(bench, flow()) for _ in range(6)]
    bench.pump()
    early, late = bench.dispatcher.refs[:2], bench.dispatcher.refs[2:]
    bench.dispatcher.refs.clear()

    async def both() -> None:
        for ref in early:
            await bench.run(ref)

    asyncio.run(both())
    assert phase(bench) == "open"
    assert claim(bench.engine, late) == {}
    assert [bench.steps(job)["a"]["attempt"] for job in jobs] == [1, 1, 0, 0, 0, 0]
    cool_down(bench)
    bench.drive()
    assert [bench.steps(job)["a"]["attempt"] for job in jobs].count(1) == 3


def test_stragglers_say_nothing_new(bench: Bench) -> None:
    """A call that began before it opened neither closes it when it succeeds nor lengthens the wait when it fails."""
    good, bad = submit(bench, flow(), "ok"), submit(bench, flow(), "fail")
    bench.pump()
    running = {ref.job_id: ref for ref in bench.dispatcher.refs}
    bench.dispatcher.refs.clear()
    mine = claim(bench.engine, list(running.values()))
    for _ in range(2):
        run(bench, flow())
    before = state(bench)
    assert before["state"] == "open"
    cool_down(bench)
    for job in (good, bad):
        claimed = mine[running[job]]
        bench.runner._own(claimed)
        asyncio.run(bench.runner._step(claimed, frozenset()))  # type: ignore[arg-type]
    assert (phase(bench), state(bench)["trips"]) == ("half_open", 1)


def settle_as_away(bench: Bench) -> None:
    """The published step is called, and its host cannot be reached."""
    ref = bench.take()
    row = claim(bench.engine, [ref])[ref].row
    failure = Failure(FailureClass.TRANSIENT, "could not connect")
    settle(bench.engine, [Settle(row.job_id, row.path, row.ref, row.fence, GaveUp(failure))])


def test_a_host_is_shared_by_its_agents(bench: Bench) -> None:
    """H4: per provider; one agent finds that the host is away, the other is not even called."""
    away = "http://me:secret@API.example.com:8443"
    agents = {
        "first": {"kind": "http", "url": f"{away}/first", "breaker": QUICK},
        "second": {"kind": "http", "url": f"{away}/second", "breaker": QUICK},
        "alone": {"kind": "http", "url": f"{away}/alone", "breaker": {**QUICK, "provider": False}},
    }

    def call(agent: str) -> dict[str, Any]:
        return {"name": "t", "agents": agents, "steps": [{"id": "a", "agent": agent, "retry": {"attempts": 1}}]}

    for agent in ("first", "second"):
        submit(bench, call(agent))
        bench.pump()
        settle_as_away(bench)
    assert phase(bench, "host:api.example.com:8443") == "open"
    waits = run(bench, call("second"))
    assert bench.steps(waits)["a"]["attempt"] == 0
    assert "host:api.example.com:8443" in explain(bench.engine, waits)["summary"]
    submit(bench, call("alone"))
    bench.pump()
    settle_as_away(bench)
    cool_down(bench)
    for agent in ("first", "second"):
        submit(bench, call(agent))
    bench.pump()
    assert len(bench.dispatcher.refs) == 1, "one call in all is tried at a host, whichever agent's"


def test_many_settles_at_once_open_it_once(bench: Bench, other: Bench) -> None:
    """H4: two workers fail call after call at the same moment, of two agents of one host: no deadlock, one opening."""
    policy = {"calls": 12, "cooldown": "1m"}
    agents = {
        name: {"kind": "http", "url": f"http://api.example.com/{name}", "breaker": policy} for name in ("one", "two")
    }
    for n in range(40):
        step = {"id": "a", "agent": ("one", "two")[n % 2]}
        bench.submit({"name": "t", "agents": agents, "steps": [step]}, n)
    bench.pump()
    claimed = list(claim(bench.engine, bench.dispatcher.refs).values())
    assert len(claimed) == 40
    gone = GaveUp(Failure(FailureClass.TRANSIENT, "could not connect"))

    def fail_all(worker: Bench, mine: list[Any]) -> int:
        intents = [Settle(c.row.job_id, c.row.path, c.row.ref, c.row.fence, gone) for c in mine]
        return sum(settle(worker.engine, [intent])[0].won for intent in intents)

    with ThreadPoolExecutor(2) as threads:
        done = threads.map(fail_all, (bench, other), (claimed[:20], claimed[20:]))
        assert list(done) == [20, 20]
    listed = {row["name"]: row["trips"] for row in breakers.listing(bench.engine, "default")}
    assert listed == {"one": 1, "two": 1, "host:api.example.com": 1}


def test_somebody_closes_it(bench: Bench) -> None:
    """The reset is written down, with what it undid."""
    for _ in range(2):
        run(bench, flow())
    job = run(bench, flow(), "ok")
    (done,) = breakers.reset(bench.engine, "shaky", by="me", note="rolled back", tenant="default")
    assert done["state"] == "closed"
    breakers.reset(bench.engine, "shaky", by="me")
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"
    (entry,), _ = audit.trail(bench.engine, tenant="default", subject="shaky")
    assert (entry["what"], entry["who"], entry["why"], entry["data"]["was"]) == (
        "breaker.reset",
        "me",
        "rolled back",
        "open",
    )
    for name, tenant in (("nobody", None), ("shaky", "other")):
        with pytest.raises(NotFound):
            breakers.reset(bench.engine, name, by="me", tenant=tenant)


def test_a_tenant_that_submits_by_name_has_its_own(bench: Bench) -> None:
    register(bench.engine, Workflow.model_validate(flow()))
    for _ in range(2):
        by_name(bench.engine, Submission("t", "fail", tenant="acme"))
        bench.drive()
    assert [row["state"] for row in breakers.listing(bench.engine, "acme")] == ["open"]
    by_name(bench.engine, Submission("t", "fail", tenant="acme"))
    assert bench.drive() == 0
    run(bench, flow(), "ok")
    assert breakers.listing(bench.engine, "default") == []


def test_what_no_window_reaches_is_forgotten(bench: Bench) -> None:
    """A process that is gone leaves its counts behind; a scheduler clears them away, and no others."""
    run(bench, flow())
    count = "SELECT count(*) FROM breaker_calls"
    repair = Reconciler(bench.engine)
    repair._tidy_at = 0.0
    repair.tick()
    assert bench.db.run(lambda s: s.value(count)) == 1
    bench.db.run(lambda s: s.execute("UPDATE breaker_calls SET at = {now} - 7300"))
    repair._tidy_at = 0.0
    repair.tick()
    assert bench.db.run(lambda s: s.value(count)) == 0


def test_an_agent_without_a_breaker_asks_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A breaker's tables are not touched by the work of agents that have none."""
    with bench.db.connect(readonly=True) as session:
        kind = type(session)
    execute, statements = kind.execute, []

    def heard(self: Any, sql: str, values: Any = None) -> Any:
        statements.append(sql)
        return execute(self, sql, values)

    monkeypatch.setattr(kind, "execute", heard)
    plain = flow()
    del plain["agents"]["shaky"]["breaker"]
    run(bench, plain)
    run(bench, plain, "ok")
    assert statements
    assert [sql for sql in statements if "breaker" in sql] == []
    assert bench.db.run(lambda s: feed_sql.allowances(s, s.rows(*feed_sql.ASKING_FOR_LIMITS))).of == {}
