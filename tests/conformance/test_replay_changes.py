"""Replay of one dead letter with changes: another input, another agent, or the result by hand."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from orchestrator.crashpoints import CrashPointReached, arm
from orchestrator.domain.errors import Conflict, InvalidInput, PayloadTooLarge
from orchestrator.domain.ids import JobId
from orchestrator.engine import audit, dead_letters, queries
from orchestrator.store import desk
from tests.support.bench import Bench

GOOD = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
AGENTS: dict[str, Any] = {
    "echo": {"kind": "scripted"},
    "picky": {"kind": "scripted", "input_schema": GOOD},
    "broken": {"kind": "scripted", "script": [{"fail": {"class": "permanent", "message": "no"}}]},
    "lite": {"kind": "scripted", "script": [{"output": {"n": 0}}]},
    "mailer": {"kind": "scripted", "effect": "irreversible"},
}
STEP = {
    "id": "b",
    "agent": "broken",
    "with": {"n": "${{ steps.a }}"},
    "output_schema": GOOD,
    "checks": ["output.n >= input.n"],
}


def parked(bench: Bench, step: dict[str, Any] | None = None, input: Any = "seven") -> tuple[JobId, str]:
    """A job whose middle step has failed, and its letter."""
    steps = [{"id": "a", "agent": "echo"}, step or STEP, {"id": "c", "agent": "echo"}]
    job = bench.submit({"name": "t", "agents": AGENTS, "steps": steps}, input)
    bench.drive()
    assert bench.job(job)["state"] == "failed"
    return job, letter_of(bench, job)


def letter_of(bench: Bench, job: JobId) -> str:
    return str(bench.db.run(lambda s: desk.letters(s, tenant="default", job_id=job))[0]["id"])


def attempts(bench: Bench, job: JobId, path: str = "b") -> list[dict[str, Any]]:
    return [one for one in queries.list_attempts(bench.engine, job) if one["path"] == path]


def reopened(bench: Bench, job: JobId) -> dict[str, Any]:
    data: dict[str, Any] = [event["data"] for event in bench.events(job) if event["type"] == "job.reopened"][-1]
    return data


def everything(bench: Bench) -> list[Any]:
    with bench.db.connect(readonly=True) as session:
        names = ("jobs", "steps", "attempts", "events", "dead_letters", "audit", "payloads")
        return [session.rows(f"SELECT * FROM {name} ORDER BY 1, 2") for name in names]


def test_the_input_is_edited_and_the_difference_recorded(bench: Bench) -> None:
    """E8: the edited input replaces ``with``, under a new key; the history says what differs, and who did it."""
    job, letter = parked(bench, {"id": "b", "agent": "picky", "with": {"n": "${{ steps.a }}", "kept": 1}})
    dead_letters.replay(bench.engine, letter, by="ann", note="typo", changes={"input": {"n": 7, "kept": 1}})
    bench.drive()
    assert bench.job(job)["output"] == {"n": 7, "kept": 1}
    assert [(one["generation"], one["changed"]) for one in attempts(bench, job)] == [(1, None), (2, {"input": "given"})]
    differs = {"input": [{"at": "/n", "from": '"seven"', "to": "7"}]}
    assert reopened(bench, job) == {"steps": 3, "path": "b", "changes": differs, "by": "ann"}
    [entry] = audit.trail(bench.engine, tenant="default", subject=letter)[0]
    assert (entry["who"], entry["why"], entry["data"]) == ("ann", "typo", {"path": "b", "changes": differs})


def test_a_large_input_is_stored_like_any_other(bench: Bench) -> None:
    job, letter = parked(bench)
    text = "é" * 90_000
    dead_letters.replay(bench.engine, letter, by="ann", changes={"input": {"n": 1, "text": text}, "agent": "echo"})
    bench.drive()
    assert bench.job(job)["output"] == {"n": 1, "text": text}


def test_an_unknown_outcome_keeps_its_key_unless_the_call_is_another(bench: Bench) -> None:
    """P4, Keys: re-run with other input or agent is a new generation; re-run as it was repeats the key."""
    step = {"id": "b", "agent": "slow", "timeout": {"attempt": "20ms"}, "retry": {"attempts": 1}}
    slow = {"kind": "scripted", "script": [{"delay": "30s", "output": 1}]}
    steps = [step]
    job = bench.submit({"name": "t", "agents": {**AGENTS, "slow": slow}, "steps": steps}, 1)
    bench.drive()
    for changes in ({}, {"input": 2}, {"agent": "lite"}):
        dead_letters.replay(bench.engine, letter_of(bench, job), by="ann", changes=changes)
        bench.drive()
    assert [one["generation"] for one in attempts(bench, job)] == [1, 1, 2, 3]
    assert bench.job(job)["output"] == {"n": 0}


def test_another_agent_takes_over_and_stays(bench: Bench) -> None:
    job, letter = parked(bench, {"id": "b", "agent": "lite", "output_schema": {"type": "string"}})
    dead_letters.replay(bench.engine, letter, by="ann", changes={"agent": "broken"})
    assert reopened(bench, job)["changes"] == {"agent": {"from": "lite", "to": "broken"}}
    bench.drive()
    dead_letters.replay(bench.engine, letter_of(bench, job), by="bob")
    bench.drive()
    assert [one["agent"] for one in attempts(bench, job)] == ["lite", "broken", "broken"]
    dead_letters.replay(bench.engine, letter_of(bench, job), by="bob", changes={"agent": "echo", "input": "text"})
    bench.drive()
    assert bench.job(job)["output"] == "text"


def test_a_result_given_by_hand_ends_the_step(bench: Bench) -> None:
    """E8: no agent is called for it; what follows goes on with it, and the record says who gave it."""
    job, letter = parked(bench, input=7)
    dead_letters.replay(bench.engine, letter, by="ann", changes={"output": {"n": 8}})
    step = bench.steps(job)["b"]
    assert (step["state"], step["output"], step["degraded"]) == ("succeeded", {"n": 8}, False)
    bench.drive()
    assert bench.job(job)["output"] == {"n": 8}
    last = attempts(bench, job)[-1]
    assert (last["outcome"], last["agent"], last["changed"]) == ("succeeded", None, {"output": "given", "by": "ann"})
    ended = [event["data"] for event in bench.events(job) if event["type"] == "step.succeeded" and event["path"] == "b"]
    assert ended[-1]["given_by"] == "ann"


def test_a_result_for_the_last_step_ends_the_job(bench: Bench) -> None:
    job = bench.submit({"name": "t", "agents": AGENTS, "steps": [{"id": "a", "agent": "broken"}]}, 1)
    bench.drive()
    assert dead_letters.replay(bench.engine, letter_of(bench, job), by="ann", changes={"output": None}).run == 2
    assert (bench.job(job)["state"], bench.job(job)["output"]) == ("succeeded", None)


@pytest.mark.parametrize("cap", [1, 2, 9])
def test_a_result_for_a_member_frees_its_place(bench: Bench, cap: int) -> None:
    member = {"agent": "broken", "with": "${{ item }}"}
    step = {"id": "f", "for_each": "${{ input }}", "do": member, "max_concurrency": cap}
    job = bench.submit({"name": "t", "agents": AGENTS, "steps": [step]}, [0, 1, 2, 3])
    bench.drive()
    for _ in range(4):
        dead_letters.replay(bench.engine, letter_of(bench, job), by="ann", changes={"output": "mine"})
        out = [row for path, row in bench.steps(job).items() if path.startswith("f/") and row["state"] == "ready"]
        assert len(out) <= cap
        bench.drive()
    assert bench.job(job)["output"] == ["mine"] * 4


def test_a_member_that_had_begun_keeps_its_place(bench: Bench) -> None:
    """M4: of a dozen members one at a time, the third is mended; those that had not begun wait behind it."""
    says = "${{ item == 2 ? dyn('two') : dyn({'n': item}) }}"
    body = [{"id": "x", "agent": "echo"}, {"id": "y", "agent": "picky", "with": says}]
    step = {"id": "f", "for_each": "${{ input }}", "do": body, "max_concurrency": 1}
    job = bench.submit({"name": "t", "agents": AGENTS, "steps": [step]}, list(range(12)))
    bench.drive()
    dead_letters.replay(bench.engine, letter_of(bench, job), by="ann", changes={"input": {"n": 2}})
    states = {path: row["state"] for path, row in bench.steps(job).items() if path.count("/") == 1}
    assert {path for path, state in states.items() if state not in ("pending", "succeeded")} == {"f/2"}
    bench.drive()
    assert bench.job(job)["output"] == [{"n": n} for n in range(12)]


WRONG: list[tuple[Any, str]] = [
    ({"input": {"n": "x"}, "agent": "picky"}, "changes.input misses the input_schema of 'picky': .*n"),
    ({"agent": "picky"}, "changes.input misses the input_schema of 'picky'"),
    ({"agent": "ecko"}, "Did you mean 'echo'"),
    ({"agent": 7}, "has no agent 7"),
    ({"agent": "mailer"}, "no gate"),
    ({"input": float("nan")}, "not JSON"),
    ({"input": "\ud800"}, "not JSON"),
    ({"output": {"n": "x"}}, "changes.output: the output misses its schema: .*n"),
    ({"output": {"n": 6}}, "does not hold"),
    ({"output": "\x00"}, "not JSON"),
    ({"output": 1, "agent": "echo"}, "Give output alone"),
    ({"inptu": 1}, "nothing of that name"),
]


@pytest.mark.parametrize(("changes", "says"), WRONG)
def test_changes_that_do_not_fit_leave_nothing_behind(bench: Bench, changes: Any, says: str) -> None:
    """D4: refused with the place, before anything is written; the letter is still open."""
    step = {**STEP, "with": {"n": 7} if "output" in changes else {"n": "${{ steps.a }}"}}
    _, letter = parked(bench, step)
    before = everything(bench)
    with pytest.raises(InvalidInput, match=says):
        dead_letters.replay(bench.engine, letter, by="ann", changes=changes)
    assert everything(bench) == before


def test_changes_that_are_too_large_leave_nothing_behind(bench: Bench) -> None:
    _, letter = parked(bench)
    before = everything(bench)
    with pytest.raises(PayloadTooLarge):
        dead_letters.replay(bench.engine, letter, by="ann", changes={"input": "x" * (bench.engine.caps.body_bytes + 1)})
    assert everything(bench) == before


def test_what_is_no_agents_step_takes_no_changes(bench: Bench) -> None:
    step = {"id": "f", "for_each": "${{ input }}", "do": {"agent": "echo"}}
    job = bench.submit({"name": "t", "agents": AGENTS, "steps": [step]}, {"no": "list"})
    bench.drive()
    with pytest.raises(InvalidInput, match="f is no agent's step"):
        dead_letters.replay(bench.engine, letter_of(bench, job), by="ann", changes={"output": []})


def test_of_two_operators_one_wins(bench: Bench) -> None:
    """U2: the other is told what is true now, and nothing of its edit is left."""
    job, letter = parked(bench)

    def send(name: str) -> str | Conflict:
        try:
            dead_letters.replay(bench.engine, letter, by=name, changes={"agent": "lite", "input": {"n": 0, "by": name}})
        except Conflict as error:
            return error
        return name

    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(send, ("ann", "bob")))
    winner = next(name for name in done if isinstance(name, str))
    [loser] = [error for error in done if isinstance(error, Conflict)]
    assert f"replayed by {winner}" in str(loser)
    assert reopened(bench, job)["by"] == winner
    bench.drive()
    assert len(attempts(bench, job)) == 2
    with pytest.raises(Conflict, match="replayed"):
        dead_letters.replay(bench.engine, letter, by="cid", changes={"output": {"n": 9}})


@pytest.mark.parametrize("point", ["dead_letter.replay", "epoch.change"])
def test_a_death_in_mid_replay_leaves_nothing_of_it(bench: Bench, point: str) -> None:
    job, letter = parked(bench, input=7)
    before = everything(bench)
    arm(f"{point}=raise")
    with pytest.raises(CrashPointReached):
        dead_letters.replay(bench.engine, letter, by="ann", changes={"output": {"n": 7}})
    assert everything(bench) == before
    dead_letters.replay(bench.engine, letter, by="ann", changes={"output": {"n": 7}})
    bench.drive()
    assert bench.job(job)["state"] == "succeeded"


def test_a_letter_shows_the_call_that_failed(bench: Bench) -> None:
    """E8: what it was called with, and of a model the prompt; so that one sees what to edit."""
    named = {
        "base_url": "http://127.0.0.1:9/v1",
        "model": "m",
        "api_key_env": "NO_SUCH_API_KEY",
    }  # fails before it calls
    chat = {"kind": "chat", "prompt": "Sum up: ${{ input.text }}", **named}
    agents = {"a": {"kind": "scripted", "script": [{"output": {"text": "long"}}]}, "m": chat}
    retry = {"attempts": 1}
    steps = [{"id": "s", "agent": "a"}, {"id": "t", "agent": "m", "with": "${{ steps.s }}", "retry": retry}]
    bench.submit({"name": "t", "agents": agents, "steps": steps}, 1)
    bench.drive()
    letter = bench.db.run(lambda s: desk.letters(s, tenant="default"))[0]
    seen = dead_letters.get(bench.engine, letter["id"])
    assert (seen["path"], seen["input"], seen["prompt"]) == ("t", {"text": "long"}, "Sum up: long")
    assert [attempt["outcome"] for attempt in seen["attempts"]] == ["failed"]
