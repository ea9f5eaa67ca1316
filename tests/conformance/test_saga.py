"""Compensation: what was done is undone in reverse order, once the job fails; what cannot be undone is parked alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.domain.errors import Conflict, InvalidInput
from orchestrator.domain.ids import JobId
from orchestrator.engine import dead_letters, decisions, undoing
from orchestrator.engine.cancel import cancel
from orchestrator.store import desk
from tests.support.bench import Bench
from tests.support.bookings import Book

N = 4


@pytest.fixture
def book(tmp_path: Path) -> Book:
    return Book(tmp_path / "book")


def booked(step: str, **more: Any) -> dict[str, Any]:
    undo = {"agent": "unbook", "with": {"take_back": "${{ output.booking }}"}}
    return {"id": step, "agent": "book", "with": {}, "compensate": undo, **more}


def trip(book: Book, **config: Any) -> dict[str, Any]:
    """N bookings in a row."""
    return {"name": "trip", "agents": book.agents(**config), "steps": [booked(f"s{i}") for i in range(N)]}


def run(bench: Bench, job: JobId) -> None:
    """To its end, with what is retried on the way."""
    bench.drive()
    while bench.job(job)["state"] not in ("succeeded", "failed", "cancelled"):
        bench.drive()


def letters(bench: Bench) -> list[dict[str, Any]]:
    return bench.db.run(lambda s: desk.letters(s, tenant="default"))


@pytest.mark.parametrize("k", range(N))
def test_whichever_step_fails_nothing_stays_booked(bench: Bench, book: Book, k: int) -> None:
    """E7, M8: fail step k for all k; the outside ledger nets to zero, in reverse order, and nothing else is undone."""
    job = bench.submit(trip(book, fails=[f"s{k}"]), 1)
    run(bench, job)
    assert bench.job(job)["state"] == "failed"
    assert book.open() == set()
    assert book.undone() == [f"s{i}" for i in reversed(range(k))]
    states = [bench.steps(job)[f"s{i}"]["state"] for i in range(N)]
    assert states == ["compensated"] * k + ["failed"] + ["cancelled"] * (N - k - 1)
    types = [event["type"] for event in bench.events(job)]
    assert types.count("job.compensating") == (1 if k else 0)
    assert types[-2:] == ["job.failed", "dead_letter.created"]
    assert [line["input"]["take_back"] for line in book.lines("unbook")] == [
        line["key"] for line in reversed(book.lines("book"))
    ]
    assert [letter["path"] for letter in letters(bench)] == [f"s{k}"]
    bench.check()


@pytest.mark.parametrize("k", range(N - 1))
def test_a_stuck_compensation_is_parked_and_the_rest_goes_on(bench: Bench, book: Book, tmp_path: Path, k: int) -> None:
    """C8: every compensation fails once; it is parked with a letter of its own, and a replay takes it from there."""
    jam = tmp_path / "jam"
    jam.touch()
    job = bench.submit(trip(book, fails=[f"s{N - 1}"], stuck=[f"s{k}"], jam=str(jam)), 1)
    run(bench, job)
    assert bench.job(job)["state"] == "failed"
    assert len(book.open()) == 1
    assert book.undone() == [f"s{i}" for i in reversed(range(N - 1)) if i != k]
    assert bench.steps(job)[f"s{k}"]["state"] == "succeeded"
    own = next(letter for letter in letters(bench) if letter["path"].startswith("~undo"))
    assert (own["reason"], own["message"]) == ("permanent", "the desk is closed")
    assert len(letters(bench)) == 2
    bench.check()

    jam.unlink()
    dead_letters.replay(bench.engine, own["id"], by="me")
    assert bench.job(job)["state"] == "compensating"
    bench.check()
    run(bench, job)
    assert book.open() == set()
    assert bench.job(job)["state"] == "failed"
    assert [letter["path"] for letter in letters(bench)] == [f"s{N - 1}"]
    assert {one["state"] for one in undoing.ledger(bench.engine, job)} == {"undone"}
    bench.check()


def test_a_job_that_succeeds_undoes_nothing(bench: Bench, book: Book) -> None:
    job = bench.submit(trip(book), 1)
    run(bench, job)
    assert bench.job(job)["state"] == "succeeded"
    assert len(book.open()) == N
    assert [one["state"] for one in undoing.ledger(bench.engine, job)] == ["owed"] * N
    bench.check()


def test_branches_are_undone_side_by_side_each_in_its_own_order(bench: Bench, book: Book) -> None:
    """What came after the fan-out is undone before it, what came before it after."""
    branch = [booked("a"), booked("b")]
    steps: list[Any] = [
        booked("first"),
        {"id": "each", "for_each": "[0, 1, 2]", "do": branch},
        booked("last"),
        booked("never"),
    ]
    flow = {"name": "trip", "agents": book.agents(fails=["never"]), "steps": steps}
    job = bench.submit(flow, 1)
    run(bench, job)
    assert bench.job(job)["state"] == "failed"
    assert book.open() == set()
    order = book.undone()
    assert (order[0], order[-1], len(order)) == ("last", "first", 8)
    for i in range(3):
        assert order.index(f"each/{i}/b") < order.index(f"each/{i}/a")
    undo = bench.steps(job)
    assert [path for path, step in undo.items() if step["kind"] == "undo"] == [
        "~undo-1",
        "~undo-1/1",
        "~undo-1/1/0",
        "~undo-1/1/1",
        "~undo-1/1/2",
    ]
    bench.check()


def test_a_call_that_may_have_taken_effect_is_undone_too(bench: Bench, book: Book) -> None:
    """P6: its compensator is told that the outcome is unknown, and the key of that call."""
    flow = trip(book, silent=["s1"])
    job = bench.submit(flow, 1)
    run(bench, job)
    assert bench.job(job)["failure"]["class"] == "timeout"
    assert book.open() == set()
    told = {line["undoes"]: (line["outcome"], line["input"]) for line in book.lines("unbook")}
    assert told["s1"] == ("unknown", None)
    assert told["s0"][0] == "known"
    assert bench.steps(job)["s1"]["state"] == "failed"
    bench.check()
    dead_letters.replay(bench.engine, letters(bench)[0]["id"], by="me")
    run(bench, job)
    assert len({line["key"] for line in book.lines("book") if line["step"] == "s1"}) == 2  # what was undone is known
    bench.check()


def test_a_call_in_doubt_that_people_give_up_is_undone(bench: Bench, book: Book) -> None:
    """An agent that ignores the key is not called again; its compensator is told that nobody knows."""
    agents = book.agents(silent=["s1"])
    agents["book"]["honours_key"] = False
    flow = {"name": "trip", "agents": agents, "steps": [booked("s0"), booked("s1")]}
    job = bench.submit(flow, 1)
    bench.drive()
    assert bench.job(job)["state"] == "waiting"
    assert len(book.lines("book")) == 2
    (wait,), _ = decisions.listing(bench.engine, tenant="default")
    decisions.decide(bench.engine, wait["id"], "fail", by="me")
    run(bench, job)
    assert bench.job(job)["state"] == "failed"
    assert book.open() == set()
    assert [(line["undoes"], line["outcome"]) for line in book.lines("unbook")] == [("s1", "unknown"), ("s0", "known")]
    bench.check()


def test_a_default_after_a_lost_answer_still_owes(bench: Bench, book: Book) -> None:
    steps = [booked("s0", on_failure=[{"value": {}}]), booked("s1")]
    flow = {"name": "trip", "agents": book.agents(silent=["s0"], fails=["s1"]), "steps": steps}
    job = bench.submit(flow, 1)
    run(bench, job)
    assert bench.job(job)["state"] == "failed"
    assert book.open() == set()
    assert bench.steps(job)["s0"]["state"] == "compensated"
    bench.check()


@pytest.mark.parametrize("rule", ["compensate", "keep"])
def test_a_cancelled_job_undoes_if_it_is_told_to(bench: Bench, book: Book, rule: str) -> None:
    flow = {**trip(book), "on_cancel": rule}
    job = bench.submit(flow, 1)
    bench.runner.in_place.steps = 2
    bench.drive(limit=1)
    assert len(book.lines("book")) == 2
    cancel(bench.engine, job)
    if rule == "compensate":
        assert bench.job(job)["state"] == "compensating"
        cancel(bench.engine, job)
    run(bench, job)
    assert bench.job(job)["state"] == "cancelled"
    assert len(book.open()) == (0 if rule == "compensate" else 2)
    bench.check()


def test_a_compensation_is_repeated_under_one_key_until_it_answers(bench: Bench, book: Book) -> None:
    """P4 for the undo: at least once, each with its own key."""
    job = bench.submit(trip(book, fails=["s2"], shaky=True), 1)
    run(bench, job)
    assert bench.job(job)["state"] == "failed"
    keys = [line["own"] for line in book.lines("unbook")]
    assert len(keys) == 4
    assert len(set(keys)) == 2
    assert keys[0].split(":")[1] == "~undo-1/0"
    bench.check()


def test_what_cannot_be_computed_is_told_at_once(bench: Bench, book: Book) -> None:
    """The call is over: the step fails with the place, and its effect is undone as one of unknown outcome."""
    undo = {"agent": "unbook", "with": "${{ output.missing.id }}"}
    flow = {"name": "trip", "agents": book.agents(), "steps": [booked("s0", compensate=undo)]}
    job = bench.submit(flow, 1)
    run(bench, job)
    failure = bench.job(job)["failure"]
    assert (failure["class"], "cannot be told" in failure["message"]) == ("permanent", True)
    assert book.open() == set()
    bench.check()


def test_while_compensating_nothing_is_replayed(bench: Bench, book: Book, tmp_path: Path) -> None:
    jam = tmp_path / "jam"
    jam.touch()
    job = bench.submit(trip(book, fails=["s3"], stuck=["s2"], jam=str(jam)), 1)
    bench.runner.in_place.steps = 1
    while not letters(bench):
        bench.drive(limit=1)
    assert bench.job(job)["state"] == "compensating"
    with pytest.raises(Conflict, match="compensating"):
        cancel(bench.engine, job)
    with pytest.raises(Conflict, match="compensating"):
        dead_letters.replay(bench.engine, letters(bench)[0]["id"], by="me")
    run(bench, job)
    assert bench.job(job)["state"] == "failed"
    bench.check()


def test_a_replay_does_again_what_was_undone_and_what_depends_on_it(bench: Bench, book: Book, tmp_path: Path) -> None:
    """Compensated steps count as not done: they run under new keys, and what came of them too."""
    jam = tmp_path / "jam"
    jam.touch()
    branch = [booked("a"), {"id": "echo", "agent": "echo"}]
    steps: list[Any] = [
        {"id": "plain", "agent": "echo"},
        booked("first"),
        {"id": "each", "for_each": "[0, 1]", "do": branch},
        booked("last"),
        booked("never"),
    ]
    agents = {**book.agents(fails=["never"], jam=str(jam)), "echo": {"kind": "scripted"}}
    flow = {"name": "trip", "agents": agents, "steps": steps}
    job = bench.submit(flow, 1)
    run(bench, job)
    assert book.open() == set()
    before = {line["key"] for line in book.lines("book")}
    jam.unlink()
    dead_letters.replay(bench.engine, letters(bench)[0]["id"], by="me")
    bench.check()
    run(bench, job)
    view = bench.job(job)
    assert (view["state"], view["run"]) == ("succeeded", 2)
    assert len(book.open()) == 5
    assert book.open().isdisjoint(before)
    epochs = {path: step["epoch"] for path, step in bench.steps(job).items() if not path.startswith("~")}
    assert epochs["plain"] == 1
    assert {epoch for path, epoch in epochs.items() if path not in ("", "plain")} == {2}
    bench.check()


def test_a_change_that_what_was_undone_may_contradict_is_refused(bench: Bench, book: Book) -> None:
    steps = [booked("first"), {"id": "each", "for_each": "[0, 1]", "do": {"agent": "book", "with": {}}}]
    agents = book.agents(fails=["each/1"])
    job = bench.submit({"name": "trip", "agents": agents, "steps": steps}, 1)
    run(bench, job)
    for changes in ({"input": {}}, {"output": {}}):
        with pytest.raises(InvalidInput, match="undone"):
            dead_letters.replay(bench.engine, letters(bench)[0]["id"], by="me", changes=changes)
    assert bench.job(job)["state"] == "failed"
    bench.check()
    dead_letters.replay(bench.engine, letters(bench)[0]["id"], by="me")
    run(bench, job)
    bench.check()


def test_replays_of_the_job_take_stuck_compensations_along(bench: Bench, book: Book) -> None:
    job = bench.submit(trip(book, fails=["s3"], stuck=["s0"]), 1)
    run(bench, job)
    mine = next(letter for letter in letters(bench) if letter["path"] == "s3")
    dead_letters.replay(bench.engine, mine["id"], by="me")
    bench.check()
    run(bench, job)
    view = bench.job(job)
    assert (view["state"], view["run"]) == ("failed", 2)
    assert {letter["path"] for letter in letters(bench)} == {"s3", "~undo-2/2"}
    standing = {key.split(":")[1] for key in book.open()}
    assert standing == {"s0"}
    bench.check()


def test_a_branch_that_fails_and_is_tolerated_leaves_nothing_behind(bench: Bench, book: Book) -> None:
    """The job succeeds without it, once what it had done is undone; the other branches keep what they did."""
    steps: list[Any] = [
        booked("first"),
        {"id": "each", "for_each": "[0, 1, 2]", "do": [booked("a"), booked("b")], "join": {"tolerate": 1}},
        booked("last"),
    ]
    agents = book.agents(fails=["each/1/b"])
    flow = {"name": "trip", "agents": agents, "steps": steps, "output": "${{ steps.last.booking }}"}
    job = bench.submit(flow, 1)
    run(bench, job)
    view = bench.job(job)
    assert (view["state"], view["failure"]) == ("succeeded", None)
    assert view["output"] in book.open()
    assert book.undone() == ["each/1/a"]
    assert len(book.open()) == 6
    assert bench.steps(job)["each/1/a"]["state"] == "compensated"
    assert [event["type"] for event in bench.events(job)][-2:] == ["step.compensated", "job.succeeded"]
    bench.check()


NESTED: dict[str, tuple[list[str], set[str]]] = {
    "an inner branch": (["out/0/in/1/b"], {"out/0/in/1/a"}),
    "a branch with branches": (["out/1/z"], {"out/1/in/0/a", "out/1/in/0/b", "out/1/in/1/a", "out/1/in/1/b"}),
    "a branch after its own branch": (
        ["out/1/in/0/b", "out/1/z"],
        {"out/1/in/0/a", "out/1/in/1/a", "out/1/in/1/b"},
    ),
    "an inner branch here, a whole branch there": (
        ["out/0/in/0/a", "out/1/z"],
        {"out/1/in/0/a", "out/1/in/0/b", "out/1/in/1/a", "out/1/in/1/b"},
    ),
    "all": (
        ["out/0/z", "out/1/z"],
        {f"out/{n}/in/{m}/{s}" for n in range(2) for m in range(2) for s in "ab"} | {"first"},
    ),
}


@pytest.mark.parametrize("case", NESTED)
def test_scopes_lie_in_scopes_and_each_call_is_undone_once(bench: Bench, book: Book, case: str) -> None:
    """A failure is undone as far out as it went: its own branch where that was tolerated, else the branch around it."""
    fails, undone = NESTED[case]
    inner = {"id": "in", "for_each": "[0, 1]", "do": [booked("a"), booked("b")], "join": {"tolerate": 1}}
    outer = {"id": "out", "for_each": "[0, 1]", "do": [inner, booked("z")], "join": {"tolerate": 1}}
    job = bench.submit({"name": "trip", "agents": book.agents(fails=fails), "steps": [booked("first"), outer]}, 1)
    run(bench, job)
    assert bench.job(job)["state"] == ("failed" if case == "all" else "succeeded")
    assert sorted(book.undone()) == sorted(undone)
    done = {path for path, step in bench.steps(job).items() if step["agent"] == "book" and step["state"] == "succeeded"}
    assert len(book.open()) == len(done)
    assert done.isdisjoint(undone)
    bench.check()


def test_a_stuck_branch_of_a_success_goes_to_the_desk(bench: Bench, book: Book, tmp_path: Path) -> None:
    jam = tmp_path / "jam"
    jam.touch()
    both = {"x": [booked("a"), booked("b")], "y": booked("c")}
    steps: list[Any] = [{"id": "p", "parallel": both, "join": {"tolerate": 1}}]
    agents = book.agents(fails=["p/x/b"], stuck=["p/x/a"], jam=str(jam))
    job = bench.submit({"name": "trip", "agents": agents, "steps": steps}, 1)
    run(bench, job)
    assert bench.job(job)["state"] == "succeeded"
    (letter,) = letters(bench)
    bench.check()
    jam.unlink()
    dead_letters.replay(bench.engine, letter["id"], by="me")
    assert bench.job(job)["state"] == "compensating"
    with pytest.raises(Conflict, match="compensating"):  # it succeeds once that is undone
        cancel(bench.engine, job)
    run(bench, job)
    assert (bench.job(job)["state"], len(book.open()), letters(bench)) == ("succeeded", 1, [])
    bench.check()
