"""An agent that raises whatever it likes leaves a job that says so, and that can be replayed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engine import dead_letters
from orchestrator.store import desk
from tests.support.bench import Bench
from tests.support.costly_agents import BARE


def flow(directory: Path, function: str, at: str, what: str) -> dict[str, Any]:
    config = {"at": at, "what": what, "mended": str(directory / "mended")}
    agent = {"kind": "python", "target": f"tests.support.costly_agents:{function}", "config": config}
    return {
        "name": "t",
        "agents": {"it": agent},
        "steps": [
            {"id": "first", "agent": "it"},
            {"id": "each", "for_each": "[0, 1, 2]", "do": {"agent": "it"}},
            {"id": "middle", "agent": "it"},
            {"id": "last", "agent": "it"},
        ],
    }


def drive(bench: Bench) -> None:
    """As in a worker: not on the main thread, where Ctrl-C arrives."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(bench.drive).result()


def ends_as_it_should(bench: Bench, directory: Path, function: str, at: str, what: str) -> None:
    job = bench.submit(flow(directory, function, at, what), 1)
    drive(bench)
    assert bench.job(job)["state"] == "failed"
    bench.check()
    (letter,) = bench.db.run(lambda session: desk.letters(session, tenant="default"))
    assert (letter["reason"], letter["job_id"]) == ("bug", job)
    assert letter["path"].endswith(at)
    assert not {row["state"] for row in bench.steps(job).values()} & {"running", "ready", "retrying", "in_doubt"}
    (directory / "mended").touch()
    dead_letters.replay(bench.engine, letter["id"], by="me")
    drive(bench)
    assert bench.job(job)["state"] == "succeeded"
    assert bench.job(job)["output"] == {"did": "last"}


@pytest.mark.parametrize("function", ["raises", "raises_async"])
def test_whatever_an_agent_raises_is_a_bug_and_no_more(bench: Bench, tmp_path: Path, function: str) -> None:
    """M8: the job is consistent, one dead letter says ``bug``, and a replay ends it."""
    for what in BARE:
        directory = tmp_path / what
        directory.mkdir()
        ends_as_it_should(bench, directory, function, "middle", what)


def test_at_whichever_step(bench: Bench, tmp_path: Path) -> None:
    """M8: in a sequence, in a branch of a fan-out, after a join, at the end."""
    for at in ("first", "each/1", "middle", "last"):
        directory = tmp_path / at.replace("/", "-")
        directory.mkdir()
        ends_as_it_should(bench, directory, "raises", at, "KeyError")
