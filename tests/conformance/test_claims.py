"""Claims that share a transaction share nothing else."""

from __future__ import annotations

import logging

import pytest

from orchestrator.domain.ids import StepPath, StepRef
from orchestrator.engine import presence
from orchestrator.engine.settle import claim
from tests.support.bench import Bench

ECHO = {"echo": {"kind": "scripted"}}


def test_one_that_cannot_be_read_does_not_cost_its_neighbours(
    bench: Bench, other: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody executes it: it is given back, and runs once it can be read."""
    jobs = [
        bench.submit({"name": name, "agents": ECHO, "steps": [{"id": "a", "agent": "echo"}]}, name)
        for name in ("good", "bad", "fine")
    ]
    say = "UPDATE workflows SET definition = replace(definition, :before, :after) WHERE name = 'bad'"
    bench.db.run(lambda s: s.execute(say, {"before": '"steps"', "after": '"paces"'}))
    refs = [StepRef(job, StepPath("a"), 1) for job in jobs]
    with caplog.at_level(logging.ERROR):
        won = claim(other.engine, refs)
    assert [ref.job_id for ref in won] == [jobs[0], jobs[2]]
    assert [record.message for record in caplog.records] == ["claim.unreadable"]
    bench.db.run(lambda s: s.execute(say, {"before": '"paces"', "after": '"steps"'}))
    for job in jobs:
        presence.give_back(other.engine, other.engine.process, (job, StepPath("a"), 1))
    bench.drive()
    assert {bench.job(job)["state"] for job in jobs} == {"succeeded"}
