"""The canvas target: a whole plan as Celery's own chain, group and chord, run by a stock prefork worker of the app."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator import bootstrap
from orchestrator.canvas.compile import canvas, stage
from orchestrator.clock import Clock
from orchestrator.domain.ids import JobId, StepPath, StepRef
from orchestrator.domain.parse import parse_workflow
from orchestrator.domain.planner import compile_plan
from orchestrator.engine import queries
from orchestrator.engine.context import Engine
from orchestrator.engine.submit import Submission, submit
from orchestrator.engine.verify import verify
from orchestrator.settings import Settings
from orchestrator.store import migrations

FLOW = """
name: canvas
agents: {echo: {kind: scripted}}
steps:
  - {id: first, agent: echo}
  - id: both
    parallel:
      left: {agent: echo, with: {l: "${{ steps.first }}"}}
      right: [{id: a, agent: echo}, {id: b, agent: echo}]
  - {id: last, agent: echo}
"""


def test_a_plan_becomes_chain_group_and_chord() -> None:
    plan = compile_plan(parse_workflow(FLOW), "v")
    text = repr(canvas(plan, JobId("j"))).replace("orchestrator.", "")
    assert text == (
        "step('j', 'first', 1) | step('j', 'both', 1)"
        " | %step([step('j', 'both/left', 1), step('j', 'both/right/a', 1) | step('j', 'both/right/b', 1)],"
        " 'j', 'both', 1)"
        " | step('j', 'last', 1)"
    )


def test_a_list_ordered_by_needs_is_refused() -> None:
    flow = parse_workflow(
        "name: g\nagents: {echo: {kind: scripted}}\n"
        "steps: [{id: a, agent: echo}, {id: b, agent: echo, needs: [a]}, {id: c, agent: echo, needs: [a]}]"
    )
    with pytest.raises(ValueError, match="ordered by needs"):
        canvas(compile_plan(flow, "v"), JobId("j"))


def test_a_stage_is_a_step_a_group_or_a_chord() -> None:
    refs = [StepRef(JobId("j"), StepPath(f"f/{i}"), 1, group=StepPath("f")) for i in range(3)]
    body = StepRef(JobId("j"), StepPath("f"), 1)
    assert stage(refs[:1], None).task == "orchestrator.step"
    assert type(stage(refs, None)).__name__ == "group"
    assert type(stage(refs, body)).__name__ == "_chord"


@pytest.fixture
def engine(postgres_url: str, redis_url: str) -> Iterator[Engine]:
    settings = Settings.load(database_url=postgres_url, broker_url=redis_url, env_file=None)
    db = bootstrap.open_database(settings)
    migrations.upgrade(db)
    it = bootstrap.build_engine(settings, "test", db=db)
    yield it
    bootstrap.close_engine(it)


@pytest.fixture
def prefork(postgres_url: str, redis_url: str, tmp_path: Path, engine: Engine) -> Iterator[None]:
    """An unmodified Celery worker; nothing continues in place, so every move is a message."""
    environment = {
        **os.environ,
        "ORCHESTRATOR_DATABASE_URL": postgres_url,
        "ORCHESTRATOR_BROKER_URL": redis_url,
        "ORCHESTRATOR_IN_PLACE_STEPS": "0",
    }
    command = [sys.executable, "-m", "celery", "-A", "workers.app", "worker", "-P", "prefork", "-c", "2"]
    with (tmp_path / "worker.log").open("wb") as log:
        worker = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    yield
    worker.send_signal(signal.SIGTERM)
    worker.wait(30)
    assert b"Traceback" not in (tmp_path / "worker.log").read_bytes()


@pytest.mark.usefixtures("prefork")
def test_a_stock_prefork_worker_runs_the_canvas(engine: Engine, redis_url: str) -> None:
    """Same result as the durable target, each step once, whoever's message came first."""
    flow = parse_workflow(FLOW)
    job = submit(engine, Submission(flow, {"n": 1})).job
    app = bootstrap.build_app(Settings.load(broker_url=redis_url, env_file=None))
    canvas(compile_plan(flow, job.version), job.id, app=app).apply_async()
    clock = Clock()
    end = clock.monotonic() + 60
    while (view := queries.show_job(engine, job.id))["state"] not in ("succeeded", "failed"):
        assert clock.monotonic() < end, view
        clock.sleep(0.05)
    assert view["output"] == {"left": {"l": {"n": 1}}, "right": {"n": 1}}
    steps, _ = queries.list_steps(engine, job.id)
    assert {row["attempt"] for row in steps if row["kind"] == "agent"} == {1}
    assert verify(engine) == []
