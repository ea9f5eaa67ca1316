"""What a process remembers of a job it goes on with: never believed against what happened meanwhile."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator.domain.ids import JobId, StepPath
from orchestrator.domain.outcome import Stored
from orchestrator.domain.result import Succeeded
from orchestrator.engine import cancel, release
from orchestrator.engine import settle as engine_settle
from orchestrator.engine.gather import Claimed
from orchestrator.engine.recent import KEEP, TOO_OLD, Recent
from orchestrator.engine.settle import Settle, Settled, claim, settle
from orchestrator.store import steps
from tests.support.bench import Bench
from tests.support.bench import bench as bench_on
from tests.support.clocks import HandClock
from tests.support.listening import listening

ECHO = {"echo": {"kind": "scripted"}}


def line(*names: str) -> dict[str, Any]:
    return {"name": "t", "agents": ECHO, "steps": [{"id": name, "agent": "echo"} for name in names]}


def begun(bench: Bench, flow: dict[str, Any], input: Any = None) -> Claimed:
    """The first step of a new job, claimed."""
    bench.submit(flow, input)
    bench.pump()
    return next(iter(claim(bench.engine, [bench.take()]).values()))


def done(bench: Bench, mine: Claimed) -> Settled:
    row = mine.row
    intent = Settle(
        row.job_id, row.path, row.ref, row.fence, Succeeded(Stored("1")), continue_on=frozenset({"default"})
    )
    return settle(bench.engine, [intent])[0]


def next_of(settled: Settled) -> Claimed:
    assert settled.won
    assert settled.next is not None
    return settled.next


def test_a_line_is_read_once_and_written_in_one_trip_a_step(bench: Bench) -> None:
    second = next_of(done(bench, begun(bench, line("a", "b", "c", "d"))))
    with listening() as heard:
        third = next_of(done(bench, second))
    assert not any(sql.lstrip().startswith("SELECT") for sql in heard.said)
    assert heard.trips == (1 if bench.db.dialect.name == "postgresql" else len(heard.said))
    last = next_of(done(bench, third))
    assert done(bench, last).won
    assert bench.job(last.row.job_id)["state"] == "succeeded"
    bench.check()


def test_a_cancel_between_two_steps_is_seen(bench: Bench) -> None:
    second = next_of(done(bench, begun(bench, line("a", "b", "c"))))
    job = second.row.job_id
    cancel.cancel(bench.engine, job)
    settled = done(bench, second)
    assert settled.won
    assert settled.next is None
    assert bench.job(job)["state"] == "cancelled"
    assert {path: step["state"] for path, step in bench.steps(job).items() if path} == {
        "a": "succeeded",
        "b": "succeeded",
        "c": "cancelled",
    }
    bench.check()


def test_a_cancel_of_the_last_step_is_seen(bench: Bench) -> None:
    """No step's state or fence tells: only the number of the job's events does."""
    last = next_of(done(bench, begun(bench, line("a", "b"))))
    cancel.cancel(bench.engine, last.row.job_id)
    assert done(bench, last).won
    assert bench.job(last.row.job_id)["state"] == "cancelled"
    bench.check()


def test_a_lease_that_was_lost_meanwhile_is_seen(bench: Bench) -> None:
    """The number of events is the same; the fence of the step is not."""
    second = next_of(done(bench, begun(bench, line("a", "b", "c"))))
    job = second.row.job_id
    rows = bench.db.run(lambda session: steps.load(session, job, [StepPath("b")]))
    assert release.release_lost(bench.engine, rows) == 1
    before = bench.steps(job)
    assert not done(bench, second).won
    assert bench.steps(job) == before
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"
    bench.check()


@pytest.mark.parametrize(("items", "remembered"), [("[1, 2]", 0), ("[1]", 1)])
def test_beside_others_nothing_is_remembered(bench: Bench, items: str, remembered: int) -> None:
    """The other branch is left to whoever comes; a branch that is the only one has nobody beside it."""
    around = {"id": "f", "for_each": items, "do": [{"id": "x", "agent": "echo"}, {"id": "y", "agent": "echo"}]}
    first = next_of(done(bench, begun(bench, {"name": "t", "agents": ECHO, "steps": [*line("a")["steps"], around]})))
    assert first.row.path == "f/0/x"
    assert len(bench.engine.recent) == remembered
    bench.runner.stop((first.row.job_id, first.row.path, first.row.fence), lost=True)
    rows = bench.db.run(lambda session: steps.load(session, first.row.job_id, [first.row.path]))
    release.release_lost(bench.engine, rows)
    bench.drive()
    assert bench.job(first.row.job_id)["state"] == "succeeded"
    bench.check()


def test_what_is_old_or_too_much_is_forgotten(bench: Bench) -> None:
    second = next_of(done(bench, begun(bench, line("a", "b"))))
    known = bench.engine.recent.take(second.row.job_id, bench.clock.monotonic())
    assert known is not None
    recent = Recent()
    for number in range(KEEP + 1):
        known.job.id = JobId(str(number))
        recent.keep(known.job, known.rows.values(), at=100.0)
    assert len(recent) == KEEP
    assert recent.take(JobId("0"), 100.0) is None
    assert recent.take(JobId("1"), 100.0 + TOO_OLD) is None
    assert recent.take(JobId("2"), 100.0) is not None
    assert recent.take(JobId("2"), 100.0) is None


def test_the_databases_time_is_told_by_a_claims_answer_not_by_what_comes_after(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan to compile, a module to import: a fresh process is slow after its first claim."""
    clock, gather = HandClock(), engine_settle.gather

    def slow(*args: Any, **more: Any) -> Any:
        clock.at += 5.0
        return gather(*args, **more)

    with bench_on(url, clock=clock) as it, monkeypatch.context() as patched:
        patched.setattr(engine_settle, "gather", slow)
        started = begun(it, line("a")).row.started_at
        assert it.engine.recent.now(clock.at) == pytest.approx(started + 5.0)


def test_the_databases_time_is_told_by_its_quickest_answer() -> None:
    recent = Recent()
    recent.learn(1000.0, at=10.5)  # a lock was waited for: it was 1000.0 half a second ago
    assert recent.now(11.0) == 1000.5
    recent.learn(1000.9, at=11.0)
    recent.learn(1001.0, at=12.0)
    assert recent.now(12.0) == pytest.approx(1001.9)
    recent.learn(1100.0, at=12.0 + 2 * TOO_OLD)  # clocks are set: what is old is not believed
    assert recent.now(12.0 + 2 * TOO_OLD) == 1100.0
