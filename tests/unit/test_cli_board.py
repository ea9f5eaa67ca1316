"""The picture of a running job follows from its events alone."""

from __future__ import annotations

from typing import Any

from orchestrator.cli.board import Board


def event(kind: str, path: str | None, run: int = 1, **data: Any) -> dict[str, Any]:
    return {"type": kind, "path": path, "data": data, "run": run}


def board() -> Board:
    return Board.of([("a", (), False), ("fan", ("a",), False), ("loop", ("fan",), True)])


def states(shown: Board) -> list[str]:
    return [line.state for line in shown.lines.values()]


FAILURE = {"class": "transient", "message": "no answer"}


def test_a_step_is_under_way_when_its_needs_have_ended() -> None:
    shown = board()
    assert states(shown) == ["running", "pending", "pending"]
    assert shown.feed(event("step.succeeded", "a", attempt=1, seconds=0.5)) == "a: succeeded, 0.50 s"
    assert states(shown) == ["succeeded", "running", "pending"]


def test_a_fan_out_counts_its_members_and_their_attempts() -> None:
    shown = board()
    shown.feed(event("step.succeeded", "a", attempt=1))
    assert shown.feed(event("step.opened", "fan", width=2)) == "fan: 2 branches"
    retried = shown.feed(event("step.retrying", "fan/0", attempt=1, delay=1.5, failure=FAILURE))
    assert retried == "fan/0: attempt 1 failed (transient: no answer); again in 1.5 s"
    assert shown.feed(event("step.succeeded", "fan/0", attempt=2)) is None
    assert shown.feed(event("step.succeeded", "fan/1", attempt=1)) is None
    fan = shown.lines["fan"]
    assert (fan.done, fan.width, fan.attempts) == (2, 2, 3)
    assert shown.feed(event("step.succeeded", "fan", attempt=2, seconds=2.0)) == "fan: succeeded, 2 branches, 2.00 s"
    assert (fan.attempts, shown.attempts, shown.retries) == (3, 4, 1)  # a join is no attempt


def test_rounds_say_how_they_were_judged() -> None:
    shown = board()
    for name in ("a", "fan"):
        shown.feed(event("step.succeeded", name, attempt=1))
    assert shown.feed(event("step.opened", "loop", width=1)) is None
    sent_back = shown.feed(event("round.reviewed", "loop", round=1, met=False, review={"score": 0.55}, width=2))
    assert sent_back == "loop: round 1 sent back, score 0.55"
    assert shown.feed(event("step.succeeded", "loop", attempt=3, seconds=1, rounds=2, met=True)) == (
        "loop: succeeded, 1.00 s, 2 rounds, met"
    )
    assert states(shown) == ["succeeded"] * 3


def test_a_failure_names_its_reason_and_a_replay_starts_over() -> None:
    shown = board()
    assert shown.feed(event("step.failed", "a", attempt=4, failure=FAILURE)) == "a: failed, transient: no answer"
    assert states(shown) == ["failed", "pending", "pending"]
    assert shown.feed(event("job.reopened", None, run=2)) == "replayed: run 2"
    assert states(shown) == ["running", "pending", "pending"]


def test_what_it_does_not_know_changes_nothing() -> None:
    shown = board()
    assert shown.feed(event("job.submitted", None)) is None
    assert shown.feed(event("step.succeeded", "elsewhere", attempt=1)) is None
    assert states(shown) == ["running", "pending", "pending"]
