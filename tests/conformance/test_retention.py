"""Retention: whole jobs, only those nobody needs, exported before they go; what they alone referred to goes too."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import ConfigError, Gone, NotFound
from orchestrator.domain.ids import JobId
from orchestrator.engine import cancel, dead_letters, explain, export, queries, undoing
from orchestrator.engine.reconcile import Reconciler
from orchestrator.engine.retention import Policy, Retention
from orchestrator.store import desk, history, payloads, retention, tables
from orchestrator.store.session import Session
from tests.support.bench import Bench
from tests.support.bookings import Book

DAY = 86_400.0
#: Above the inline size: stands in ``payloads``.
BIG = "x" * 5000
ECHO: dict[str, Any] = {
    "name": "echo",
    "agents": {"echo": {"kind": "scripted", "script": [{"output": "${{ input }}"}]}},
    "steps": [{"id": "a", "agent": "echo", "with": "${{ input }}"}],
}
BROKEN: dict[str, Any] = {
    "name": "broken",
    "agents": {"bad": {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "no"}}]}},
    "steps": [{"id": "a", "agent": "bad"}],
}


def keep(bench: Bench, days: float = 30, **more: Any) -> Retention:
    return Retention(bench.engine, Policy(days * DAY, **more))


def age(bench: Bench, days: float) -> None:
    """As if all that is there had happened so many days earlier."""

    def work(session: Session) -> None:
        session.execute("UPDATE jobs SET finished_at = finished_at - :by", {"by": days * DAY})
        session.execute("UPDATE payloads SET created_at = created_at - :by", {"by": days * DAY})

    bench.db.run(work)


def done(bench: Bench, *inputs: Any, flow: dict[str, Any] = ECHO) -> list[JobId]:
    jobs = [bench.submit(flow, value) for value in inputs]
    bench.drive()
    return jobs


def there(bench: Bench, table: str = "jobs", column: str = "id") -> set[str]:
    return {row[column] for row in bench.db.run(lambda s: s.rows(f"SELECT {column} FROM {table}"), readonly=True)}


def exported(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for file in sorted(folder.glob("jobs-*.jsonl.gz"))
        for line in gzip.decompress(file.read_bytes()).decode().splitlines()
    ]


def test_old_jobs_go_with_all_that_hangs_on_them_and_younger_ones_stay(bench: Bench) -> None:
    """T2: retention; counters never fall."""
    old = done(bench, 1, 2, BIG)
    age(bench, 31)
    young = done(bench, 1, BIG + "y")
    running = bench.submit(ECHO, 3)
    totals = bench.db.run(history.totals)
    assert keep(bench).work() == 3
    assert there(bench) == {*young, running}
    for table in ("steps", "attempts", "events"):
        assert there(bench, table, "job_id") <= {*young, running}
    assert len(there(bench, "workflows", "version")) == 1, "a version without jobs stays"
    after = {(series, *sorted(labels.items())): value for series, labels, value in bench.db.run(history.totals)}
    for series, labels, value in totals:
        assert after[series, *sorted(labels.items())] >= value, "a counter fell"
    assert after["jobs_removed_total", ("workflow", "echo")] == 3
    bench.drive()
    assert keep(bench).work() == 0
    assert len(old) == 3


def test_a_removed_job_is_gone_and_one_that_never_was_is_not_found(bench: Bench) -> None:
    (job,) = done(bench, 1)
    never = bench.clock.new_id()
    asks: list[Callable[[JobId], object]] = [
        bench.job,
        bench.events,
        bench.steps,
        lambda job: queries.list_attempts(bench.engine, job),
        lambda job: explain.explain(bench.engine, job),
        lambda job: undoing.ledger(bench.engine, job),
        lambda job: cancel.cancel(bench.engine, job, by="me"),
        lambda job: list(export.one(bench.engine, job)),
    ]
    age(bench, 31)
    with pytest.raises(NotFound):
        bench.job(JobId("0" * 32))
    keep(bench).work()
    for ask in asks:
        with pytest.raises(Gone, match="not kept any more"):
            ask(job)
        for other in (never, "nonsense"):
            with pytest.raises(NotFound, match="no job"):
                ask(JobId(other))


def test_a_key_is_free_again_once_its_job_is_removed(bench: Bench) -> None:
    """P2 holds while the job is kept."""
    first = bench.submit(ECHO, 1, key="k")
    bench.drive()
    assert bench.submit(ECHO, 1, key="k") == first
    age(bench, 31)
    keep(bench).work()
    assert bench.submit(ECHO, 1, key="k") != first


def test_what_somebody_may_still_need_stays(bench: Bench, tmp_path: Path) -> None:
    """An open letter, a fork, a debt of a job that failed; and each goes once that is over."""
    (parked,) = done(bench, 1, flow=BROKEN)
    (source,) = done(bench, 1)
    (fork,) = done(bench, 2)
    book = Book(tmp_path / "book")
    booked = {"id": "a", "agent": "book", "with": {}, "compensate": {"agent": "unbook", "with": {"take_back": 1}}}
    (owing,) = done(bench, 1, flow={"name": "trip", "agents": book.agents(), "steps": [booked]})
    bench.db.run(lambda s: s.execute("UPDATE jobs SET origin = :of WHERE id = :id", {"of": source, "id": fork}))
    age(bench, 31)
    bench.db.run(
        lambda s: s.execute("UPDATE jobs SET finished_at = finished_at + :d WHERE id = :id", {"d": 9 * DAY, "id": fork})
    )
    assert keep(bench).work() == 1, "a succeeded job's ledger is no debt"
    assert there(bench) == {parked, source, fork}
    (letter,) = bench.db.run(lambda s: desk.letters(s, tenant=None))
    dead_letters.discard(bench.engine, letter["id"], by="me")
    assert keep(bench).work() == 1
    assert there(bench) == {source, fork}
    age(bench, 10)
    assert keep(bench).work() == 1, "the fork"
    assert keep(bench).work() == 1, "then what it came from"
    assert owing not in there(bench)


def test_a_failed_job_that_owes_stays(bench: Bench) -> None:
    """It cannot be (I5); should it, its ledger is the only trace of what stands outside."""
    (job,) = done(bench, 1, flow=BROKEN)
    row = dict.fromkeys((column.name for column in tables.compensations.columns), 1)
    row |= {"job_id": job, "path": "a", "ref": "a", "state": "owed", "known": True, "input": None, "input_ref": None}
    (letter,) = bench.db.run(lambda s: desk.letters(s, tenant=None))
    dead_letters.discard(bench.engine, letter["id"], by="me")
    names = ", ".join(row)
    marks = ", ".join(f":{name}" for name in row)
    bench.db.run(lambda s: s.execute(f"INSERT INTO compensations ({names}) VALUES ({marks})", row))
    age(bench, 31)
    assert keep(bench).work() == 0
    bench.db.run(lambda s: s.execute("DELETE FROM compensations"))
    assert keep(bench).work() == 1


def test_a_job_that_is_replayed_meanwhile_stays(bench: Bench) -> None:
    """Looked at, exported, and then it moved: the removal asks again, under the job's lock."""
    (job,) = done(bench, 1, flow=BROKEN)
    (letter,) = bench.db.run(lambda s: desk.letters(s, tenant=None))
    dead_letters.discard(bench.engine, letter["id"], by="me")
    age(bench, 31)
    before = bench.db.run(lambda s: s.now()) - 30 * DAY
    (seen,) = bench.db.run(lambda s: retention.unneeded(s, before, retention.BEGINNING, 10))
    dead_letters.undiscard(bench.engine, letter["id"], by="me")
    dead_letters.replay(bench.engine, letter["id"], by="me")
    bench.drive()
    assert bench.db.run(lambda s: retention.remove(s, {job: seen["events"]}, before, 0.0)) == []
    (letter,) = bench.db.run(lambda s: desk.letters(s, tenant=None))
    dead_letters.discard(bench.engine, letter["id"], by="me")
    age(bench, 31)
    assert bench.db.run(lambda s: retention.remove(s, {job: seen["events"]}, before, 0.0)) == [], (
        "its history is longer"
    )
    assert there(bench) == {job}


def test_it_is_done_in_small_batches_within_a_budget(bench: Bench) -> None:
    done(bench, *range(10))
    age(bench, 31)
    duty = keep(bench, budget=0.0, most_jobs=3)
    left = []
    while duty.due():
        duty.work()
        left.append(len(there(bench)))
    assert left[:4] == [7, 4, 1, 0]
    done(bench, *range(4))
    age(bench, 31)
    assert keep(bench, budget=0.0, most_steps=4).work() == 2, "two jobs of two steps"


def test_two_schedulers_remove_each_job_once_and_lose_none(bench: Bench, tmp_path: Path) -> None:
    jobs = done(bench, *range(60))
    age(bench, 31)
    both = [keep(bench, export=tmp_path / name, most_jobs=7, budget=60.0) for name in ("one", "two")]
    with ThreadPoolExecutor(2) as threads:
        removed = [future.result() for future in [threads.submit(duty.work) for duty in both]]
    while there(bench):  # what one had locked the other passed over
        removed.append(both[0].work())
    assert sum(removed) == 60
    lines = exported(tmp_path / "one") + exported(tmp_path / "two")
    assert {line["job"]["id"] for line in lines} == set(jobs)


def test_the_scheduler_does_it(bench: Bench) -> None:
    done(bench, 1)
    age(bench, 31)
    Reconciler(bench.engine, retention=keep(bench)).tick()
    assert there(bench) == set()


# ---------------------------------------------------------------------------------------------------------------
# export


def test_a_line_holds_the_whole_job(bench: Bench, tmp_path: Path) -> None:
    """T3: an incident can be handed over as it was."""
    fan = {
        **ECHO,
        "name": "fan",
        "steps": [{"id": "f", "for_each": "input", "do": {"agent": "echo", "with": "${{ item }}"}}],
    }
    (wide,) = done(bench, [BIG, *range(250)], flow=fan)
    (parked,) = done(bench, 1, flow=BROKEN)
    (letter,) = bench.db.run(lambda s: desk.letters(s, tenant=None))
    dead_letters.discard(bench.engine, letter["id"], by="me")
    before = {job: (bench.job(job), bench.steps(job), bench.events(job)) for job in (wide, parked)}
    age(bench, 31)
    assert keep(bench, export=tmp_path).work() == 2
    first, second = exported(tmp_path)
    assert [first["job"]["id"], second["job"]["id"]] == [wide, parked]
    for line in (first, second):
        job, steps, events = before[line["job"]["id"]]
        assert line["v"] == 1
        assert {line["job"][name] == job[name] for name in ("input", "output", "failure", "state", "workflow")} == {
            True
        }
        assert {row["path"]: row["output"] for row in line["steps"] if row["path"]} == {
            path: step["output"] for path, step in steps.items()
        }
        assert [row["type"] for row in line["events"]] == [event["type"] for event in events]
        assert all(row["degraded"] is False for row in line["steps"])
    assert [row["reason"] for row in second["dead_letters"]] == ["permanent"]
    assert len(first["attempts"]) == 251
    assert BIG in [row["vars"] and row["output"] for row in first["steps"]]
    assert {*first} == {"v", "job", *(table.name for table in export.export.PARTS)}


def test_what_dies_between_export_and_removal_is_exported_again(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At least once, and never removed without."""
    (job,) = done(bench, 1)
    age(bench, 31)
    with monkeypatch.context() as patch:
        patch.setattr(retention, "remove", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            keep(bench, export=tmp_path).work()
    assert there(bench) == {job}
    assert keep(bench, export=tmp_path).work() == 1
    assert [line["job"]["id"] for line in exported(tmp_path)] == [job, job]


def test_nothing_is_removed_while_the_export_cannot_be_written(bench: Bench, tmp_path: Path) -> None:
    (job,) = done(bench, 1)
    age(bench, 31)
    place = tmp_path / "place"
    place.write_text("a file")
    duty = keep(bench, export=place)
    with pytest.raises(ConfigError, match="cannot be exported"):
        duty.work()
    assert there(bench) == {job}
    assert not duty.due(), "it tries again after a pause"


def test_a_write_that_fails_half_way_leaves_what_was_there(bench: Bench, tmp_path: Path) -> None:
    one, two = done(bench, 1, 2)

    def half() -> Iterator[JobId]:
        yield two
        raise OSError("no space left")

    file = export.write(bench.engine, tmp_path, [one])
    size = file.stat().st_size
    with pytest.raises(ConfigError, match="no space left"):
        export.write(bench.engine, tmp_path, half())
    assert file.stat().st_size == size
    export.write(bench.engine, tmp_path, [two])
    assert [line["job"]["id"] for line in exported(tmp_path)] == [one, two]


def test_export_by_hand_lists_what_retention_would_take(bench: Bench) -> None:
    jobs = done(bench, 1, 2, 3)
    done(bench, 1, flow=BROKEN)
    age(bench, 31)
    done(bench, 4)
    assert list(export.ended(bench.engine, bench.clock.now() - 30 * DAY)) == jobs


# ---------------------------------------------------------------------------------------------------------------
# payloads


def test_a_payload_stays_while_anything_refers_to_it(bench: Bench) -> None:
    first = done(bench, BIG)
    age(bench, 31)
    second = done(bench, BIG)
    assert len(there(bench, "payloads", "hash")) == 1
    keep(bench).work()
    assert there(bench) == set(second) != set(first)
    assert bench.job(second[0])["output"] == BIG
    age(bench, 31)
    keep(bench).work()
    assert there(bench, "payloads", "hash") == set()


def test_a_payload_nobody_refers_to_is_found_by_going_round(bench: Bench) -> None:
    """What a replay left behind hangs on no job that is removed."""
    values = [payloads.PayloadSizes().prepare(json.dumps(BIG + str(n))) for n in range(7)]
    bench.db.run(lambda s: payloads.write(s, values))
    kept = done(bench, BIG + "3")
    duty = keep(bench, most_payloads=3, pause=0.0)
    duty.work()
    assert len(there(bench, "payloads", "hash")) == 7, "young"
    age(bench, 2)
    for _ in range(4):
        duty.work()
    assert there(bench, "payloads", "hash") == {values[3].ref}
    assert bench.job(kept[0])["input"] == BIG + "3"


def test_every_reference_to_a_payload_is_known_and_has_its_index() -> None:
    for table, column in payloads.REFERENCES:
        indexes = tables.metadata.tables[table].indexes
        assert column in {next(iter(index.columns)).name for index in indexes if len(index.columns) == 1}, (
            table,
            column,
        )
    assert len(payloads.REFERENCES) >= 6


def blocked(bench: Bench) -> bool:
    """Whether a statement waits for a lock."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    return bool(bench.db.run(lambda s: s.value(count)))


def wait_for(bench: Bench, what: Callable[[], bool]) -> None:
    until = bench.clock.monotonic() + 20
    while not what():
        assert bench.clock.monotonic() < until
        bench.clock.sleep(0.01)


def unread(bench: Bench) -> str:
    """The hash of an old payload that nothing refers to, of the value that ``BIG`` is."""
    value = payloads.PayloadSizes().prepare(json.dumps(BIG))
    bench.db.run(lambda s: payloads.write(s, [value]))
    age(bench, 2)
    assert value.ref is not None
    return value.ref


def test_a_submit_that_comes_first_keeps_the_payload(postgres_url: str) -> None:
    """It is about to refer to a payload that retention is about to remove, and has not committed."""
    bench = Bench(postgres_url)
    found = unread(bench)
    with bench.db.connect() as writer:
        payloads.write(writer, [payloads.PayloadSizes().prepare(json.dumps(BIG))])
        assert bench.db.run(lambda s: payloads.drop_unread(s, [found])) == 0, "it waits for nobody"
    assert bench.db.run(lambda s: payloads.drop_unread(s, [found])) == 0, "it is young again"
    bench.close()


def test_a_submit_that_comes_second_writes_the_payload_anew(postgres_url: str) -> None:
    """Retention has removed the payload and not committed: the submit waits, then finds it gone."""
    bench = Bench(postgres_url)
    found = unread(bench)
    jobs: list[JobId] = []
    submit = threading.Thread(target=lambda: jobs.append(bench.submit(ECHO, BIG)))
    with bench.db.connect() as remover:
        assert payloads.drop_unread(remover, [found]) == 1
        submit.start()
        wait_for(bench, lambda: blocked(bench))
    submit.join(20)
    bench.drive()
    assert bench.job(jobs[0])["output"] == BIG
    bench.close()


def test_submits_and_retention_at_once_leave_no_job_without_its_input(postgres_url: str) -> None:
    """In each round old payloads that nothing refers to are submitted again while they are being removed."""
    bench = Bench(postgres_url)
    values = [BIG + str(n) for n in range(4)]
    prepared = [payloads.PayloadSizes().prepare(json.dumps(value)) for value in values]
    hashes = [str(value.ref) for value in prepared]
    removed = 0
    for _ in range(8):
        bench.db.run(lambda s: s.execute("DELETE FROM jobs"))
        bench.db.run(lambda s: payloads.write(s, prepared))
        age(bench, 2)
        with ThreadPoolExecutor(5) as threads:
            drops, jobs = [], []
            for value in values * 2:
                jobs.append((threads.submit(bench.submit, ECHO, value), value))
                drops.append(threads.submit(bench.db.run, lambda s: payloads.drop_unread(s, hashes)))
        removed += sum(drop.result() for drop in drops)
        for job, value in jobs:
            assert bench.job(job.result())["input"] == value
    print(f"{removed} payloads removed beside {8 * 8} submits")
    bench.close()
