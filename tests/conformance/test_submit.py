"""A submit goes by what its process knows, and finds out in the same statement where that is no longer so."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from orchestrator.domain.errors import IdempotencyMismatch, NotFound, SubmitInProgress
from orchestrator.domain.ids import DEFAULT_QUEUE
from orchestrator.domain.workflow import Workflow
from orchestrator.engine import submit as module
from orchestrator.engine.submit import Accepted, Submission, register, submit, submit_many
from orchestrator.store.session import Session
from tests.support.bench import Bench

AGENTS = {"echo": {"kind": "scripted"}}


def flow(*names: str, **more: Any) -> Workflow:
    steps = [{"id": name, "agent": "echo"} for name in names]
    return Workflow.model_validate({"name": "f", "agents": AGENTS, "steps": steps, **more})


def count(bench: Bench, table: str = "jobs") -> int:
    return int(bench.db.run(lambda s: s.value(f"SELECT count(*) FROM {table}"), readonly=True))


def submitted(bench: Bench) -> float:
    sql = "SELECT sum(value) FROM rollups WHERE series = 'jobs_submitted_total'"
    return float(bench.db.run(lambda s: s.value(sql), readonly=True) or 0)


def written(bench: Bench) -> tuple[int, int, int]:
    return count(bench), count(bench, "steps"), count(bench, "events")


def test_a_name_means_its_newest_version_though_another_process_registered_it(bench: Bench, other: Bench) -> None:
    first = register(bench.engine, flow("a"))
    assert submit(bench.engine, Submission("f")).job.version == first
    second = register(other.engine, flow("a", "b"))
    job = submit(bench.engine, Submission("f")).job
    assert (job.version, job.steps) == (second, 3)
    register(other.engine, flow("a"))  # the older one again is the newest now
    batch = submit_many(bench.engine, [Submission("f"), Submission(f"f@{second[:8]}"), Submission(f"f@{second}")])
    assert [accepted.job.version for accepted in batch] == [first, second, second]
    assert submitted(bench) == count(bench) == 5


def test_a_name_that_was_known_by_no_process_is_looked_up(bench: Bench, other: Bench) -> None:
    with pytest.raises(NotFound):
        submit(bench.engine, Submission("f"))
    register(other.engine, flow("a"))
    assert submit(bench.engine, Submission("f")).created


def test_a_key_names_one_job_in_a_batch_and_after_it(bench: Bench) -> None:
    one, two = Submission(flow("a"), 1, key="one"), Submission(flow("a"), 2, key="two")
    free = Submission(flow("a"), 3)
    first = submit_many(bench.engine, [one, free, one, two])
    assert [a.created for a in first] == [True, True, False, True]
    assert first[0].job.id == first[2].job.id
    again = submit_many(bench.engine, [two, free, one])
    assert [(a.created, a.job.id) for a in again if a.job.idempotency_key] == [
        (False, first[3].job.id),
        (False, first[0].job.id),
    ]
    assert written(bench) == (4, 8, 4)
    assert submitted(bench) == 4
    bench.drive()


def test_a_key_of_another_body_leaves_nothing_of_its_batch(bench: Bench, other: Bench) -> None:
    keyed = Submission(flow("a"), 1, key="k")
    submit(other.engine, keyed)
    before = written(bench)
    for batch in ([Submission(flow("a")), replace(keyed, input=2)], [replace(keyed, key="n", input=i) for i in (1, 2)]):
        with pytest.raises(IdempotencyMismatch, match="another body, by job"):
            submit_many(bench.engine, batch)
    assert written(bench) == before
    assert submitted(bench) == 1


def test_a_key_is_its_tenants(bench: Bench) -> None:
    each = [submit(bench.engine, Submission(flow("a"), tenant=tenant, key="k")) for tenant in ("a", "b", "a")]
    assert [accepted.created for accepted in each] == [True, True, False]


def test_the_same_key_after_a_new_version_is_another_body(bench: Bench, other: Bench) -> None:
    """As it always was: the version is part of what was asked for."""
    register(bench.engine, flow("a"))
    submit(bench.engine, Submission("f", key="k"))
    register(other.engine, flow("a", "b"))
    with pytest.raises(IdempotencyMismatch):
        submit(bench.engine, Submission("f", key="k"))


@pytest.mark.parametrize("keyed", [True, False])
def test_many_at_once_are_all_there_each_once(bench: Bench, other: Bench, keyed: bool) -> None:
    """Batches that overlap, from two processes and eight threads, while versions change."""
    rng = random.Random(20261122)
    register(bench.engine, flow("a"))
    batches = []
    for _ in range(24):
        numbers = rng.sample(range(40), 12)
        batches.append([Submission("f", n, tenant="t", key=f"k{n}" if keyed else None) for n in numbers])

    def one(number: int) -> list[Accepted]:
        if number % 8 == 7 and not keyed:
            register(other.engine, flow("a", *"bcd"[: number // 8]))
        return submit_many((bench, other)[number % 2].engine, batches[number])

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(one, range(len(batches))))
    ids = {a.job.id for batch in answers for a in batch}
    asked = {s.key for batch in batches for s in batch} if keyed else range(sum(map(len, batches)))
    assert len(ids) == count(bench) == len(asked) == submitted(bench)
    assert sum(a.created for batch in answers for a in batch) == len(asked)
    assert count(bench, "events") == len(asked)
    by_key = {}
    for batch, answer in zip(batches, answers, strict=True):
        for wanted, accepted in zip(batch, answer, strict=True):
            assert by_key.setdefault(wanted.key or accepted.job.id, accepted.job.id) == accepted.job.id
    bench.drive()
    states = bench.db.run(lambda s: s.rows("SELECT DISTINCT state FROM jobs"), readonly=True)
    assert [row["state"] for row in states] == ["succeeded"]


def test_who_is_always_too_late_is_told_to_try_again(
    bench: Bench, other: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A version that changes between every look and its write: each try refuses itself."""
    flows = iter([flow("a", f"b{n}") for n in range(2 * module.TRIES)])
    register(bench.engine, next(flows))
    real = module.opening.write

    def late(session: Session, *given: Any, **more: Any) -> Any:
        if session.postgres:
            register(other.engine, next(flows))
        else:  # one writer: nobody can come between
            session.execute("UPDATE workflows SET listed_at = NULL")
        return real(session, *given, **more)

    monkeypatch.setattr(module.opening, "write", late)
    with pytest.raises(SubmitInProgress, match="Try again"):
        submit(bench.engine, Submission("f"))
    assert count(bench) == 0
    monkeypatch.undo()
    assert submit(bench.engine, Submission("f")).created


def test_what_was_submitted_with_a_credit_is_rung_and_the_rest_is_woken(bench: Bench) -> None:
    register(bench.engine, flow("a"))
    bench.engine.feed.pump(DEFAULT_QUEUE)  # now it holds credits
    accepted = submit_many(bench.engine, [Submission("f", n, key=f"k{n}") for n in range(3)])
    assert {ref.job_id for ref in bench.dispatcher.refs} == {a.job.id for a in accepted}
    again = submit_many(bench.engine, [Submission("f", n, key=f"k{n}") for n in range(4)])
    assert [ref.job_id for ref in bench.dispatcher.refs[3:]] == [again[3].job.id], "not those that were there"
    rows = bench.db.run(
        lambda s: s.rows("SELECT path, dispatched_at, mark, ready_at FROM steps WHERE path <> ''"), readonly=True
    )
    assert len(rows) == 4
    assert all(row["dispatched_at"] is not None and row["mark"] == 0 for row in rows)
    assert all(row["ready_at"] == row["dispatched_at"] for row in rows)
    bench.drive()
