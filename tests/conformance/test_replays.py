"""Bulk replay: by filter, at a rate, once each, whatever dies (E8, U1, U2)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from typing import Any

import pytest

from orchestrator.crashpoints import VARIABLE
from orchestrator.domain.errors import Conflict, InvalidInput, NotFound, OrchestratorError
from orchestrator.domain.ids import JobId
from orchestrator.engine import audit, cancel, dead_letters, replays
from orchestrator.engine.reconcile import Reconciler
from orchestrator.store import desk
from orchestrator.store.operations import LetterFilter
from tests.support.bench import Bench
from tests.support.letters import copy_failed

EVERY = LetterFilter()


def broken(name: str = "t", message: str = "no such clause", *, mended: bool = True) -> dict[str, Any]:
    script: list[Any] = [{"fail": {"class": "permanent", "message": message}}]
    if mended:
        script.append({"output": "mended"})
    agent = {"kind": "scripted", "script": script}
    return {"name": name, "agents": {"bad": agent}, "steps": [{"id": "a", "agent": "bad"}]}


def fail(bench: Bench, count: int, **how: Any) -> list[JobId]:
    jobs = [bench.submit(broken(**how), n) for n in range(count)]
    bench.drive()
    return jobs


def letters(bench: Bench, state: str | None = "open") -> list[dict[str, Any]]:
    return bench.db.run(lambda session: desk.letters(session, tenant=None, state=state, limit=100_000))


def begin(bench: Bench, wanted: LetterFilter = EVERY, *, tenant: str | None = "default", **how: Any) -> str:
    how = {"everything": wanted.empty, "rate": 1000.0, "by": "ann", **how}
    return str(replays.start(bench.engine, wanted, tenant, **how)["id"])


def finish(bench: Bench, operation: str) -> dict[str, Any]:
    """Ticks until the operation has ended."""
    while (seen := replays.show(bench.engine, operation))["state"] == "running":
        replays.advance(bench.engine, 5.0)
    return seen


def starts(bench: Bench, jobs: list[JobId]) -> Counter[int]:
    """How many jobs were reopened how often."""
    return Counter(sum(event["type"] == "job.reopened" for event in bench.events(job)) for job in jobs)


def test_a_filter_replays_what_matches_and_nothing_else(bench: Bench) -> None:
    mine, others = fail(bench, 25, name="mine"), fail(bench, 3, name="others")
    operation = begin(bench, LetterFilter(workflow="mine"), note="the endpoint is back")
    seen = finish(bench, operation)
    assert (seen["state"], seen["total"], seen["replayed"], seen["skipped"]) == ("done", 25, 25, 0)
    bench.drive()
    assert {bench.job(job)["state"] for job in mine} == {"succeeded"}
    assert {bench.job(job)["state"] for job in others} == {"failed"}
    assert starts(bench, mine) == {1: 25}
    closed = letters(bench, "replayed")
    assert {(row["closed_by"], row["note"], row["operation"]) for row in closed} == {
        ("ann", "the endpoint is back", operation)
    }
    trail = audit.trail(bench.engine, tenant="default", subject=operation)[0]
    assert [(row["what"], row["who"], row["why"]) for row in trail] == [
        ("replay.done", "ann", None),
        ("replay.started", "ann", "the endpoint is back"),
    ]


def test_what_fails_again_is_not_replayed_again(bench: Bench) -> None:
    """P7: replay conserves counts, and never runs in a circle."""
    jobs = fail(bench, 5, mended=False)
    operation = begin(bench)
    replays.advance(bench.engine)
    bench.drive()
    finish(bench, operation)  # what the first tick had no tokens for yet
    bench.drive()
    seen = replays.show(bench.engine, operation)
    assert (seen["state"], seen["replayed"], seen["failed_again"]) == ("done", 5, 5)
    assert starts(bench, jobs) == {1: 5}
    assert (len(letters(bench)), len(letters(bench, None))) == (5, 10)


def test_groups_say_what_failed_alike(bench: Bench) -> None:
    fail(bench, 3, name="one", message="clause 17 is missing")
    fail(bench, 2, name="two", message="clause 18 is missing")
    fail(bench, 1, name="two", message="no money")
    found = replays.groups(bench.engine, EVERY, "default")
    assert [(group["count"], group["workflows"]) for group in found] == [(5, ["one", "two"]), (1, ["two"])]
    assert found[0]["message"] == "clause 18 is missing"
    assert found[0]["first_seen_at"] <= found[0]["last_seen_at"]
    assert [group["count"] for group in replays.groups(bench.engine, LetterFilter(workflow="two"), "default")] == [2, 1]
    assert replays.groups(bench.engine, EVERY, "other") == []


def test_filters_by_time_and_fingerprint(bench: Bench) -> None:
    old = fail(bench, 1)
    bench.db.run(lambda s: s.execute("UPDATE dead_letters SET created_at = created_at - 60"))
    assert letters(bench)[0]["job_id"] == old[0]
    fail(bench, 1)
    last = letters(bench)[0]["created_at"]
    fail(bench, 1, message="no money")
    newest = letters(bench)[0]
    for wanted, count in (
        (LetterFilter(created_before=last), 1),
        (LetterFilter(created_after=last), 2),
        (LetterFilter(fingerprint=newest["fingerprint"]), 1),
        (LetterFilter(reason="permanent"), 3),
        (LetterFilter(reason="timeout"), 0),
    ):
        assert replays.preview(bench.engine, wanted, "default")["total"] == count, wanted
        found = bench.db.run(lambda s, w=wanted: desk.letters(s, tenant=None, **w.given()))
        assert len(found) == count, wanted


def test_a_dry_run_counts_and_changes_nothing(bench: Bench) -> None:
    fail(bench, 3)
    seen = replays.preview(bench.engine, EVERY, "default", everything=True)
    assert (seen["total"], [group["count"] for group in seen["groups"]]) == (3, [3])
    assert replays.listing(bench.engine, None) == ([], None)
    assert len(letters(bench)) == 3


@pytest.mark.parametrize(
    ("wanted", "how", "error", "says"),
    [
        (EVERY, {"everything": False}, InvalidInput, "all: true"),
        (LetterFilter(workflow="t"), {"everything": True}, InvalidInput, "contradict"),
        (LetterFilter(reason="tired"), {}, InvalidInput, "transient"),
        (LetterFilter(created_after=2.0, created_before=1.0), {}, InvalidInput, "nothing is in between"),
        (EVERY, {"rate": 0.0}, InvalidInput, "rate"),
        (EVERY, {"rate": math.nan}, InvalidInput, "rate"),
        (EVERY, {"rate": 1e9}, InvalidInput, "rate"),
        (LetterFilter(workflow="nothing"), {}, NotFound, "no open dead letter"),
        (EVERY, {"tenant": "other"}, NotFound, "no open dead letter"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    bench: Bench, wanted: LetterFilter, how: dict[str, Any], error: type[OrchestratorError], says: str
) -> None:
    fail(bench, 1)
    with pytest.raises(error, match=says):
        begin(bench, wanted, **how)
    assert replays.listing(bench.engine, None) == ([], None)


def test_one_bulk_replay_at_a_time(bench: Bench) -> None:
    """U2: the second operator is told who is at work and how to end it."""
    fail(bench, 3)
    first = begin(bench, rate=0.01)
    for tenant in ("default", None):
        with pytest.raises(Conflict, match=f"{first} of ann is running here; about 3 letters are left"):
            begin(bench, tenant=tenant)
    replays.advance(bench.engine)
    done = replays.cancel(bench.engine, first, by="bob", note="too early")
    assert (done["state"], done["finished_by"], done["replayed"]) == ("cancelled", "bob", 1)
    assert replays.cancel(bench.engine, first, by="bob")["state"] == "cancelled"  # again is no error
    replays.advance(bench.engine)
    assert len(letters(bench)) == 2
    second = begin(bench)
    assert finish(bench, second)["replayed"] == 2
    with pytest.raises(Conflict, match="done"):
        replays.cancel(bench.engine, second, by="bob")
    for call in (replays.show, replays.cancel):
        more = {} if call is replays.show else {"by": "eve"}
        with pytest.raises(NotFound):
            call(bench.engine, second, tenant="other", **more)
    bench.drive()


def test_it_stops_when_the_same_error_comes_back(bench: Bench) -> None:
    jobs = fail(bench, 10, mended=False)
    operation = begin(bench, rate=0.01, stop_on_same_error=True)
    assert replays.advance(bench.engine) == 1
    bench.drive()
    replays.advance(bench.engine)
    seen = replays.show(bench.engine, operation)
    assert (seen["state"], seen["replayed"], seen["failed_again"]) == ("stopped", 1, 1)
    assert "failed again of the same" in seen["because"]
    assert sum(bench.job(job)["run"] - 1 for job in jobs) == 1


def test_another_error_does_not_stop_it(bench: Bench) -> None:
    script = [{"fail": {"class": "permanent", "message": text}} for text in ("first", "second")]
    flow = {
        "name": "t",
        "agents": {"bad": {"kind": "scripted", "script": script}},
        "steps": [{"id": "a", "agent": "bad"}],
    }
    for n in range(3):
        bench.submit(flow, n)
    bench.drive()
    operation = begin(bench, rate=0.01, stop_on_same_error=True)
    replays.advance(bench.engine)
    bench.drive()
    replays.advance(bench.engine)
    assert replays.show(bench.engine, operation)["state"] == "running"


def test_a_letter_that_cannot_be_replayed_is_passed_over(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that breaks must not stop the rest, nor leave anything half done."""
    jobs = fail(bench, 5)
    reopen, broken_one = dead_letters.reopen, jobs[2]

    def unlucky(engine: Any, session: Any, job: Any, **more: Any) -> Any:
        opened = reopen(engine, session, job, **more)
        if job.id == broken_one:
            raise Conflict("it moved")
        return opened

    monkeypatch.setattr(replays, "reopen", unlucky)
    seen = finish(bench, begin(bench))
    assert (seen["state"], seen["replayed"], seen["skipped"]) == ("done", 4, 1)
    assert [row["job_id"] for row in letters(bench)] == [broken_one]
    assert (bench.job(broken_one)["state"], bench.job(broken_one)["run"]) == ("failed", 1)
    bench.drive()


def test_the_rate_is_kept(bench: Bench) -> None:
    """As many as time has earned, and at most five seconds' worth after a pause of any length."""
    fail(bench, 60)
    operation = begin(bench, rate=4.0)

    def wait(seconds: float) -> int:
        """The clock of the database cannot be moved, but the bucket's last filling can."""
        bench.db.run(lambda s: s.execute("UPDATE operations SET refilled_at = refilled_at - :s", {"s": seconds}))
        return replays.advance(bench.engine, 5.0)

    assert replays.advance(bench.engine) == 1  # the first is due at once
    assert 7 <= wait(2.0) <= 9
    assert 19 <= wait(3600.0) <= 21
    assert replays.show(bench.engine, operation)["state"] == "running"


def test_the_scheduler_runs_it(bench: Bench) -> None:
    fail(bench, 3)
    operation = begin(bench)
    reconciler = Reconciler(bench.engine)
    reconciler.tick()
    reconciler.tick()
    assert replays.show(bench.engine, operation)["state"] == "done"
    bench.drive()


CHILD = """
import sys
from orchestrator.clock import Clock
from orchestrator.domain.ids import Incarnation
from orchestrator.engine import replays
from orchestrator.engine.context import Engine
from orchestrator.engine.feed import Feed
from orchestrator.store.database import Database
from orchestrator.testing import ListDispatcher

url, name, operation = sys.argv[1:]
clock, db = Clock(), Database(url)
engine = Engine(db, clock, Incarnation(name))
engine.feed = Feed(db, ListDispatcher(), clock)
while replays.show(engine, operation)["state"] == "running":
    replays.advance(engine)
"""


def test_two_schedulers_and_a_kill_half_way_replay_each_letter_once(bench: Bench, url: str) -> None:
    """U1: killed half way, started again twice, two at work at once: each letter replayed exactly once."""
    (job,) = fail(bench, 1)
    bench.db.run(lambda session: copy_failed(session, job, 399, kinds=7))
    operation = begin(bench, rate=1000.0)

    def run(name: str, armed: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, VARIABLE: armed} if armed else dict(os.environ)
        words = [sys.executable, "-c", CHILD, url, name, operation]
        return subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100, check=False)

    ended: dict[str, subprocess.CompletedProcess[str]] = {}
    armed = {"first": "dead_letter.replay=kill@50", "second": "dead_letter.replay=kill@90"}
    for names in (("first", "second"), ("third", "fourth")):
        threads = [
            threading.Thread(target=lambda n=name: ended.update({n: run(n, armed.get(n, ""))})) for name in names
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert ended["first"].returncode == ended["second"].returncode == -9
    assert ended["third"].returncode == ended["fourth"].returncode == 0, ended["third"].stderr + ended["fourth"].stderr
    seen = replays.show(bench.engine, operation)
    assert (seen["state"], seen["total"], seen["replayed"], seen["skipped"]) == ("done", 400, 400, 0)
    with bench.db.connect(readonly=True) as session:
        reopened = session.rows("SELECT job_id, count(*) AS n FROM events WHERE type = 'job.reopened' GROUP BY job_id")
        assert (len(reopened), {row["n"] for row in reopened}) == (400, {1})
        assert session.value("SELECT min(run) || '-' || max(run) FROM jobs") == "2-2"
        counted = session.value("SELECT sum(value) FROM rollups WHERE series = 'dead_letters_replayed_total'")
        assert counted == 400
    bench.drive()
    assert len(letters(bench)) == 0


def test_many_operators_at_once(bench: Bench) -> None:
    """U2: single replay, discard and a bulk replay of the same letters: one wins each, the rest are told."""
    fail(bench, 12)
    operation = begin(bench)
    ids = [row["id"] for row in letters(bench)]
    outcomes: list[str] = []

    def person(n: int) -> None:
        act = (dead_letters.replay, dead_letters.discard)[n % 2]
        for letter in ids:
            try:
                act(bench.engine, letter, by=f"person {n}")
                outcomes.append("won")
            except Conflict:
                outcomes.append("told")

    people = [threading.Thread(target=person, args=(n,)) for n in range(8)]
    people.append(threading.Thread(target=finish, args=(bench, operation)))
    for one in people:
        one.start()
    for one in people:
        one.join()
    seen = finish(bench, operation)
    assert seen["replayed"] + outcomes.count("won") == 12
    assert len(outcomes) == 96
    assert not letters(bench)
    bench.drive()


def test_a_discard_can_be_undone_once(bench: Bench) -> None:
    fail(bench, 1)
    (letter,) = letters(bench)
    with pytest.raises(Conflict, match="is open, not discarded"):
        dead_letters.undiscard(bench.engine, letter["id"], by="ann")
    dead_letters.discard(bench.engine, letter["id"], by="ann", note="the customer has left")
    assert dead_letters.undiscard(bench.engine, letter["id"], by="bob", note="is back")["state"] == "open"
    dead_letters.discard(bench.engine, letter["id"], by="ann")
    dead_letters.undiscard(bench.engine, letter["id"], by="ann")
    dead_letters.replay(bench.engine, letter["id"], by="ann")
    with pytest.raises(Conflict, match="running in run 2"):
        dead_letters.undiscard(bench.engine, letter["id"], by="ann")
    trail = audit.trail(bench.engine, tenant=None, subject=letter["id"])[0]
    assert Counter(row["what"].rpartition(".")[2] for row in trail) == {"discarded": 2, "undiscarded": 2, "replayed": 1}
    assert ("bob", "is back") in [(row["who"], row["why"]) for row in trail if row["what"].endswith("undiscarded")]
    bench.drive()


def test_a_cancel_is_on_record_once(bench: Bench) -> None:
    job = bench.submit(broken(), 1)
    for _ in range(2):
        cancel.cancel(bench.engine, job, by="ann", note="wrong file")
    (entry,) = audit.trail(bench.engine, tenant="default", subject=job)[0]
    assert (entry["what"], entry["who"], entry["why"]) == ("job.cancelled", "ann", "wrong file")
    assert audit.trail(bench.engine, tenant="other")[0] == []
    assert json.dumps(entry)
