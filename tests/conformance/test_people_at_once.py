"""Fifty people decide, cancel and replay the same jobs at once, while these run."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from orchestrator.domain.errors import Conflict, Unavailable
from orchestrator.domain.ids import JobId
from orchestrator.domain.states import JOB_MOVES, STEP_MOVES
from orchestrator.engine import cancel, dead_letters, decisions
from orchestrator.store import desk
from tests.support import moves
from tests.support.bench import Bench

PEOPLE = 50
JOBS = 8


def flow() -> dict[str, Any]:
    """A call in doubt and a step that escalates, side by side, and one after them."""
    unknown = {"fail": {"class": "timeout", "outcome_known": False}}
    agents = {
        "blind": {"kind": "scripted", "script": [unknown], "effect": "reversible", "honours_key": False},
        "broken": {"kind": "scripted", "script": [{"fail": {"class": "permanent"}}]},
        "echo": {"kind": "scripted"},
    }
    both = {"x": {"agent": "blind"}, "y": {"agent": "broken", "on_failure": [{"escalate": "legal"}]}}
    return {"name": "t", "agents": agents, "steps": [{"id": "p", "parallel": both}, {"id": "z", "agent": "echo"}]}


class Person(threading.Thread):
    """Does something to every job in an order of its own, and counts how it went."""

    def __init__(self, bench: Bench, jobs: list[JobId], seed: int) -> None:
        super().__init__(name=f"person-{seed}")
        self.bench, self.jobs, self.rng = bench, jobs, random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.wrong: list[BaseException] = []

    def run(self) -> None:
        for job in self.rng.sample(self.jobs, len(self.jobs)):
            try:
                self.outcomes[self.act(job)] += 1
            except Conflict:
                self.outcomes["told"] += 1
            except Unavailable:  # no connection was free in time: a person comes again
                self.outcomes["busy"] += 1
            except BaseException as error:  # noqa: BLE001 - it is the test's result
                self.wrong.append(error)

    def act(self, job: JobId) -> str:
        engine, who = self.bench.engine, self.name
        draw = self.rng.random()
        if draw < 0.03:
            cancel.cancel(engine, job, by=who)
            return "cancelled"
        if draw < 0.2:
            letters = engine.db.run(lambda s: desk.letters(s, tenant="default", job_id=job), readonly=True)
            if not letters:
                return "nothing"
            dead_letters.replay(engine, letters[0]["id"], by=who)
            return "replayed"
        waits = decisions.listing(engine, tenant="default", job=str(job))[0]
        if not waits:
            return "nothing"
        wait = self.rng.choice(waits)
        decisions.decide(engine, wait["id"], self.rng.choice(wait["decisions"]), by=who)
        return "decided"


@pytest.mark.faults
def test_only_legal_moves_and_each_question_one_answer(bench: Bench, seed: int, report: Callable[..., None]) -> None:
    """U2: cancel, decide and replay at once from 50 clients."""
    bench.db.run(moves.watch)
    jobs = [bench.submit(flow(), n) for n in range(JOBS)]
    bench.drive()
    people = [Person(bench, jobs, seed + n) for n in range(PEOPLE)]
    for one in people:
        one.start()
    while any(one.is_alive() for one in people):
        bench.drive()
    for one in people:
        one.join()
    assert [error for one in people for error in one.wrong] == []
    bench.drive()
    bench.check()
    outcomes = sum((one.outcomes for one in people), Counter())
    print(outcomes)
    with bench.db.connect(readonly=True) as session:
        assert moves.illegal(moves.seen(session, "jobs"), JOB_MOVES) == set()
        assert moves.illegal(moves.seen(session, "steps"), STEP_MOVES) == set()
        assert moves.seen(session, "waits") <= {("open", "decided"), ("open", "cancelled")}
        decided = session.value("SELECT count(*) FROM waits WHERE state = 'decided'")
        told = session.value("SELECT count(*) FROM events WHERE type = 'wait.decided'")
        noted = session.value("SELECT count(*) FROM audit WHERE what = 'wait.decided'")
    assert decided == told == noted == outcomes["decided"]
    assert outcomes["decided"] > JOBS
    for job in jobs:  # whatever they left open can still be ended
        if bench.job(job)["state"] not in ("succeeded", "failed", "cancelled"):
            cancel.cancel(bench.engine, job)
        assert bench.job(job)["state"] in ("succeeded", "failed", "cancelled")
    report("U2", jobs=JOBS, seed=seed, figure=", ".join(f"{name} {count}" for name, count in sorted(outcomes.items())))
