"""C fails after A and B have committed (C8): one letter, two checkpoints, nothing in between; replay goes on at C."""

from __future__ import annotations

from typing import Any

import pytest

from orchestrator import crashpoints
from orchestrator.domain.ids import JobId, StepRef
from orchestrator.domain.outcome import Failure, FailureClass
from orchestrator.domain.result import GaveUp, Succeeded
from orchestrator.engine import dead_letters
from orchestrator.engine.settle import Settle, claim, settle
from orchestrator.engine.verify import verify
from orchestrator.store import desk
from tests.support.bench import Bench

BROKEN = Failure(FailureClass.PERMANENT, "C cannot")
FLOW = {
    "name": "three",
    "agents": {"echo": {"kind": "scripted"}, "last": {"kind": "scripted"}},
    "steps": [{"id": "a", "agent": "echo"}, {"id": "b", "agent": "echo"}, {"id": "c", "agent": "last"}],
}
#: All that a settle may write.
TABLES = ("jobs", "steps", "attempts", "events", "dead_letters", "rollups", "payloads")


def stored(bench: Bench) -> dict[str, list[str]]:
    """Every row of every table a settle writes."""
    with bench.db.connect(readonly=True) as session:
        return {table: sorted(map(repr, session.rows(f"SELECT * FROM {table}"))) for table in TABLES}


def up_to_c(bench: Bench) -> tuple[JobId, Settle]:
    """A job whose A and B have settled, and the settle in which C gives up."""
    job = bench.submit(FLOW, 1)
    for _ in "ab":
        bench.pump()
        ref = bench.take()
        assert settle(bench.engine, [settle_of(bench, ref)])[0].won
    bench.pump()
    mine = claim(bench.engine, [ref := bench.take()])[ref]
    row = mine.row
    assert row.path == "c"
    return job, Settle(row.job_id, row.path, row.ref, row.fence, GaveUp(BROKEN))


def settle_of(bench: Bench, ref: StepRef) -> Settle:
    row = claim(bench.engine, [ref])[ref].row
    output = bench.engine.sizes.prepare('{"text":"' + row.path * 9000 + '"}')
    return Settle(row.job_id, row.path, row.ref, row.fence, Succeeded(output))


def letters(bench: Bench) -> list[dict[str, Any]]:
    return bench.db.run(lambda session: desk.letters(session, tenant="default", state=None))


def test_the_job_fails_whole_and_goes_on_at_c(bench: Bench) -> None:
    """C8: A's and B's checkpoints are the same bytes before and after; neither is called again."""
    job, gives_up = up_to_c(bench)
    before = bench.steps(job)
    assert settle(bench.engine, [gives_up])[0].won
    assert verify(bench.engine) == []
    shown, after = bench.job(job), bench.steps(job)
    assert (shown["state"], shown["output"], shown["failure"]["message"]) == ("failed", None, "C cannot")
    assert {path: after[path] for path in "ab"} == {path: before[path] for path in "ab"}
    assert (after["c"]["state"], after["c"]["output"], after["c"]["worker"]) == ("failed", None, None)
    assert [(letter["path"], letter["state"], letter["reason"]) for letter in letters(bench)] == [
        ("c", "open", "permanent")
    ]
    assert not settle(bench.engine, [gives_up])[0].won, "the same settle again, late"
    dead_letters.replay(bench.engine, letters(bench)[0]["id"], by="me")
    bench.drive()
    shown, end = bench.job(job), bench.steps(job)
    assert (shown["state"], shown["run"], shown["output"]) == ("succeeded", 2, before["b"]["output"])
    assert {path: end[path] for path in "ab"} == {path: before[path] for path in "ab"}
    assert (end["c"]["epoch"], end["c"]["attempt"]) == (2, 2)
    assert [letter["state"] for letter in letters(bench)] == ["replayed"]
    assert verify(bench.engine) == []


@pytest.mark.parametrize("point", ["dead_letter.move", "settle.before_commit"])
def test_a_failure_that_breaks_half_way_leaves_nothing(bench: Bench, point: str) -> None:
    """C8: the step, the job, the letter, the history and the counters are one transaction."""
    job, gives_up = up_to_c(bench)
    before = stored(bench)
    crashpoints.arm(f"{point}=raise")
    try:
        with pytest.raises(crashpoints.CrashPointReached):
            settle(bench.engine, [gives_up])
    finally:
        crashpoints.arm("")
    assert stored(bench) == before
    assert verify(bench.engine) == []
    assert settle(bench.engine, [gives_up])[0].won
    assert bench.job(job)["state"] == "failed"
    assert len(letters(bench)) == 1
