"""One row that somebody keeps locked (PostgreSQL): its neighbours' leases are renewed, and released."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from orchestrator.domain.ids import JobId, StepPath, StepRef
from orchestrator.engine import presence, release
from orchestrator.engine.settle import claim, unlocked
from tests.support.bench import Bench
from tests.support.chaos_database import Stranger

FLOW: dict[str, Any] = {
    "name": "t",
    "agents": {"echo": {"kind": "scripted"}},
    "steps": [{"id": "a", "agent": "echo"}, {"id": "b", "agent": "echo"}],
}


@pytest.fixture
def bench(postgres_url: str) -> Iterator[Bench]:
    it = Bench(postgres_url)
    yield it
    it.close()


def claimed(bench: Bench, count: int) -> list[StepRef]:
    """The first step of so many jobs, running here."""
    jobs = [bench.submit(FLOW, n) for n in range(count)]
    refs = [StepRef(job, StepPath("a"), 1) for job in jobs]
    assert len(claim(bench.engine, refs)) == count
    return refs


def lease(bench: Bench, job: JobId) -> float:
    with bench.db.connect(readonly=True) as session:
        return float(session.value("SELECT lease_until FROM steps WHERE job_id = :job AND path = 'a'", {"job": job}))


def test_a_locked_step_keeps_no_other_from_being_renewed(bench: Bench, postgres_url: str) -> None:
    locked, free = claimed(bench, 2)
    before = {ref: lease(bench, ref.job_id) for ref in (locked, free)}
    with (
        Stranger(postgres_url) as stranger,
        stranger.locking("SELECT 1 FROM steps WHERE job_id = %s AND path = 'a'", locked.job_id),
    ):
        owned = {job for job, _, _ in presence.renew(bench.engine, bench.engine.process)}
        assert lease(bench, locked.job_id) == before[locked]
    assert owned == {locked.job_id, free.job_id}, "passed over is not lost"
    assert lease(bench, free.job_id) > before[free]
    presence.renew(bench.engine, bench.engine.process)
    assert lease(bench, locked.job_id) > before[locked]


def test_a_locked_job_keeps_no_other_from_being_released(bench: Bench, postgres_url: str) -> None:
    locked, free = claimed(bench, 2)
    bench.db.run(lambda session: session.execute("UPDATE steps SET lease_until = 1 WHERE state = 'running'"))
    with (
        Stranger(postgres_url) as stranger,
        stranger.locking("SELECT 1 FROM jobs WHERE id = %s", locked.job_id),
    ):
        keys = [(ref.job_id, ref.path) for ref in (locked, free)]
        assert unlocked(bench.engine, keys) == {(free.job_id, free.path)}
        assert release.expire_leases(bench.engine) == 1
        assert bench.steps(free.job_id)["a"]["state"] == "ready"
        assert bench.steps(locked.job_id)["a"]["state"] == "running"
    assert release.expire_leases(bench.engine) == 1
    bench.check()
