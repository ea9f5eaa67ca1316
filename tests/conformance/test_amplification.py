"""What a failure costs: of a four-step job, the failed call once more, and nothing that was finished (I6)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine import dead_letters
from orchestrator.store import desk
from tests.support.bench import Bench
from tests.support.costly_agents import TOKENS

STEPS = 4
#: Calls and tokens of a job in which one call failed, to those of a clean run.
BAR = 1.25
RETRIED = (
    "transient",
    "transient, known",
    "rate_limited",
    "rate_limited, retry_after",
    "timeout",
    "too slow",
    "invalid_output",
    "bad schema",
)
PARKED = ("permanent", "refused_by_policy", "bug")
SCORE = {"type": "object", "properties": {"score": {"type": "number"}}, "required": ["score"]}


def four_steps(calls: Path, at: int, how: str) -> dict[str, Any]:
    """Every class that may be tried again is."""
    retry = {"attempts": 3, "initial": "1ms", "max": "1ms"}
    retry["on"] = ["transient", "rate_limited", "timeout", "invalid_output"]
    config = {"calls": str(calls), "at": f"s{at}", "how": how}
    return {
        "name": "t",
        "agents": {"paid": {"kind": "python", "target": "tests.support.costly_agents:paid", "config": config}},
        "steps": [
            {"id": f"s{n}", "agent": "paid", "output_schema": SCORE, "retry": retry, "timeout": {"attempt": "1s"}}
            for n in range(STEPS)
        ],
    }


def run(bench: Bench, calls: Path, at: int, how: str) -> dict[str, Any]:
    """The job at its end, replayed from the desk if it failed."""
    job = bench.submit(four_steps(calls, at, how), 1)
    while bench.job(job)["state"] not in ("succeeded", "failed"):
        bench.drive()
    if how in PARKED:
        (letter,) = bench.db.run(lambda session: desk.letters(session, tenant="default"))
        assert (bench.job(job)["state"], letter["path"], letter["reason"]) == ("failed", f"s{at}", how)
        dead_letters.replay(bench.engine, letter["id"], by="me")
        bench.drive()
    return bench.job(job)


@pytest.mark.parametrize("how", [*RETRIED, *PARKED])
def test_one_failure_costs_one_call(bench: Bench, tmp_path: Path, how: str) -> None:
    """I6: whichever step fails, and however, retried or replayed: at most 1.25 times the calls and the tokens."""
    for at in range(STEPS):
        calls = tmp_path / f"calls-{at}"
        done = run(bench, calls, at, how)
        assert done["state"] == "succeeded"
        made = calls.read_text().split()
        assert made == [f"s{n}" for n in range(STEPS) for _ in range(2 if n == at else 1)]
        assert len(made) <= BAR * STEPS
        # What was paid for is on record, the failed call too.
        assert done["input_tokens"] + done["output_tokens"] == len(made) * TOKENS <= BAR * STEPS * TOKENS


def test_a_clean_run_costs_one(bench: Bench, tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    done = run(bench, calls, STEPS, "nothing")
    assert len(calls.read_text().split()) == STEPS
    assert done["input_tokens"] + done["output_tokens"] == STEPS * TOKENS
