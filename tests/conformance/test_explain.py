"""Why a job does not move, and how far it is: one answer, from SQL alone, whatever it waits for (K7)."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from orchestrator.domain.errors import NotFound
from orchestrator.domain.ids import Incarnation, JobId
from orchestrator.domain.outcome import Failure, FailureClass, Stored
from orchestrator.domain.result import GaveUp, Retrying, Succeeded
from orchestrator.engine import cancel, dead_letters, presence
from orchestrator.engine.causes import span
from orchestrator.engine.explain import explain
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.store import desk, feed, workers
from tests.support.bench import Bench

DONE = Succeeded(Stored("1"))
LIMITED = {"kind": "scripted", "limits": {"concurrency": 2}}


def workflow(steps: list[Any], **agents: Any) -> dict[str, Any]:
    return {"name": "t", "agents": {"echo": {"kind": "scripted"}, **agents}, "steps": steps}


ONE = workflow([{"id": "a", "agent": "echo"}])


def causes(bench: Bench, job: JobId) -> dict[str, dict[str, Any]]:
    found = explain(bench.engine, job)
    assert found["summary"] == found["causes"][0]["says"]
    assert all(cause["says"] and cause["moved_by"] for cause in found["causes"])
    return {cause["code"]: cause for cause in found["causes"]}


def leave(bench: Bench) -> None:
    bench.db.run(lambda session: workers.leave(session, bench.who.incarnation))


def take(bench: Bench) -> Any:
    bench.pump()
    ref = bench.take()
    return claim(bench.engine, [ref])[ref]


def open_first(bench: Bench) -> None:
    """Runs the first step published, which opens a fan-out, and no other; then publishes what may be."""
    bench.pump()
    bench.runner.in_place.steps = 1
    asyncio.run(bench.run(bench.take()))
    bench.pump()


def settle_as(bench: Bench, mine: Any, result: Any) -> None:
    row = mine.row
    assert settle(bench.engine, [Settle(row.job_id, row.path, row.ref, row.fence, result)])[0].won


def test_no_worker_takes_its_queue(bench: Bench) -> None:
    leave(bench)
    job = bench.submit(ONE, 1)
    found = causes(bench, job)["no_worker"]
    assert found["detail"]["queue"] == "default"
    assert found["moved_by"] == "orchestrator worker -Q default"
    assert found["since"] == pytest.approx(bench.job(job)["created_at"], abs=5)


def test_a_worker_that_only_drains_is_none(bench: Bench) -> None:
    presence.beat(bench.engine, bench.who, busy=0, lost_slots=0, draining=True)
    found = causes(bench, bench.submit(ONE, 1))["no_worker"]
    assert found["detail"]["draining"] == 1
    assert "draining" in found["says"]


def test_published_and_not_taken(bench: Bench) -> None:
    job = bench.submit(ONE, 1)
    bench.pump()
    found = causes(bench, job)["published"]
    assert (found["steps"], found["detail"]["slots"]) == (1, 1000)
    number = bench.db.run(lambda session: feed.next_marker(session, "default"))  # type: ignore[arg-type]
    bench.db.run(lambda session: feed.marker_seen(session, "default", number))  # type: ignore[arg-type]
    assert "lost" in causes(bench, job)["message_lost"]["says"]


def test_in_line_behind_other_jobs(bench: Bench) -> None:
    presence.join(bench.engine, presence.Registration(Incarnation("one"), "one", "worker", ("narrow",), 1, "test"))
    narrow = workflow([{"id": "a", "agent": "slow"}], slow={"kind": "scripted", "queue": "narrow"})
    jobs = [bench.submit(narrow, n) for n in range(6)]
    bench.pump()
    found = causes(bench, jobs[-1])["backlog"]
    assert found["detail"] == {"queue": "narrow", "others": 5, "published": 2, "slots": 1, "busy": 0}
    assert "in line with 5" in found["says"]


def test_a_limit_is_full_and_by_whom(bench: Bench) -> None:
    flow = workflow([{"id": "f", "for_each": "${{ input }}", "do": {"agent": "few"}}], few=LIMITED)
    greedy = bench.submit(flow, [1, 2, 3])
    open_first(bench)
    other = bench.submit(workflow([{"id": "a", "agent": "few"}], few=LIMITED), 1)
    bench.pump()
    found = causes(bench, other)["agent_limit"]
    assert (found["detail"]["used"], found["detail"]["concurrency"]) == (2, 2)
    assert found["detail"]["by"] == [{"job": greedy, "running": 0, "published": 2}]
    assert f"job {greedy}" in found["says"]


def test_an_agent_is_paused_after_429(bench: Bench) -> None:
    job = bench.submit(ONE, 1)
    bench.db.run(lambda session: feed.pause_agent(session, "default", "echo", 60))
    found = causes(bench, job)["agent_paused"]
    assert 50 < found["until"] - explain(bench.engine, job)["now"] <= 60


def test_a_retry_waits_for_its_timer(bench: Bench) -> None:
    job = bench.submit(ONE, 1)
    failure = Failure(FailureClass.TRANSIENT, "the endpoint is away")
    settle_as(bench, take(bench), Retrying(failure, delay=30.0, new_key=False))
    found = causes(bench, job)["retry_timer"]
    assert "after 1 of 4 tries" in found["says"]
    assert "transient: the endpoint is away" in found["says"]
    assert 20 < found["until"] - explain(bench.engine, job)["now"] <= 30


def test_a_call_is_running(bench: Bench) -> None:
    job = bench.submit(ONE, 1)
    take(bench)
    found = causes(bench, job)["running"]
    assert found["detail"]["worker"] == "bench-1"
    assert found["detail"]["heartbeat_age"] < 10
    assert found["until"] == pytest.approx(found["since"] + 600)
    assert found["moved_by"].endswith(f"orchestrator jobs cancel {job}")
    cancel.cancel(bench.engine, job)
    assert "waits for the calls that are live" in causes(bench, job)["stopping"]["says"]


def test_a_lease_has_expired(bench: Bench) -> None:
    job = bench.submit(ONE, 1)
    mine = take(bench)
    bench.db.run(lambda session: session.execute("UPDATE steps SET lease_until = {now} - 1 WHERE state = 'running'"))
    assert "bench-1" in causes(bench, job)["lease_expired"]["says"]
    settle_as(bench, mine, GaveUp(Failure(FailureClass.PERMANENT, "x")))


def test_members_are_held_by_max_concurrency(bench: Bench) -> None:
    step = {"id": "f", "for_each": "${{ input }}", "do": {"agent": "echo"}, "max_concurrency": 2}
    job = bench.submit(workflow([step]), list(range(9)))
    open_first(bench)
    found = causes(bench, job)["held"]
    assert (found["steps"], found["detail"]) == (7, {"max_concurrency": 2, "within": "f"})


def test_failed_names_its_letter_and_the_command(bench: Bench) -> None:
    job = bench.submit(ONE, 1)
    settle_as(bench, take(bench), GaveUp(Failure(FailureClass.PERMANENT, "no such clause")))
    (letter,) = bench.db.run(lambda session: desk.letters(session, tenant="default"))
    found = causes(bench, job)["failed"]
    assert found["moved_by"] == f"orchestrator dead-letters replay {letter['id']}"
    assert "permanent: no such clause" in found["says"]
    dead_letters.discard(bench.engine, letter["id"], by="me")
    found = causes(bench, job)["failed"]
    assert found["moved_by"] == f"orchestrator dead-letters undiscard {letter['id']}"
    dead_letters.undiscard(bench.engine, letter["id"], by="me")
    assert causes(bench, job)["failed"]["detail"]["letter_state"] == "open"


def test_ended_jobs_say_so(bench: Bench) -> None:
    done, cancelled = bench.submit(ONE, 1), bench.submit(ONE, 2)
    cancel.cancel(bench.engine, cancelled)
    bench.drive()
    assert list(causes(bench, done)) == ["succeeded"]
    assert list(causes(bench, cancelled)) == ["cancelled"]
    for tenant, job in (("other", done), (None, JobId("nobody"))):
        with pytest.raises(NotFound):
            explain(bench.engine, job, tenant)


def test_ten_thousand_steps_take_seven_statements(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """O3: the answer's cost does not grow with what the job has done."""
    step = {"id": "f", "for_each": "${{ input }}", "do": {"agent": "few"}, "max_concurrency": 5000}
    job = bench.submit(workflow([step], few=LIMITED), list(range(10_000)))
    open_first(bench)
    with bench.db.connect(readonly=True) as session:
        kind = type(session)
    execute, statements = kind.execute, []

    def counted(self: Any, sql: str, values: Any = None) -> Any:
        statements.append(sql)
        return execute(self, sql, values)

    monkeypatch.setattr(kind, "execute", counted)
    began = bench.clock.perf()
    found = causes(bench, job)
    took = bench.clock.perf() - began
    print(f"explain of 10,000 steps: {took * 1000:.0f} ms, {len(statements)} statements")
    assert len(statements) <= 7
    assert took < 2.0
    assert found["held"]["steps"] == 5000
    assert found["agent_limit"]["steps"] + found["published"]["steps"] == 5000


GRAPH = workflow(
    [
        {"id": "a", "agent": "echo", "needs": []},
        {"id": "b", "agent": "echo", "needs": []},
        {"id": "each", "for_each": "[1, 2, 3]", "do": {"agent": "echo"}, "needs": ["a"]},
        {"id": "end", "agent": "echo", "needs": ["each", "b"]},
    ]
)


def taking(bench: Bench, job: JobId, **times: tuple[float, float | None]) -> None:
    """Writes when steps began and ended, in seconds since the submit; ``_`` stands for ``/`` in a path."""
    for name, (began, ended) in times.items():
        bench.db.run(
            lambda session, name=name, began=began, ended=ended: session.execute(  # type: ignore[misc]
                "UPDATE steps SET first_started_at = created_at + :began, finished_at = created_at + :ended FROM"
                " (SELECT id, created_at FROM jobs) j WHERE j.id = job_id AND job_id = :job AND path = :path",
                {"job": job, "path": name.replace("_", "/"), "began": began, "ended": ended},
            )
        )


def test_a_run_in_one_view(bench: Bench) -> None:
    """B5, W5: state, age, heartbeat, progress, the critical path call by call, and what is blocked by what."""
    job = bench.submit(GRAPH, 1)
    bench.pump()
    refs = {ref.path: ref for ref in bench.dispatcher.refs}
    bench.dispatcher.refs.clear()
    mine = {path: claim(bench.engine, [ref])[ref] for path, ref in refs.items()}
    found = explain(bench.engine, job)
    assert found["state"] == "running"
    assert found["progress"] == {"done": 0, "total": 3, "states": {"pending": 1, "running": 2}}
    assert 0 <= found["age"] < 60
    assert found["causes"][0]["detail"]["heartbeat_age"] < 10
    assert found["holds_most"] == {"path": "a", "state": "running", "calls": 2}
    assert found["blocked"] == [{"path": "each", "by": ["a"]}, {"path": "end", "by": ["each", "b"]}]
    settle_as(bench, mine["a"], DONE)
    taking(bench, job, a=(0, 1000))
    found = explain(bench.engine, job)
    assert found["progress"]["done"] == 1
    assert [step["path"] for step in found["critical_path"]["steps"]] == ["a"]
    settle_as(bench, mine["b"], DONE)
    bench.drive()
    taking(bench, job, a=(1, 3), b=(1, 6), each_0=(3, 4), each_1=(3, 7), each_2=(3, 5), end=(7, 8))
    found = explain(bench.engine, job)
    path = found["critical_path"]
    assert [(step["path"], round(step["seconds"])) for step in path["steps"]] == [("a", 2), ("each/1", 4), ("end", 1)]
    assert path["seconds"] == pytest.approx(7)
    assert found["progress"] == {"done": 6, "total": 6, "states": {"succeeded": 6}}
    assert (found["holds_most"], found["blocked"]) == (None, [])


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (12.3, "12 s"), (600, "10 min"), (7500, "2 h 5 min"), (400_000, "4 d")]
)
def test_spans_are_short(seconds: float, text: str) -> None:
    assert span(seconds) == text
