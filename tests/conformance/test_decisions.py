"""In doubt, reconciled, decided: a call that may have taken effect is never made again before somebody knows."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.errors import Conflict, InvalidInput, NotFound
from orchestrator.domain.ids import JobId
from orchestrator.domain.outcome import Failure, FailureClass, Stored
from orchestrator.domain.result import Cancelled, Doubted, Succeeded
from orchestrator.engine import audit, cancel, dead_letters, decisions, explain, queries
from orchestrator.engine.release import release_lost
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.store import desk, jobs, steps
from tests.support.bench import Bench

UNKNOWN = {"fail": {"class": "timeout", "outcome_known": False}}
GOOD = {"type": "object", "required": ["id"], "properties": {"id": {"type": "integer"}}}
HAPPENED, NOT_HAPPENED = {"output": {"happened": True, "output": {"id": 7}}}, {"output": {"happened": False}}


def blind(*script: Any, **more: Any) -> dict[str, Any]:
    """An agent with an effect that ignores the key."""
    return {"kind": "scripted", "script": list(script), "effect": "reversible", "honours_key": False, **more}


def flow(agent: dict[str, Any], **step: Any) -> dict[str, Any]:
    steps = [{"id": "a", "agent": "it", **step}, {"id": "b", "agent": "echo"}]
    return {"name": "t", "agents": {"it": agent, "echo": {"kind": "scripted"}}, "steps": steps}


def asked(bench: Bench, job: JobId) -> dict[str, Any]:
    """The one open question of a job."""
    (wait,), following = decisions.listing(bench.engine, tenant="default", job=job)
    assert following is None
    return wait


def types(bench: Bench, job: JobId) -> list[str]:
    return [event["type"] for event in bench.events(job)]


def keys(bench: Bench, job: JobId) -> list[tuple[str, int]]:
    return [(a["outcome"], a["generation"]) for a in queries.list_attempts(bench.engine, job) if a["path"] == "a"]


# -- a person decides


def test_a_call_that_may_have_happened_waits_for_a_person(bench: Bench) -> None:
    """P4: nothing is called again, the job says what it waits for, and holds no slot meanwhile."""
    job = bench.submit(flow(blind(UNKNOWN, {"output": {"id": 1}})), 1)
    bench.drive()
    assert bench.job(job)["state"] == "waiting"
    step = bench.steps(job)["a"]
    assert (step["state"], step["worker"], step["failure"]["class"]) == ("in_doubt", None, "in_doubt")
    wait = asked(bench, job)
    assert (wait["reason"], wait["decisions"]) == ("in_doubt", ["happened", "not_happened", "fail"])
    assert wait["question"]["key"].endswith(":1")
    assert (wait["question"]["agent"], wait["question"]["attempts"]) == ("it", 1)
    assert types(bench, job)[-2:] == ["step.in_doubt", "wait.opened"]
    assert bench.events(job)[-1]["data"]["wait"] == wait["id"]
    shown = decisions.get(bench.engine, wait["id"], "default")
    assert [attempt["outcome"] for attempt in shown["attempts"]] == ["failed"]


def test_it_had_happened_ends_the_step_with_the_persons_output(bench: Bench) -> None:
    job = bench.submit(flow(blind(UNKNOWN), output_schema=GOOD), 1)
    bench.drive()
    wait = asked(bench, job)["id"]
    with pytest.raises(InvalidInput, match="misses its schema"):
        decisions.decide(bench.engine, wait, "happened", by="ann", output={"id": "seven"})
    closed = decisions.decide(bench.engine, wait, "happened", by="ann", output={"id": 7}, note="saw it")
    assert (closed["state"], closed["decided_by"], closed["decision"]) == ("decided", "ann", "happened")
    assert bench.job(job)["state"] == "running"
    bench.drive()
    assert bench.job(job)["output"] == {"id": 7}
    assert keys(bench, job) == [("failed", 1)]
    decided = next(event["data"] for event in bench.events(job) if event["type"] == "wait.decided")
    assert decided == {"wait": wait, "decision": "happened", "by": "ann", "note": "saw it"}
    entries, _ = audit.trail(bench.engine, tenant="default", subject=wait)
    assert [(e["what"], e["who"], e["why"], e["data"]["decision"]) for e in entries] == [
        ("wait.decided", "ann", "saw it", "happened")
    ]


def test_it_had_not_happened_runs_it_again_under_a_new_key(bench: Bench) -> None:
    job = bench.submit(flow(blind(UNKNOWN, {"output": {"id": 1}})), 1)
    bench.drive()
    decisions.decide(bench.engine, asked(bench, job)["id"], "not_happened", by="ann")
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"
    assert keys(bench, job) == [("failed", 1), ("succeeded", 2)]


def test_to_give_up_parks_the_job_and_a_replay_asks_again(bench: Bench) -> None:
    """P4: even a replay does not repeat a call of which nobody knows."""
    job = bench.submit(flow(blind(UNKNOWN, {"output": {"id": 1}})), 1)
    bench.drive()
    decisions.decide(bench.engine, asked(bench, job)["id"], "fail", by="ann")
    assert bench.job(job)["failure"]["class"] == "in_doubt"
    letter = bench.db.run(lambda s: desk.letters(s, tenant="default"))[0]
    assert letter["reason"] == "in_doubt"
    dead_letters.replay(bench.engine, letter["id"], by="ann")
    bench.drive()
    assert bench.steps(job)["a"]["state"] == "in_doubt"
    decisions.decide(bench.engine, asked(bench, job)["id"], "not_happened", by="ann")
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"
    assert keys(bench, job) == [("failed", 1), ("reconciled", 1), ("succeeded", 2)]


def test_the_first_decision_counts_and_the_second_hears_of_it(bench: Bench) -> None:
    """U2: a late decision changes nothing."""
    job = bench.submit(flow(blind(UNKNOWN, {"output": {"id": 1}})), 1)
    bench.drive()
    wait = asked(bench, job)["id"]
    with pytest.raises(InvalidInput, match="One of: happened, not_happened, fail"):
        decisions.decide(bench.engine, wait, "answer", by="ann")
    with pytest.raises(InvalidInput, match="takes no output"):
        decisions.decide(bench.engine, wait, "fail", by="ann", output=1)
    with pytest.raises(NotFound):
        decisions.decide(bench.engine, wait, "fail", by="ann", tenant="other")
    decisions.decide(bench.engine, wait, "happened", by="ann", output={"id": 7})
    with pytest.raises(Conflict, match=r"ann has decided .*: happened"):
        decisions.decide(bench.engine, wait, "not_happened", by="bob")
    bench.drive()
    assert bench.job(job)["output"] == {"id": 7}


def test_a_late_answer_of_a_lost_worker_is_refused(bench: Bench) -> None:
    """Its worker is buried in mid-call: in doubt, and what it still says comes too late."""
    job = bench.submit(flow(blind({"output": {"id": 1}})), 1)

    bench.pump()
    root = claim(bench.engine, [bench.take()])
    assert root
    row = next(iter(root.values())).row
    bench.db.run(lambda session: steps.mark_begun(session, row))
    row.begun = True
    assert release_lost(bench.engine, [row]) == 1
    late = Settle(job, row.path, row.ref, row.fence, Succeeded(Stored('{"id": 1}')))
    assert settle(bench.engine, [late])[0].won is False
    assert bench.steps(job)["a"]["state"] == "in_doubt"
    assert types(bench, job)[-3:] == ["step.lost", "step.in_doubt", "wait.opened"]
    decisions.decide(bench.engine, asked(bench, job)["id"], "happened", by="ann")
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"


# -- the agent's reconciler


def test_the_reconciler_knows_that_it_happened(bench: Bench) -> None:
    job = bench.submit(flow(blind(UNKNOWN, reconcile=[HAPPENED]), output_schema=GOOD), 1)
    bench.drive()
    assert bench.job(job)["output"] == {"id": 7}
    told = [e["data"] for e in bench.events(job) if e["type"] == "step.reconciled"]
    assert [(t["happened"], t["key"][-2:]) for t in told] == [(True, ":1")]
    assert keys(bench, job) == [("failed", 1), ("succeeded", 1)]


def test_the_reconciler_knows_that_it_did_not(bench: Bench) -> None:
    """A known failure follows the policy: again, under a new key."""
    retry = {"initial": "1ms", "max": "1ms"}
    agent = blind(UNKNOWN, {"output": 0}, {"output": {"id": 2}}, reconcile=[NOT_HAPPENED], retry=retry)
    job = bench.submit(flow(agent), 1)
    while bench.job(job)["state"] != "succeeded":
        bench.drive()
    assert bench.job(job)["output"] == {"id": 2}
    assert keys(bench, job) == [("failed", 1), ("reconciled", 1), ("succeeded", 2)]


def test_not_happened_again_and_again_ends_with_the_policy(bench: Bench) -> None:
    retry = {"attempts": 3, "initial": "1ms", "max": "1ms"}
    job = bench.submit(flow(blind(UNKNOWN, reconcile=[NOT_HAPPENED], retry=retry), on_failure=[{"value": 0}]), 1)
    while bench.job(job)["state"] != "succeeded":
        bench.drive()
    assert bench.job(job)["output"] == 0
    assert keys(bench, job) == [(outcome, key) for key in (1, 2, 3) for outcome in ("failed", "reconciled")]


@pytest.mark.parametrize(
    "says",
    [
        {"output": {"happened": None}},
        {"output": "yes"},
        {"output": {"happened": True, "output": {"id": "x"}}},
        {"fail": {"class": "permanent"}},
    ],
)
def test_a_reconciler_that_cannot_tell_leaves_it_to_a_person(bench: Bench, says: Any) -> None:
    job = bench.submit(flow(blind(UNKNOWN, reconcile=[says]), output_schema=GOOD), 1)
    bench.drive()
    wait = asked(bench, job)
    assert wait["reason"] == "in_doubt"
    assert ("reconcile" in wait["question"]) == (says != {"output": {"happened": None}})
    decisions.decide(bench.engine, wait["id"], "happened", by="ann", output={"id": 7})
    bench.drive()
    assert bench.job(job)["output"] == {"id": 7}


def test_a_reconciler_is_asked_again_by_the_retry_policy(bench: Bench) -> None:
    retry = {"attempts": 2, "initial": "1ms", "max": "1ms"}
    agent = blind(UNKNOWN, reconcile=[{"fail": {"class": "transient"}}, HAPPENED], retry=retry)
    job = bench.submit(flow(agent), 1)
    while bench.job(job)["state"] != "succeeded":
        bench.drive()
    assert keys(bench, job) == [("failed", 1), ("failed", 1), ("succeeded", 1)]


def test_a_worker_lost_while_asking_asks_again(bench: Bench) -> None:
    """To ask is to read: its loss puts nothing in doubt."""

    job = bench.submit(flow(blind(UNKNOWN, reconcile=[HAPPENED])), 1)
    bench.pump()
    row = next(iter(claim(bench.engine, [bench.take()]).values())).row
    was = Failure(FailureClass.TIMEOUT, "late", outcome_known=False)
    doubted = Doubted(Failure(FailureClass.IN_DOUBT, "late", outcome_known=False), was)
    assert settle(bench.engine, [Settle(job, row.path, row.ref, row.fence, doubted)])[0].won
    assert bench.steps(job)["a"]["state"] == "ready"
    bench.pump()
    again = next(iter(claim(bench.engine, [bench.take()]).values())).row
    assert again.doubt is not None
    assert release_lost(bench.engine, [again]) == 1
    bench.drive()
    assert bench.job(job)["output"] == {"id": 7}


# -- escalate


def test_a_step_that_gave_up_becomes_a_question_and_the_answer_completes_it(bench: Bench) -> None:
    """E4: the inbox names the group; the person's output goes on as the step's."""
    agent = {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "no"}}]}
    job = bench.submit(flow(agent, on_failure=[{"escalate": "legal"}], output_schema=GOOD), 1)
    bench.drive()
    wait = asked(bench, job)
    assert (wait["reason"], wait["assignees"], wait["path"]) == ("escalate", ["legal"], "a")
    assert wait["decisions"] == ["answer", "retry", "fail"]
    assert (bench.steps(job)["a"]["state"], bench.job(job)["state"]) == ("waiting", "waiting")
    with pytest.raises(InvalidInput, match="misses its schema"):
        decisions.decide(bench.engine, wait["id"], "answer", by="ann")
    decisions.decide(bench.engine, wait["id"], "answer", by="ann", output={"id": 3})
    bench.drive()
    assert bench.job(job)["output"] == {"id": 3}


def test_a_person_may_have_it_tried_again_from_its_own_agent(bench: Bench) -> None:
    """E4: retry begins anew, with the first agent and every entry of on_failure."""
    it = flow(
        {"kind": "scripted", "script": [{"fail": {"class": "permanent"}}] * 2 + [{"output": "own"}]},
        on_failure=[{"agent": "lite"}, {"escalate": "legal"}],
    )
    it["agents"]["lite"] = {"kind": "scripted", "script": [{"fail": {"class": "permanent"}}]}
    job = bench.submit(it, 1)
    bench.drive()
    decisions.decide(bench.engine, asked(bench, job)["id"], "retry", by="ann")
    bench.drive()
    assert bench.job(job)["output"] == "own"
    assert keys(bench, job) == [("failed", 1), ("failed", 2), ("succeeded", 3)]


def test_a_person_may_let_it_fail(bench: Bench) -> None:
    agent = {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "no"}}]}
    job = bench.submit(flow(agent, on_failure=[{"escalate": "legal"}]), 1)
    bench.drive()
    decisions.decide(bench.engine, asked(bench, job)["id"], "fail", by="ann")
    view = bench.job(job)
    assert (view["state"], view["failure"]["class"]) == ("failed", "permanent")


# -- what else happens meanwhile

BROKEN = {"kind": "scripted", "script": [{"fail": {"class": "permanent"}}]}


def test_a_cancel_closes_the_question(bench: Bench) -> None:
    job = bench.submit(flow(BROKEN, on_failure=[{"escalate": "legal"}]), 1)
    bench.drive()
    wait = asked(bench, job)["id"]
    cancel.cancel(bench.engine, job)
    assert (bench.job(job)["state"], bench.steps(job)["a"]["state"]) == ("cancelled", "cancelled")
    assert decisions.get(bench.engine, wait)["state"] == "cancelled"
    with pytest.raises(Conflict, match="cancelled"):
        decisions.decide(bench.engine, wait, "fail", by="ann")


def test_a_failed_neighbour_closes_it_and_a_replay_asks_before_it_calls(bench: Bench) -> None:
    """P4: a call in doubt whose step was cancelled is not made again by the replay of another."""
    agents = {"blind": blind(UNKNOWN, {"output": 1}), "broken": BROKEN}
    agents["late"] = {"kind": "scripted", "script": [{"delay": "300ms", "output": 1}]}
    later = [{"id": "slow", "agent": "late"}, {"id": "last", "agent": "broken"}]
    both = [{"id": "p", "parallel": {"x": {"agent": "blind"}, "y": later}}]
    job = bench.submit({"name": "t", "agents": agents, "steps": both}, 1)
    bench.drive()
    assert bench.job(job)["state"] == "failed"
    assert [w["state"] for w in decisions.listing(bench.engine, tenant=None, state="all")[0]] == ["cancelled"]
    letter = bench.db.run(lambda s: desk.letters(s, tenant="default"))[0]
    dead_letters.replay(bench.engine, letter["id"], by="ann")
    bench.drive()
    called = [a for a in queries.list_attempts(bench.engine, job) if a["path"] == "p/x"]
    assert [(a["outcome"], a["generation"]) for a in called if a["outcome"] != "reconciled"] == [("failed", 1)]


def test_a_call_that_was_cut_off_is_remembered_as_a_doubt(bench: Bench) -> None:
    """P4: a live call of a scope that stops is cut in the middle, and nobody knows what became of it."""
    job = bench.submit(flow(blind({"output": 1})), 1)
    bench.pump()
    row = next(iter(claim(bench.engine, [bench.take()]).values())).row
    bench.db.run(lambda session: steps.mark_begun(session, row))
    cancel.cancel(bench.engine, job)
    assert settle(bench.engine, [Settle(job, row.path, row.ref, row.fence, Cancelled())])[0].won
    assert bench.job(job)["state"] == "cancelled"
    (left,) = bench.db.run(lambda session: steps.load(session, job, [row.path]))
    assert left.doubt is not None
    assert (left.doubt.agent, left.doubt.failure.outcome_known) == ("it", False)


def test_the_deadline_does_not_run_while_a_person_is_asked(bench: Bench) -> None:
    """SEMANTICS: waits extend it, by as long as they took."""
    job = bench.submit(flow(BROKEN, on_failure=[{"escalate": "legal"}]), 1, deadline=3600.0)
    bench.drive()
    before = bench.job(job)["deadline_at"]
    bench.db.run(
        lambda s: s.execute(
            "UPDATE jobs SET deadline_at = deadline_at - 7200, waiting_since = waiting_since - 7200 WHERE id = :id",
            {"id": job},
        )
    )

    assert bench.db.run(jobs.overdue) == []
    cancel.expire(bench.engine, job)
    assert bench.job(job)["state"] == "waiting"
    decisions.decide(bench.engine, asked(bench, job)["id"], "answer", by="ann", output=1)
    assert bench.job(job)["deadline_at"] >= before
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"


def test_the_job_waits_only_while_nothing_else_moves(bench: Bench) -> None:
    """Two questions in a fan-out with one member at work: running, then waiting, then running again."""
    agents = {"broken": BROKEN}
    ask = {"agent": "broken", "on_failure": [{"escalate": "legal"}]}
    both = [{"id": "p", "parallel": {"x": ask, "y": ask}}]
    job = bench.submit({"name": "t", "agents": agents, "steps": both}, 1)
    bench.pump()
    while bench.job(job)["state"] != "waiting":
        waits = decisions.listing(bench.engine, tenant=None)[0]
        assert len(waits) < 2
        assert bench.drive(1) > 0
    first, second = decisions.listing(bench.engine, tenant=None)[0]
    decisions.decide(bench.engine, first["id"], "answer", by="ann", output="one")
    assert bench.job(job)["state"] == "waiting"
    decisions.decide(bench.engine, second["id"], "answer", by="ann", output="two")
    assert bench.job(job)["state"] == "running"
    bench.drive()
    assert sorted(bench.job(job)["output"].values()) == ["one", "two"]


def test_a_page_of_the_inbox_goes_on_where_the_last_one_ended(bench: Bench) -> None:
    for _ in range(5):
        bench.submit(flow(BROKEN, on_failure=[{"escalate": "legal"}]), 1)
    bench.drive()
    seen: list[str] = []
    cursor: str | None = None
    while True:
        found, cursor = decisions.listing(bench.engine, tenant="default", cursor=cursor, limit=2)
        seen += [row["id"] for row in found]
        if cursor is None:
            break
    assert len(seen) == len(set(seen)) == 5
    with pytest.raises(InvalidInput):
        decisions.listing(bench.engine, tenant="default", cursor="nonsense")


def test_explain_names_the_question_and_what_would_move_it(bench: Bench) -> None:
    job = bench.submit(flow(BROKEN, on_failure=[{"escalate": "legal"}]), 1)
    doubtful = bench.submit(flow(blind(UNKNOWN)), 1)
    bench.drive()
    (cause,) = explain.explain(bench.engine, job)["causes"]
    wait = asked(bench, job)["id"]
    assert (cause["code"], cause["path"], cause["detail"]["assignees"]) == ("decision", "a", ["legal"])
    assert cause["moved_by"].startswith(f"orchestrator decisions decide {wait} ")
    (cause,) = explain.explain(bench.engine, doubtful)["causes"]
    assert cause["code"] == "in_doubt"
    assert cause["detail"]["key"].endswith(":1")
